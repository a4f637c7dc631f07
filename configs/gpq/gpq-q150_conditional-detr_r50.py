# GPQ for Conditional DETR as in the paper's appendix A.2: half of the queries are removed in 2 of 8 epochs.
_base_ = 'mmdet::conditional_detr/conditional-detr_r50_8xb2-50e_coco.py'
custom_imports = dict(imports=['mmprune3d'], allow_failed_imports=False)
custom_hooks = [dict(type='GPQHook', target=150, epochs=2)]
load_from = 'ckpts/conditional-detr_r50_8xb2-50e_coco.pth'
train_cfg = dict(max_epochs=8)
param_scheduler = [dict(type='MultiStepLR', end=8, milestones=[6])]
