# The official SST with an anchor head on Waymo: 6 blocks of dot-product attention, 3 convolutions, points without
# intensity. Weights of the original code load after conversion (README).
_base_ = ['./sst_waymoD5_centerhead.py']

norm_2d = _base_.norm_2d
model = dict(
    voxel_encoder=dict(in_channels=3),
    middle_encoder=dict(pos_temperature=10000),
    backbone=dict(
        d_model=[128] * 6,
        nhead=[8] * 6,
        num_blocks=6,
        dim_feedforward=[256] * 6,
        num_attached_conv=3,
        conv_kwargs=[
            dict(kernel_size=3, dilation=1, padding=1, stride=1),
            dict(kernel_size=3, dilation=1, padding=1, stride=1),
            dict(kernel_size=3, dilation=2, padding=2, stride=1),
        ],
        conv_shortcut=False,
        layer_cfg=dict(_delete_=True),
        checkpoint_blocks=[],
    ),
    neck=dict(out_channels=[384]),
    bbox_head=dict(
        _delete_=True,
        type='Anchor3DHead',
        num_classes=3,
        in_channels=384,
        feat_channels=384,
        use_direction_classifier=True,
        anchor_generator=dict(
            type='AlignedAnchor3DRangeGenerator',
            ranges=[
                [-74.88, -74.88, -0.0345, 74.88, 74.88, -0.0345],
                [-74.88, -74.88, -0.1188, 74.88, 74.88, -0.1188],
                [-74.88, -74.88, 0, 74.88, 74.88, 0],
            ],
            sizes=[
                [4.73, 2.08, 1.77],  # car
                [1.81, 0.84, 1.77],  # cyclist
                [0.91, 0.84, 1.74],  # pedestrian
            ],
            rotations=[0, 1.57],
            reshape_out=False,
        ),
        diff_rad_by_sin=True,
        # The official 0.7854, converted to the angles of mmdet3d 1.x. mmdet3d's own -0.7854 differs by a quarter turn.
        dir_offset=1.5707963 - 0.7854,
        dir_limit_offset=0,
        bbox_coder=dict(type='DeltaXYZWLHRBBoxCoder', code_size=7),
        loss_cls=dict(type='mmdet.FocalLoss', use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=1.0),
        loss_bbox=dict(type='mmdet.L1Loss', loss_weight=0.5),
        loss_dir=dict(type='mmdet.CrossEntropyLoss', use_sigmoid=False, loss_weight=0.2),
    ),
    train_cfg=dict(
        _delete_=True,
        assigner=[
            dict(
                type='Max3DIoUAssigner',
                iou_calculator=dict(type='BboxOverlapsNearest3D'),
                pos_iou_thr=positive,
                neg_iou_thr=negative,
                min_pos_iou=negative,
                ignore_iof_thr=-1,
            )
            for positive, negative in ((0.55, 0.4), (0.5, 0.3), (0.5, 0.3))
        ],
        allowed_border=0,
        code_weight=[1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0],
        pos_weight=-1,
        debug=False,
    ),
    test_cfg=dict(
        _delete_=True,
        use_rotate_nms=True,
        nms_across_levels=False,
        nms_pre=4096,
        nms_thr=0.25,
        score_thr=0.1,
        min_bbox_size=0,
        max_num=500,
    ),
)

load_points = dict(type='LoadPointsFromFile', coord_type='LIDAR', load_dim=6, use_dim=3)
train_pipeline = _base_.train_pipeline
train_pipeline[0] = load_points
train_pipeline[2].db_sampler.points_loader = load_points
test_pipeline = _base_.test_pipeline
test_pipeline[0] = load_points
train_dataloader = dict(dataset=dict(dataset=dict(pipeline=train_pipeline)))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
