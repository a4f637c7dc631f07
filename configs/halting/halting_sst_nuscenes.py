# SST_halt on nuScenes, where the paper has no experiment: the bounds are lower, as there are fewer tokens.
_base_ = ['../sst/sst_nuscenes.py']
model = dict(
    type='HaltingSSTDetector',
    backbone=dict(
        type='HaltingSST',
        halting=[
            dict(block=0, module=dict(type='HaltingUNet', in_channels=32), threshold=0.01, bounds=(0.6, 0.7)),
            dict(block=1, module=dict(type='HaltingMLP', in_channels=32), threshold=0.01, bounds=(0.78, 0.88)),
        ],
        recycle=True,
        score_scope='until_next',
    ),
    sparsity_loss=dict(kind='nonuniform', weight=0.5, alpha=2.0, gamma=4.0, positives='cell'),
)
custom_hooks = [dict(type='HaltingHook')]
