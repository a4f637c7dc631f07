# Cameras (ResNet-101) and LiDAR (sparse encoder, voxels of 0.075 m, SECOND): only convolutions, so that channels can
# be removed everywhere. It is the baseline of AlterMOMA's structured pruning; no weights are published.
_base_ = 'bevfusion_lidar-cam_swint_voxel0075.py'

model = dict(
    img_backbone=dict(
        _delete_=True,
        type='mmdet.ResNet',
        depth=101,
        out_indices=(1, 2, 3),
        norm_cfg=dict(type='BN', requires_grad=True),
        norm_eval=False,
        style='pytorch',
    ),
    img_neck=dict(in_channels=[512, 1024, 2048]),
)
