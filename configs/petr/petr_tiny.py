# A small PETR for synthetic data, trained from scratch: full structure (6 decoder layers, 6 cameras), small widths.
# 6 cameras x 8 x 22 cells = 1056 keys.
_base_ = [
    '../_base_/models/petr_vov.py',
    '../_base_/datasets/nuscenes_6cams.py',
    '../_base_/schedules/petr_24e.py',
    'mmdet3d::_base_/default_runtime.py',
]
custom_imports = dict(imports=['mmprune3d'], allow_failed_imports=False)

image_size = (128, 352)  # height, width
embed_dims = 128
num_query = 300
data_root = 'data/synthetic-nuscenes/'

model = dict(
    use_grid_mask=False,
    channels_last=True,
    img_backbone=dict(
        _delete_=True,
        type='mmdet.ResNet',
        depth=18,
        base_channels=32,
        out_indices=(2, 3),
        norm_cfg=dict(type='BN', requires_grad=True),
        norm_eval=False,
        style='pytorch',
    ),
    img_neck=dict(in_channels=[128, 256], out_channels=embed_dims),
    pts_bbox_head=dict(
        in_channels=embed_dims,
        num_query=num_query,
        # Without dropout: the training is too short to need it, and the CPU's fused attention does not support it.
        transformer=dict(
            embed_dims=embed_dims, num_heads=4, feedforward_channels=4 * embed_dims, dropout=0.0, with_cp=False
        ),
        denoising=dict(groups=3, noise_scale=1.0, noise_trans=1.5),
    ),
    aux_head=dict(type='PETR3DDenseAuxHead', num_classes=10, in_channels=embed_dims, feat_channels=64),
)

train_pipeline = _base_.train_pipeline
train_pipeline[4] = dict(type='MultiViewImageAug', image_size=image_size, resize_range=(1.0, 1.1), flip_prob=0.0)
train_pipeline.insert(6, dict(type='MultiViewRandomFlip3D', flip_ratio_bev_horizontal=0.5))
test_pipeline = _base_.test_pipeline
test_pipeline[1] = dict(type='MultiViewImageAug', image_size=image_size, training=False)

train_dataloader = dict(batch_size=4, num_workers=1, dataset=dict(data_root=data_root, pipeline=train_pipeline))
val_dataloader = dict(num_workers=1, dataset=dict(data_root=data_root, pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(data_root=data_root, ann_file=data_root + 'nuscenes_infos_val.pkl')
test_evaluator = val_evaluator

max_epochs = 5
train_cfg = dict(max_epochs=max_epochs, val_interval=max_epochs)
# bfloat16 on the CPU; on a GPU mmengine's AmpOptimWrapper can be used instead.
optim_wrapper = dict(
    type='BFloat16OptimWrapper', optimizer=dict(lr=4e-4), paramwise_cfg=dict(_delete_=True, norm_decay_mult=0.0)
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.05, by_epoch=False, begin=0, end=150),
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
randomness = dict(seed=0)
