# A small BEVFusion for synthetic data: all parts of the full one, small widths, maps of 64 x 64 cells of 1.6 m.
# It starts from its two streams, each trained alone before (mmprune3d checkpoint fuse).
_base_ = ['../_base_/datasets/nuscenes_fusion.py', 'mmdet3d::_base_/default_runtime.py']
custom_imports = dict(imports=['mmprune3d'], allow_failed_imports=False)

data_root = 'data/synthetic-nuscenes/'
point_cloud_range = [-51.2, -51.2, -5.0, 51.2, 51.2, 3.0]
voxel_size = [0.4, 0.4, 0.4]
sparse_shape = [256, 256, 21]
image_size = (96, 256)  # height, width; three quarters of the recorded ones
lidar_channels = 64  # 32 times two heights
camera_channels = 32

model = dict(
    type='BEVFusion3D',
    data_preprocessor=dict(
        type='Det3DDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_size_divisor=32,
        voxelize_cfg=dict(
            max_num_points=10,
            point_cloud_range=point_cloud_range,
            voxel_size=voxel_size,
            max_voxels=[20000, 20000],
            voxelize_reduce=True,
        ),
    ),
    img_backbone=dict(
        type='mmdet.ResNet',
        depth=18,
        base_channels=16,
        out_indices=(1, 2, 3),
        norm_cfg=dict(type='BN', requires_grad=True),
        norm_eval=False,
        style='pytorch',
    ),
    img_neck=dict(
        type='BEVFusion3DLSSFPN',
        in_channels=[32, 64, 128],
        out_channels=64,
        start_level=0,
        num_outs=3,
        norm_cfg=dict(type='BN2d', requires_grad=True),
        act_cfg=dict(type='ReLU', inplace=True),
        upsample_cfg=dict(mode='bilinear', align_corners=False),
    ),
    view_transform=dict(
        type='BEVFusion3DDepthLSSTransform',
        in_channels=64,
        out_channels=camera_channels,
        image_size=image_size,
        feature_size=(12, 32),
        xbound=[-51.2, 51.2, 0.8],
        ybound=[-51.2, 51.2, 0.8],
        zbound=[-10.0, 10.0, 20.0],
        dbound=[1.0, 53.0, 1.0],
        downsample=2,
    ),
    pts_voxel_encoder=dict(type='HardSimpleVFE', num_features=5),
    pts_middle_encoder=dict(
        type='BEVFusion3DSparseEncoder',
        in_channels=5,
        sparse_shape=sparse_shape,
        order=('conv', 'norm', 'act'),
        norm_cfg=dict(type='BN1d', eps=0.001, momentum=0.01),
        base_channels=8,
        output_channels=32,
        encoder_channels=((8, 8, 16), (16, 16, 32), (32, 32)),
        encoder_paddings=((0, 0, 1), (0, 0, (1, 1, 0)), (0, 0)),
        block_type='basicblock',
    ),
    fusion_layer=dict(
        type='BEVFusion3DConvFuser', in_channels=[camera_channels, lidar_channels], out_channels=lidar_channels
    ),
    pts_backbone=dict(
        type='SECOND',
        in_channels=lidar_channels,
        out_channels=[32, 64],
        layer_nums=[2, 2],
        layer_strides=[1, 2],
        norm_cfg=dict(type='BN', eps=0.001, momentum=0.01),
        conv_cfg=dict(type='Conv2d', bias=False),
    ),
    pts_neck=dict(
        type='SECONDFPN',
        in_channels=[32, 64],
        out_channels=[32, 32],
        upsample_strides=[1, 2],
        norm_cfg=dict(type='BN', eps=0.001, momentum=0.01),
        upsample_cfg=dict(type='deconv', bias=False),
        use_conv_for_no_stride=True,
    ),
    bbox_head=dict(
        type='BEVFusion3DTransFusionHead',
        num_proposals=100,
        auxiliary=True,
        in_channels=64,
        hidden_channel=64,
        num_classes=10,
        nms_kernel_size=3,
        bn_momentum=0.1,
        num_decoder_layers=1,
        decoder_layer=dict(
            type='BEVFusion3DDecoderLayer',
            self_attn_cfg=dict(embed_dims=64, num_heads=4, dropout=0.0),
            cross_attn_cfg=dict(embed_dims=64, num_heads=4, dropout=0.0),
            ffn_cfg=dict(
                embed_dims=64,
                feedforward_channels=128,
                num_fcs=2,
                ffn_drop=0.0,
                act_cfg=dict(type='ReLU', inplace=True),
            ),
            norm_cfg=dict(type='LN'),
            pos_encoding_cfg=dict(input_channel=2, num_pos_feats=64),
        ),
        train_cfg=dict(
            dataset='nuScenes',
            point_cloud_range=point_cloud_range,
            grid_size=sparse_shape,
            voxel_size=voxel_size,
            out_size_factor=4,
            gaussian_overlap=0.1,
            min_radius=1,
            pos_weight=-1,
            code_weights=[1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.2, 0.2],
            assigner=dict(
                type='BEVFusion3DAssigner',
                cls_cost=dict(type='mmdet.FocalLossCost', gamma=2.0, alpha=0.25, weight=0.15),
                reg_cost=dict(type='BEVFusion3DBEVL1Cost', weight=0.25),
                iou_cost=dict(type='BEVFusion3DIoUCost', weight=0.25),
            ),
        ),
        test_cfg=dict(
            dataset='nuScenes',
            grid_size=sparse_shape,
            out_size_factor=4,
            voxel_size=voxel_size[:2],
            pc_range=point_cloud_range[:2],
            nms_type=None,
        ),
        common_heads=dict(center=(2, 2), height=(1, 2), dim=(3, 2), rot=(2, 2), vel=(2, 2)),
        bbox_coder=dict(
            type='BEVFusion3DBoxCoder',
            pc_range=point_cloud_range[:2],
            post_center_range=[-61.2, -61.2, -10.0, 61.2, 61.2, 10.0],
            score_threshold=0.0,
            out_size_factor=4,
            voxel_size=voxel_size[:2],
            code_size=10,
        ),
        loss_cls=dict(
            type='mmdet.FocalLoss', use_sigmoid=True, gamma=2.0, alpha=0.25, reduction='mean', loss_weight=1.0
        ),
        loss_heatmap=dict(type='mmdet.GaussianFocalLoss', reduction='mean', loss_weight=1.0),
        loss_bbox=dict(type='mmdet.L1Loss', reduction='mean', loss_weight=0.25),
    ),
)

augment_images = dict(type='MultiViewImageAug', image_size=image_size, resample='opencv')
train_pipeline = [
    _base_.load_images,
    _base_.load_points,
    dict(type='LoadAnnotations3D', with_bbox_3d=True, with_label_3d=True),
    dict(type='RecordAugmentation'),
    dict(**augment_images, resize_range=(0.75, 0.825), flip_prob=0.5, per_image=True),
    dict(
        type='MultiViewGlobalRotScaleTrans',
        rot_range=(-0.3925, 0.3925),
        scale_ratio_range=(0.95, 1.05),
        translation_std=(0.2, 0.2, 0.1),
    ),
    dict(type='MultiViewRandomFlip3D', flip_ratio_bev_horizontal=0.5, flip_ratio_bev_vertical=0.5, flip_images=False),
    dict(type='PointsRangeFilter', point_cloud_range=point_cloud_range),
    dict(type='ObjectRangeFilter', point_cloud_range=point_cloud_range),
    dict(type='ObjectNameFilter', classes=_base_.class_names),
    dict(
        type='Pack3DDetInputs',
        keys=['points', 'img', 'gt_bboxes_3d', 'gt_labels_3d'],
        meta_keys=_base_.meta_keys,
    ),
]
test_pipeline = [
    _base_.load_images,
    _base_.load_points,
    dict(type='RecordAugmentation'),
    dict(**augment_images, training=False, test_resize=0.75),
    dict(type='PointsRangeFilter', point_cloud_range=point_cloud_range),
    dict(type='Pack3DDetInputs', keys=['points', 'img'], meta_keys=_base_.meta_keys),
]
train_dataloader = dict(
    batch_size=4,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(data_root=data_root, pipeline=train_pipeline),
)
val_dataloader = dict(
    batch_size=4,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(data_root=data_root, pipeline=test_pipeline),
)
test_dataloader = val_dataloader
val_evaluator = dict(data_root=data_root, ann_file=data_root + 'nuscenes_infos_val.pkl')
test_evaluator = val_evaluator

max_epochs = 1
train_cfg = dict(by_epoch=True, max_epochs=max_epochs, val_interval=max_epochs)
val_cfg = dict()
test_cfg = dict()
optim_wrapper = dict(
    type='BFloat16OptimWrapper',
    optimizer=dict(type='AdamW', lr=5e-4, weight_decay=0.01),
    clip_grad=dict(max_norm=35, norm_type=2),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=100),
    dict(
        type='CosineAnnealingLR',
        by_epoch=True,
        begin=0,
        end=max_epochs,
        T_max=max_epochs,
        eta_min_ratio=1e-2,
        convert_to_iter_based=True,
    ),
]
default_hooks = dict(
    logger=dict(type='LoggerHook', interval=50), checkpoint=dict(type='CheckpointHook', interval=1, max_keep_ckpts=2)
)
load_from = 'work_dirs/bevfusion_tiny/start.pth'
randomness = dict(seed=0)
