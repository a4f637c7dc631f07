# Cameras (ResNet-101) and LiDAR (PointPillars, no sparse convolution): both maps have cells of 0.3 m, are fused at that
# size, and halved by the backbone behind the fuser. No weights are published.
_base_ = 'bevfusion_lidar-cam_r101_second0075.py'

pillar_size = [0.3, 0.3, 8.0]  # one pillar is as high as the point cloud range
grid_size = [360, 360, 1]

model = dict(
    data_preprocessor=dict(
        voxelize_cfg=dict(
            max_num_points=20,
            voxel_size=pillar_size,
            max_voxels=[30000, 60000],
            voxelize_reduce=False,
            axes='zyx',
        )
    ),
    pts_voxel_encoder=dict(
        _delete_=True,
        type='PillarFeatureNet',
        in_channels=5,
        feat_channels=[64],
        with_distance=False,
        voxel_size=pillar_size,
        point_cloud_range=_base_.point_cloud_range,
        norm_cfg=dict(type='BN1d', eps=1e-3, momentum=0.01),
        legacy=False,
    ),
    pts_middle_encoder=dict(_delete_=True, type='PointPillarsScatter', in_channels=64, output_shape=grid_size[:2]),
    view_transform=dict(downsample=1),
    fusion_layer=dict(in_channels=[80, 64], out_channels=128),
    pts_backbone=dict(in_channels=128, layer_strides=[2, 2]),
    bbox_head=dict(
        bbox_coder=dict(out_size_factor=2, voxel_size=pillar_size[:2]),
        train_cfg=dict(grid_size=grid_size, voxel_size=pillar_size, out_size_factor=2),
        test_cfg=dict(grid_size=grid_size, voxel_size=pillar_size[:2], out_size_factor=2),
    ),
)
