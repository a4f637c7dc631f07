# A small SST for synthetic data: all parts of the full one, small widths, 128 x 128 pillars of 0.8 m.
_base_ = ['../_base_/datasets/nuscenes_fusion.py', 'mmdet3d::_base_/default_runtime.py']
custom_imports = dict(imports=['mmprune3d'], allow_failed_imports=False)

data_root = 'data/synthetic-nuscenes/'
point_cloud_range = [-51.2, -51.2, -3.0, 51.2, 51.2, 5.0]
voxel_size = [0.8, 0.8, 8.0]
grid = 128
width = 64
norm_cfg = dict(type='BN', eps=1e-3, momentum=0.05)

model = dict(
    type='SSTDetector',
    data_preprocessor=dict(
        type='Det3DDataPreprocessor',
        voxel=True,
        voxel_type='dynamic',
        voxel_layer=dict(
            max_num_points=-1, point_cloud_range=point_cloud_range, voxel_size=voxel_size, max_voxels=(-1, -1)
        ),
    ),
    voxel_encoder=dict(
        type='SSTDynamicVFE',
        in_channels=4,
        feat_channels=[32, width],
        with_cluster_center=True,
        with_voxel_center=True,
        voxel_size=voxel_size,
        point_cloud_range=point_cloud_range,
        norm_cfg=dict(type='BN1d', eps=1e-3, momentum=0.05),
    ),
    middle_encoder=dict(
        type='SSTInputLayer', window_shape=(12, 12, 1), sparse_shape=(grid, grid, 1), pos_temperature=1000
    ),
    backbone=dict(
        type='SSTBackbone',
        d_model=[width] * 4,
        nhead=[4] * 4,
        num_blocks=4,
        dim_feedforward=[2 * width] * 4,
        output_shape=[grid, grid],
        num_attached_conv=4,
        conv_in_channel=width,
        conv_out_channel=width,
        norm_cfg=norm_cfg,
        conv_kwargs=[
            dict(kernel_size=3, dilation=1, padding=1),
            dict(kernel_size=3, dilation=1, padding=1),
            dict(kernel_size=3, dilation=1, padding=1),
            dict(kernel_size=3, dilation=2, padding=2),
        ],
        conv_shortcut=True,
    ),
    neck=dict(
        type='SECONDFPN',
        in_channels=[width],
        out_channels=[width],
        upsample_strides=[1],
        norm_cfg=norm_cfg,
        upsample_cfg=dict(type='deconv', bias=False),
    ),
    bbox_head=dict(
        type='SSTCenterHead',
        in_channels=width,
        tasks=[dict(num_class=10, class_names=_base_.class_names)],
        common_heads=dict(reg=(2, 2), height=(1, 2), dim=(3, 2), rot=(2, 2), vel=(2, 2)),
        share_conv_channel=32,
        norm_cfg=norm_cfg,
        bbox_coder=dict(
            type='CenterPointBBoxCoder',
            pc_range=point_cloud_range[:2],
            post_center_range=[-61.2, -61.2, -10.0, 61.2, 61.2, 10.0],
            max_num=300,
            score_threshold=0.05,
            out_size_factor=1,
            voxel_size=voxel_size[:2],
            code_size=9,
        ),
        separate_head=dict(type='SeparateHead', init_bias=-2.19, final_kernel=3, head_conv=32, norm_cfg=norm_cfg),
        loss_cls=dict(type='mmdet.GaussianFocalLoss', reduction='mean', loss_weight=1.0),
        loss_bbox=dict(type='mmdet.L1Loss', reduction='mean', loss_weight=2.0 / 8),
        norm_bbox=True,
    ),
    train_cfg=dict(
        point_cloud_range=point_cloud_range,
        grid_size=[grid, grid, 1],
        voxel_size=voxel_size,
        out_size_factor=1,
        dense_reg=1,
        gaussian_overlap=0.1,
        max_objs=500,
        min_radius=2,
        code_weights=[1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.2, 0.2],
    ),
    test_cfg=dict(
        post_center_limit_range=[-61.2, -61.2, -10.0, 61.2, 61.2, 10.0],
        max_per_img=300,
        min_radius=[1.0],
        score_threshold=0.05,
        out_size_factor=1,
        voxel_size=voxel_size[:2],
        pc_range=point_cloud_range[:2],
        nms_type='rotate',
        pre_max_size=1000,
        post_max_size=300,
        nms_thr=0.2,
    ),
)

load_points = dict(type='LoadPointsFromFile', coord_type='LIDAR', load_dim=5, use_dim=4)
train_pipeline = [
    load_points,
    dict(type='LoadAnnotations3D', with_bbox_3d=True, with_label_3d=True),
    dict(type='GlobalRotScaleTrans', rot_range=[-0.3925, 0.3925], scale_ratio_range=[0.95, 1.05]),
    dict(type='RandomFlip3D', sync_2d=False, flip_ratio_bev_horizontal=0.5, flip_ratio_bev_vertical=0.5),
    dict(type='PointsRangeFilter', point_cloud_range=point_cloud_range),
    dict(type='ObjectRangeFilter', point_cloud_range=point_cloud_range),
    dict(type='ObjectNameFilter', classes=_base_.class_names),
    dict(type='Pack3DDetInputs', keys=['points', 'gt_bboxes_3d', 'gt_labels_3d']),
]
test_pipeline = [
    load_points,
    dict(type='PointsRangeFilter', point_cloud_range=point_cloud_range),
    dict(type='Pack3DDetInputs', keys=['points']),
]
input_modality = dict(use_lidar=True, use_camera=False)
train_dataloader = dict(
    batch_size=4,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(data_root=data_root, pipeline=train_pipeline, modality=input_modality),
)
val_dataloader = dict(
    batch_size=4,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(data_root=data_root, pipeline=test_pipeline, modality=input_modality),
)
test_dataloader = val_dataloader
val_evaluator = dict(data_root=data_root, ann_file=data_root + 'nuscenes_infos_val.pkl')
test_evaluator = val_evaluator

max_epochs = 4
train_cfg = dict(by_epoch=True, max_epochs=max_epochs, val_interval=max_epochs)
val_cfg = dict()
test_cfg = dict()
optim_wrapper = dict(
    type='BFloat16OptimWrapper',
    optimizer=dict(type='AdamW', lr=2e-3, weight_decay=0.01),
    clip_grad=dict(max_norm=10, norm_type=2),
)
param_scheduler = [
    dict(
        type='OneCycleLR',
        eta_max=2e-3,
        pct_start=0.1,
        total_steps=max_epochs,
        by_epoch=True,
        convert_to_iter_based=True,
    )
]
default_hooks = dict(
    logger=dict(type='LoggerHook', interval=50), checkpoint=dict(type='CheckpointHook', interval=1, max_keep_ckpts=2)
)
randomness = dict(seed=0)
