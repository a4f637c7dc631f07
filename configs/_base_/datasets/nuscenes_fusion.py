# nuScenes with six cameras and the LiDAR (info files of mmdet3d, version 2): the data of BEVFusion.
# `RecordAugmentation` keeps the camera matrices as recorded; the augmentation of pixels and points is stored in
# `img_aug_matrix` and `lidar_aug_matrix`, which the view transform inverts.
dataset_type = 'NuScenesDataset'
data_root = 'data/nuscenes/'
point_cloud_range = [-54.0, -54.0, -5.0, 54.0, 54.0, 3.0]
image_size = (256, 704)  # height, width
class_names = [
    'car',
    'truck',
    'construction_vehicle',
    'bus',
    'trailer',
    'barrier',
    'motorcycle',
    'bicycle',
    'pedestrian',
    'traffic_cone',
]
metainfo = dict(classes=class_names)
input_modality = dict(use_lidar=True, use_camera=True)
data_prefix = dict(
    pts='samples/LIDAR_TOP',
    sweeps='sweeps/LIDAR_TOP',
    CAM_FRONT='samples/CAM_FRONT',
    CAM_FRONT_RIGHT='samples/CAM_FRONT_RIGHT',
    CAM_FRONT_LEFT='samples/CAM_FRONT_LEFT',
    CAM_BACK='samples/CAM_BACK',
    CAM_BACK_LEFT='samples/CAM_BACK_LEFT',
    CAM_BACK_RIGHT='samples/CAM_BACK_RIGHT',
)
backend_args = None

# Images stay uint8 until the data preprocessor, so that worker processes transfer a quarter of the bytes.
load_images = dict(
    type='LoadMultiViewImageFromFiles', to_float32=False, color_type='color', num_views=6, backend_args=backend_args
)
load_points = dict(type='LoadPointsFromFile', coord_type='LIDAR', load_dim=5, use_dim=5, backend_args=backend_args)
load_sweeps = dict(
    type='LoadPointsFromMultiSweeps',
    sweeps_num=9,
    load_dim=5,
    use_dim=5,
    pad_empty_sweeps=True,
    remove_close=True,
    backend_args=backend_args,
)
meta_keys = [
    'cam2img',
    'cam2lidar',
    'lidar2cam',
    'lidar2img',
    'img_aug_matrix',
    'lidar_aug_matrix',
    'img_path',
    'img_shape',
    'pad_shape',
    'lidar_path',
    'sample_idx',
    'box_type_3d',
    'num_pts_feats',
]
train_pipeline = [
    load_images,
    load_points,
    load_sweeps,
    dict(type='LoadAnnotations3D', with_bbox_3d=True, with_label_3d=True),
    dict(type='RecordAugmentation'),
    dict(
        type='MultiViewImageAug',
        image_size=image_size,
        resize_range=(0.38, 0.55),
        rotate_range=(-5.4, 5.4),
        flip_prob=0.5,
        per_image=True,
    ),
    dict(
        type='MultiViewGlobalRotScaleTrans',
        rot_range=(-0.78539816, 0.78539816),
        scale_ratio_range=(0.9, 1.1),
        translation_std=(0.5, 0.5, 0.5),
    ),
    dict(type='MultiViewRandomFlip3D', flip_ratio_bev_horizontal=0.5, flip_ratio_bev_vertical=0.5, flip_images=False),
    dict(type='PointsRangeFilter', point_cloud_range=point_cloud_range),
    dict(type='ObjectRangeFilter', point_cloud_range=point_cloud_range),
    dict(type='ObjectNameFilter', classes=class_names),
    dict(type='PointShuffle'),
    dict(type='Pack3DDetInputs', keys=['points', 'img', 'gt_bboxes_3d', 'gt_labels_3d'], meta_keys=meta_keys),
]
test_pipeline = [
    load_images,
    load_points,
    load_sweeps,
    dict(type='RecordAugmentation'),
    dict(type='MultiViewImageAug', image_size=image_size, training=False, test_resize=0.48),
    dict(type='PointsRangeFilter', point_cloud_range=point_cloud_range),
    dict(type='Pack3DDetInputs', keys=['points', 'img'], meta_keys=meta_keys),
]

train_dataloader = dict(
    batch_size=4,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        ann_file='nuscenes_infos_train.pkl',
        pipeline=train_pipeline,
        metainfo=metainfo,
        modality=input_modality,
        data_prefix=data_prefix,
        test_mode=False,
        use_valid_flag=True,
        box_type_3d='LiDAR',
        backend_args=backend_args,
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    drop_last=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        ann_file='nuscenes_infos_val.pkl',
        pipeline=test_pipeline,
        metainfo=metainfo,
        modality=input_modality,
        data_prefix=data_prefix,
        test_mode=True,
        box_type_3d='LiDAR',
        backend_args=backend_args,
    ),
)
test_dataloader = val_dataloader

val_evaluator = dict(
    type='NuScenesMetric',
    data_root=data_root,
    ann_file=data_root + 'nuscenes_infos_val.pkl',
    metric='bbox',
    backend_args=backend_args,
)
test_evaluator = val_evaluator

# for mmdet3d's inferencers and drawing hooks
visualizer = dict(type='Det3DLocalVisualizer', vis_backends=[dict(type='LocalVisBackend')])
