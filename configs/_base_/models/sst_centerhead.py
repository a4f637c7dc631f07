# SST with a centre head: the structure and the sizes of the official Waymo model (grid of 468 x 468 pillars of 0.32 m).
# Other data replace range, grid, tasks and code weights.
voxel_size = [0.32, 0.32, 6]
pillar_range = [-74.88, -74.88, -2, 74.88, 74.88, 4]
norm_1d = dict(type='naiveSyncBN1d', eps=1e-3, momentum=0.01)
norm_2d = dict(type='naiveSyncBN2d', eps=1e-3, momentum=0.01)
model = dict(
    type='SSTDetector',
    data_preprocessor=dict(
        type='Det3DDataPreprocessor',
        voxel=True,
        voxel_type='dynamic',
        voxel_layer=dict(
            max_num_points=-1,
            point_cloud_range=pillar_range,
            voxel_size=voxel_size,
            max_voxels=[-1, -1],
        ),
    ),
    voxel_encoder=dict(
        type='SSTDynamicVFE',
        in_channels=5,
        feat_channels=[64, 128],
        with_distance=False,
        with_cluster_center=True,
        with_voxel_center=True,
        voxel_size=voxel_size,
        point_cloud_range=pillar_range,
        norm_cfg=norm_1d,
    ),
    middle_encoder=dict(
        type='SSTInputLayer',
        window_shape=[12, 12, 1],
        sparse_shape=[468, 468, 1],
        pos_temperature=1000,
        normalize_pos=False,
    ),
    backbone=dict(
        type='SSTBackbone',
        d_model=[128] * 4,
        nhead=[8] * 4,
        num_blocks=4,
        dim_feedforward=[256] * 4,
        dropout=0.0,
        activation='gelu',
        output_shape=[468, 468],
        num_attached_conv=4,
        conv_kwargs=[
            dict(kernel_size=3, dilation=1, padding=1, stride=1),
            dict(kernel_size=3, dilation=1, padding=1, stride=1),
            dict(kernel_size=3, dilation=1, padding=1, stride=1),
            dict(kernel_size=3, dilation=2, padding=2, stride=1),
        ],
        conv_in_channel=128,
        conv_out_channel=128,
        conv_shortcut=True,
        norm_cfg=norm_2d,
        layer_cfg=dict(use_bn=False, cosine=True, tau_min=0.01),
    ),
    neck=dict(
        type='SECONDFPN',
        in_channels=[128],
        upsample_strides=[1],
        out_channels=[128],
        norm_cfg=norm_2d,
    ),
    bbox_head=dict(
        type='SSTCenterHead',
        in_channels=128,
        tasks=[dict(num_class=3, class_names=['Car', 'Pedestrian', 'Cyclist'])],
        common_heads=dict(reg=(2, 2), height=(1, 2), dim=(3, 2), rot=(2, 2), vel=(2, 2)),
        share_conv_channel=64,
        bbox_coder=dict(
            type='CenterPointBBoxCoder',
            post_center_range=[-74.88, -74.88, -10.0, 74.88, 74.88, 10.0],
            max_num=4096,
            score_threshold=0.1,
            out_size_factor=1,
            voxel_size=voxel_size[:2],
            pc_range=pillar_range[:2],
            code_size=7,  # the official model returns its untrained velocities as well, 9 numbers
        ),
        separate_head=dict(
            type='DCNSeparateHead',
            init_bias=-2.19,
            final_kernel=3,
            dcn_config=dict(
                type='DCN', in_channels=64, out_channels=64, kernel_size=3, padding=1, groups=4, bias=False
            ),
            norm_cfg=norm_2d,
        ),
        norm_cfg=norm_2d,
        loss_cls=dict(type='mmdet.GaussianFocalLoss', reduction='mean'),
        loss_bbox=dict(type='mmdet.L1Loss', reduction='mean', loss_weight=2.0),
        norm_bbox=True,
    ),
    train_cfg=dict(
        grid_size=[468, 468, 1],
        voxel_size=voxel_size,
        point_cloud_range=pillar_range,
        out_size_factor=1,
        dense_reg=1,
        gaussian_overlap=0.1,
        max_objs=500,
        min_radius=2,
        # Waymo's boxes have no velocity: that branch exists as in the official model, and is not trained.
        code_weights=[1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0],
    ),
    test_cfg=dict(
        post_center_limit_range=[-80, -80, -10, 80, 80, 10],
        max_per_img=500,
        max_pool_nms=False,
        min_radius=[4],
        score_threshold=0.1,
        pc_range=pillar_range[:2],
        out_size_factor=1,
        voxel_size=voxel_size[:2],
        nms_type='rotate',
        pre_max_size=4096,
        post_max_size=500,
        nms_thr=0.7,
    ),
)
