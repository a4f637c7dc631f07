# Waymo Open Dataset, one sweep, three classes. mmdet3d's settings, except that a tanh is applied to intensity and
# elongation, as in SST: the raw values have outliers that can make losses NaN.
_base_ = ['mmdet3d::_base_/datasets/waymoD5-3d-3class.py']
class_names = ['Car', 'Pedestrian', 'Cyclist']
point_cloud_range = [-74.88, -74.88, -2, 74.88, 74.88, 4]
meta_keys = ['box_type_3d', 'sample_idx', 'context_name', 'timestamp']
load_points = dict(
    type='LoadPointsFromFile',
    coord_type='LIDAR',
    load_dim=6,
    use_dim=5,
    norm_intensity=True,
    norm_elongation=True,
    backend_args=None,
)
train_pipeline = [
    load_points,
    dict(type='LoadAnnotations3D', with_bbox_3d=True, with_label_3d=True),
    dict(type='RandomFlip3D', sync_2d=False, flip_ratio_bev_horizontal=0.5, flip_ratio_bev_vertical=0.5),
    dict(type='GlobalRotScaleTrans', rot_range=[-0.78539816, 0.78539816], scale_ratio_range=[0.95, 1.05]),
    dict(type='PointsRangeFilter', point_cloud_range=point_cloud_range),
    dict(type='ObjectRangeFilter', point_cloud_range=point_cloud_range),
    dict(type='PointShuffle'),
    dict(type='Pack3DDetInputs', keys=['points', 'gt_bboxes_3d', 'gt_labels_3d']),
]
test_pipeline = [
    load_points,
    dict(type='PointsRangeFilter', point_cloud_range=point_cloud_range),
    dict(type='Pack3DDetInputs', keys=['points'], meta_keys=meta_keys),
]
eval_pipeline = test_pipeline

# An epoch has every frame once.
train_dataloader = dict(
    batch_size=1,
    num_workers=4,
    dataset=dict(times=1, dataset=dict(pipeline=train_pipeline, load_interval=1)),
)
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
