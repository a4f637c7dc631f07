# LiDAR only, voxels of 0.075 m: the first stage of BEVFusion. Published: 64.9 mAP, 69.6 NDS.
_base_ = [
    '../_base_/models/bevfusion.py',
    '../_base_/datasets/nuscenes_fusion.py',
    'mmdet3d::_base_/default_runtime.py',
]
custom_imports = dict(imports=['mmprune3d'], allow_failed_imports=False)

data_root = _base_.data_root
class_names = _base_.class_names
point_cloud_range = _base_.point_cloud_range
input_modality = dict(use_lidar=True, use_camera=False)
meta_keys = ['lidar_path', 'sample_idx', 'box_type_3d', 'num_pts_feats']

# Objects of other frames are pasted into the point cloud (GT-paste) until shortly before the end of the training.
db_sampler = dict(
    data_root=data_root,
    info_path=data_root + 'nuscenes_dbinfos_train.pkl',
    rate=1.0,
    prepare=dict(
        filter_by_difficulty=[-1],
        filter_by_min_points=dict(
            car=5,
            truck=5,
            construction_vehicle=5,
            bus=5,
            trailer=5,
            barrier=5,
            motorcycle=5,
            bicycle=5,
            pedestrian=5,
            traffic_cone=5,
        ),
    ),
    classes=class_names,
    sample_groups=dict(
        car=2,
        truck=3,
        construction_vehicle=7,
        bus=4,
        trailer=6,
        barrier=2,
        motorcycle=6,
        bicycle=6,
        pedestrian=2,
        traffic_cone=2,
    ),
    points_loader=_base_.load_points,
)
train_pipeline = [
    _base_.load_points,
    _base_.load_sweeps,
    dict(type='LoadAnnotations3D', with_bbox_3d=True, with_label_3d=True),
    dict(type='ObjectSample', db_sampler=db_sampler),
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

# Samples with rare classes are repeated (CBGS), so an epoch has about 4.5 times as many samples as the data.
train_dataset = _base_.train_dataloader.dataset
train_dataset.update(pipeline=train_pipeline, modality=input_modality)
train_dataloader = dict(dataset=dict(_delete_=True, type='CBGSDataset', dataset=train_dataset))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline, modality=input_modality))
test_dataloader = val_dataloader

# One cycle over 20 epochs; 32 samples per step.
lr = 1e-4
train_cfg = dict(by_epoch=True, max_epochs=20, val_interval=5)
val_cfg = dict()
test_cfg = dict()
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=lr, weight_decay=0.01),
    clip_grad=dict(max_norm=35, norm_type=2),
)
param_scheduler = [
    dict(
        type='CosineAnnealingLR',
        T_max=8,
        eta_min=lr * 10,
        begin=0,
        end=8,
        by_epoch=True,
        convert_to_iter_based=True,
    ),
    dict(
        type='CosineAnnealingLR',
        T_max=12,
        eta_min=lr * 1e-4,
        begin=8,
        end=20,
        by_epoch=True,
        convert_to_iter_based=True,
    ),
    dict(
        type='CosineAnnealingMomentum',
        T_max=8,
        eta_min=0.85 / 0.95,
        begin=0,
        end=8,
        by_epoch=True,
        convert_to_iter_based=True,
    ),
    dict(
        type='CosineAnnealingMomentum',
        T_max=12,
        eta_min=1,
        begin=8,
        end=20,
        by_epoch=True,
        convert_to_iter_based=True,
    ),
]
custom_hooks = [dict(type='DisableObjectSampleHook', disable_after_epoch=15)]
auto_scale_lr = dict(enable=False, base_batch_size=32)
