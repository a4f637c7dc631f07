# CMT with LiDAR alone, voxels of 0.075 m: 32400 keys. Published: 62.1 mAP, 68.6 NDS. The task head convolves over three
# neighbouring queries, so that removing a query (GPQ) changes the outputs of the next ones. The training is not the
# published one and was never run: see the config with cameras.
_base_ = 'cmt_lidar-cam_r50_voxel0100_800x320.py'

class_names = _base_.class_names
point_cloud_range = _base_.point_cloud_range
voxel_size = [0.075, 0.075, 0.2]
meta_keys = ['lidar_path', 'sample_idx', 'box_type_3d', 'num_pts_feats']

train_pipeline = [
    _base_.load_points,
    _base_.load_sweeps,
    dict(type='LoadAnnotations3D', with_bbox_3d=True, with_label_3d=True),
    dict(
        type='GlobalRotScaleTrans',
        rot_range=[-0.78539816, 0.78539816],
        scale_ratio_range=[0.9, 1.1],
        translation_std=[0.5, 0.5, 0.5],
    ),
    dict(type='RandomFlip3D', sync_2d=False, flip_ratio_bev_horizontal=0.5, flip_ratio_bev_vertical=0.5),
    dict(type='PointsRangeFilter', point_cloud_range=point_cloud_range),
    dict(type='ObjectRangeFilter', point_cloud_range=point_cloud_range),
    dict(type='ObjectNameFilter', classes=class_names),
    dict(type='PointShuffle'),
    dict(type='Pack3DDetInputs', keys=['points', 'gt_bboxes_3d', 'gt_labels_3d'], meta_keys=meta_keys),
]
test_pipeline = [
    _base_.load_points,
    _base_.load_sweeps,
    dict(type='PointsRangeFilter', point_cloud_range=point_cloud_range),
    dict(type='Pack3DDetInputs', keys=['points'], meta_keys=meta_keys),
]
modality = dict(use_lidar=True, use_camera=False)
train_dataloader = dict(dataset=dict(pipeline=train_pipeline, modality=modality))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline, modality=modality))
test_dataloader = val_dataloader

model = dict(
    data_preprocessor=dict(voxel_layer=dict(voxel_size=voxel_size)),
    use_grid_mask=False,
    img_backbone=None,
    img_neck=None,
    pts_middle_encoder=dict(sparse_shape=[41, 1440, 1440]),
    pts_bbox_head=dict(type='CMT3DLidarHead', grid_size=[1440, 1440, 40], separate_head=dict(final_kernel=3)),
)
