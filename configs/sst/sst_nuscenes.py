# SST on nuScenes: 320 x 320 pillars of 0.32 m, windows of 12 x 12, CenterPoint's six tasks and nine numbers per box.
_base_ = [
    '../_base_/models/sst_centerhead.py',
    '../_base_/datasets/nuscenes_lidar.py',
    '../_base_/schedules/one_cycle_24e.py',
    'mmdet3d::_base_/default_runtime.py',
]
custom_imports = dict(imports=['mmprune3d'], allow_failed_imports=False)

point_cloud_range = [-51.2, -51.2, -5.0, 51.2, 51.2, 3.0]
voxel_size = [0.32, 0.32, 8]
grid = [320, 320, 1]  # along x, y, z
model = dict(
    data_preprocessor=dict(voxel_layer=dict(point_cloud_range=point_cloud_range, voxel_size=voxel_size)),
    voxel_encoder=dict(point_cloud_range=point_cloud_range, voxel_size=voxel_size),
    middle_encoder=dict(sparse_shape=grid),
    backbone=dict(output_shape=[320, 320], layer_cfg=dict(_delete_=True, post_norm=True)),
    bbox_head=dict(
        tasks=[
            dict(num_class=1, class_names=['car']),
            dict(num_class=2, class_names=['truck', 'construction_vehicle']),
            dict(num_class=2, class_names=['bus', 'trailer']),
            dict(num_class=1, class_names=['barrier']),
            dict(num_class=2, class_names=['motorcycle', 'bicycle']),
            dict(num_class=2, class_names=['pedestrian', 'traffic_cone']),
        ],
        bbox_coder=dict(
            post_center_range=[-61.2, -61.2, -10.0, 61.2, 61.2, 10.0],
            max_num=500,
            pc_range=point_cloud_range[:2],
            code_size=9,
        ),
        loss_bbox=dict(loss_weight=0.25),
    ),
    train_cfg=dict(
        grid_size=grid,
        voxel_size=voxel_size,
        point_cloud_range=point_cloud_range,
        code_weights=[1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.2, 0.2],
    ),
    test_cfg=dict(
        post_center_limit_range=[-61.2, -61.2, -10.0, 61.2, 61.2, 10.0],
        min_radius=[4, 12, 10, 1, 0.85, 0.175],
        pc_range=point_cloud_range[:2],
        pre_max_size=1000,
        post_max_size=83,
        nms_thr=0.2,
    ),
)

max_epochs = 20
train_cfg = dict(max_epochs=max_epochs, val_interval=max_epochs)
param_scheduler = [dict(_base_.param_scheduler[0], total_steps=max_epochs)]
auto_scale_lr = dict(base_batch_size=32)
