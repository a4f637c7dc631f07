# SST on KITTI: 216 x 252 pillars of 0.32 m in front of the car, windows of 12 x 12, boxes without velocity.
_base_ = [
    '../_base_/models/sst_centerhead.py',
    '../_base_/datasets/kitti_lidar.py',
    '../_base_/schedules/one_cycle_24e.py',
    'mmdet3d::_base_/default_runtime.py',
]
custom_imports = dict(imports=['mmprune3d'], allow_failed_imports=False)

point_cloud_range = [0, -40.32, -3, 69.12, 40.32, 1]
voxel_size = [0.32, 0.32, 4]
grid = [216, 252, 1]  # along x, y, z
center_range = [-5, -45, -10, 75, 45, 10]
model = dict(
    data_preprocessor=dict(voxel_layer=dict(point_cloud_range=point_cloud_range, voxel_size=voxel_size)),
    voxel_encoder=dict(in_channels=4, point_cloud_range=point_cloud_range, voxel_size=voxel_size),
    middle_encoder=dict(sparse_shape=grid),
    backbone=dict(output_shape=[252, 216], layer_cfg=dict(_delete_=True, post_norm=True)),
    bbox_head=dict(
        tasks=[dict(num_class=3, class_names=['Pedestrian', 'Cyclist', 'Car'])],
        common_heads=dict(_delete_=True, reg=(2, 2), height=(1, 2), dim=(3, 2), rot=(2, 2)),
        bbox_coder=dict(post_center_range=center_range, max_num=500, pc_range=point_cloud_range[:2]),
    ),
    train_cfg=dict(
        grid_size=grid,
        voxel_size=voxel_size,
        point_cloud_range=point_cloud_range,
        code_weights=[1.0] * 8,
    ),
    test_cfg=dict(
        post_center_limit_range=center_range,
        pc_range=point_cloud_range[:2],
        pre_max_size=1000,
        post_max_size=100,
        nms_thr=0.2,
    ),
)

# An epoch has every frame twice.
max_epochs = 40
train_cfg = dict(max_epochs=max_epochs, val_interval=2)
param_scheduler = [dict(_base_.param_scheduler[0], total_steps=max_epochs)]
auto_scale_lr = dict(base_batch_size=32)
