# SST_halt with the bounds of the paper's Table 1: 80 to 90 % of the tokens halt before the first block, 90 to 99 % before
# the second, so on average over the eight attention layers 87.5 to 96.75 % have halted.
_base_ = ['../sst/sst_waymo_paper.py']
model = dict(
    type='HaltingSSTDetector',
    backbone=dict(
        type='HaltingSST',
        halting=[
            dict(block=0, module=dict(type='HaltingUNet', in_channels=32), threshold=0.01, bounds=(0.8, 0.9)),
            dict(block=1, module=dict(type='HaltingMLP', in_channels=32), threshold=0.01, bounds=(0.9, 0.99)),
        ],
        recycle=True,
        score_scope='until_next',
    ),
    sparsity_loss=dict(kind='nonuniform', weight=0.5, alpha=2.0, gamma=4.0, positives='cell'),
)
custom_hooks = [dict(type='HaltingHook')]
