# nuScenes, LiDAR alone, ten sweeps, in the range and with the class order of CenterPoint.
_base_ = ['mmdet3d::_base_/datasets/nus-3d.py']
point_cloud_range = [-51.2, -51.2, -5.0, 51.2, 51.2, 3.0]
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
load_points = dict(type='LoadPointsFromFile', coord_type='LIDAR', load_dim=5, use_dim=5, backend_args=None)
load_sweeps = dict(
    type='LoadPointsFromMultiSweeps',
    sweeps_num=9,
    load_dim=5,
    use_dim=[0, 1, 2, 3, 4],
    pad_empty_sweeps=True,
    remove_close=True,
    backend_args=None,
)
train_pipeline = [
    load_points,
    load_sweeps,
    dict(type='LoadAnnotations3D', with_bbox_3d=True, with_label_3d=True),
    dict(
        type='GlobalRotScaleTrans',
        rot_range=[-0.78539816, 0.78539816],
        scale_ratio_range=[0.95, 1.05],
        translation_std=[0, 0, 0],
    ),
    dict(type='RandomFlip3D', sync_2d=False, flip_ratio_bev_horizontal=0.5, flip_ratio_bev_vertical=0.5),
    dict(type='PointsRangeFilter', point_cloud_range=point_cloud_range),
    dict(type='ObjectRangeFilter', point_cloud_range=point_cloud_range),
    dict(type='ObjectNameFilter', classes=class_names),
    dict(type='PointShuffle'),
    dict(type='Pack3DDetInputs', keys=['points', 'gt_bboxes_3d', 'gt_labels_3d']),
]
test_pipeline = [
    load_points,
    load_sweeps,
    dict(type='PointsRangeFilter', point_cloud_range=point_cloud_range),
    dict(type='Pack3DDetInputs', keys=['points']),
]
eval_pipeline = test_pipeline

# Samples with rare classes are repeated (CBGS), so an epoch has about 4.5 times as many samples as the data.
train_dataset = dict(
    type='NuScenesDataset',
    data_root='data/nuscenes/',
    ann_file='nuscenes_infos_train.pkl',
    pipeline=train_pipeline,
    metainfo=metainfo,
    modality=dict(use_lidar=True, use_camera=False),
    data_prefix=dict(pts='samples/LIDAR_TOP', img='', sweeps='sweeps/LIDAR_TOP'),
    test_mode=False,
    use_valid_flag=True,
    box_type_3d='LiDAR',
    backend_args=None,
)
train_dataloader = dict(batch_size=4, dataset=dict(_delete_=True, type='CBGSDataset', dataset=train_dataset))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline, metainfo=metainfo))
test_dataloader = dict(dataset=dict(pipeline=test_pipeline, metainfo=metainfo))
