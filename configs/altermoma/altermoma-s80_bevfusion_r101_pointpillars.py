_base_ = ['../bevfusion/bevfusion_lidar-cam_r101_pointpillars.py']
load_from = 'ckpts/bevfusion_r101_pointpillars.pth'
runner_type = 'PruningRunner'
pruning = dict(criterion='altermoma', sparsity=0.8, recalibrate=16)
