_base_ = 'mmdet::detr/detr_r50_8xb2-150e_coco.py'
custom_imports = dict(imports=['mmprune3d'], allow_failed_imports=False)
custom_hooks = [dict(type='GPQHook', target=50, epochs=2)]
load_from = 'ckpts/detr_r50_8xb2-150e_coco.pth'
train_cfg = dict(max_epochs=8)
param_scheduler = [dict(type='MultiStepLR', end=8, milestones=[6])]
