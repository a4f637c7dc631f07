# SST_center as Dynamic Token Halting trains it (section 6.1), the baseline of configs/halting: windows of 14 x 14
# pillars, dot-product attention, all training data, 24 epochs of one cycle, no pasted objects.
_base_ = [
    '../_base_/models/sst_centerhead.py',
    '../_base_/datasets/waymo_lidar.py',
    '../_base_/schedules/one_cycle_24e.py',
    'mmdet3d::_base_/default_runtime.py',
]
custom_imports = dict(imports=['mmprune3d'], allow_failed_imports=False)
model = dict(
    middle_encoder=dict(window_shape=[14, 14, 1]),
    backbone=dict(layer_cfg=dict(_delete_=True, post_norm=True)),
)
