_base_ = ['../bevfusion/bevfusion_lidar-cam_swint_voxel0075.py']
load_from = 'ckpts/bevfusion_lidar-cam.pth'
runner_type = 'PruningRunner'
pruning = dict(criterion='altermoma', sparsity=0.80, recalibrate=16)
