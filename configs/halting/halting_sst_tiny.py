# SST_halt for synthetic data: exactly 73 % of the tokens halt before the first block, 85 % before the second, which is
# 82 % on average over the attention layers. Tokens have 64 channels, half of the paper's 128; the paper gives no widths
# for its U-Net, whose coarsest level is narrower here (48) than by default (64).
_base_ = ['../sst/sst_tiny.py']
unet = dict(type='HaltingUNet', in_channels=32, widths=(16, 32, 48))
mlp = dict(type='HaltingMLP', in_channels=32)
model = dict(
    type='HaltingSSTDetector',
    backbone=dict(
        type='HaltingSST',
        halting=[
            dict(block=0, module=unet, threshold=0.01, bounds=(0.73, 0.73)),
            dict(block=1, module=mlp, threshold=0.01, bounds=(0.85, 0.85)),
        ],
        recycle=True,
        score_scope='until_next',
    ),
    sparsity_loss=dict(kind='nonuniform', weight=0.5, alpha=2.0, gamma=4.0, positives='cell'),
)
custom_hooks = [dict(type='HaltingHook')]
