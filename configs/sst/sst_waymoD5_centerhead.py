# The official SST with a centre head on Waymo: 4 blocks of cosine attention, windows of 12 x 12 pillars, a fifth of the
# training data, 12 epochs. Weights of the original code load after conversion (README).
_base_ = [
    '../_base_/models/sst_centerhead.py',
    '../_base_/datasets/waymo_lidar.py',
    '../_base_/schedules/one_cycle_24e.py',
    'mmdet3d::_base_/default_runtime.py',
]
custom_imports = dict(imports=['mmprune3d'], allow_failed_imports=False)

data_root = _base_.data_root
class_names = _base_.class_names

# Windows with many tokens drop some of them at random in training; at test time no token is dropped.
drop_in_training = dict(
    few=dict(max_tokens=30, drop_range=[0, 30]),
    some=dict(max_tokens=60, drop_range=[30, 60]),
    many=dict(max_tokens=100, drop_range=[60, 100000]),
)
model = dict(
    middle_encoder=dict(drop_info=[drop_in_training, None]),
    backbone=dict(checkpoint_blocks=[0, 1]),
)

# Objects of other frames are pasted into the point cloud.
db_sampler = dict(
    data_root=data_root,
    info_path=data_root + 'waymo_dbinfos_train.pkl',
    rate=1.0,
    prepare=dict(filter_by_difficulty=[-1], filter_by_min_points=dict(Car=5, Pedestrian=10, Cyclist=10)),
    classes=class_names,
    sample_groups=dict(Car=15, Pedestrian=10, Cyclist=10),
    points_loader=_base_.load_points,
)
train_pipeline = _base_.train_pipeline
train_pipeline.insert(2, dict(type='ObjectSample', db_sampler=db_sampler))
train_dataloader = dict(dataset=dict(dataset=dict(pipeline=train_pipeline, load_interval=5)))

# The learning rate goes from 1e-5 up to 1e-3 and down to 1e-8.
max_epochs = 12
train_cfg = dict(max_epochs=max_epochs, val_interval=max_epochs)
optim_wrapper = dict(optimizer=dict(lr=1e-5))
param_scheduler = [
    dict(
        type='OneCycleLR',
        eta_max=1e-3,
        pct_start=0.1,
        div_factor=100,
        final_div_factor=1000,
        total_steps=max_epochs,
        by_epoch=True,
        convert_to_iter_based=True,
    )
]
