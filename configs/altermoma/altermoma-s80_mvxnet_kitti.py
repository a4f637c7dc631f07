_base_ = ['mmdet3d::mvxnet/mvxnet_fpn_dv_second_secfpn_8xb2-80e_kitti-3d-3class.py']
custom_imports = dict(imports=['mmprune3d'], allow_failed_imports=False)
load_from = 'ckpts/mvxnet_kitti.pth'
runner_type = 'PruningRunner'
pruning = dict(criterion='altermoma', sparsity=0.8, recalibrate=16)
custom_hooks = [dict(type='ExactOnCPUHook')]  # has an effect only without a GPU
