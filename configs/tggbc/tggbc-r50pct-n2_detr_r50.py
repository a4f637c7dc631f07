_base_ = 'mmdet::detr/detr_r50_8xb2-150e_coco.py'
custom_imports = dict(imports=['mmprune3d'], allow_failed_imports=False)
custom_hooks = [dict(type='TgGBCHook', r=0.5, n=2, k=0, t=500, activation='softmax')]
