_base_ = ['../bevfusion/bevfusion_tiny.py']
load_from = 'configs/bevfusion/bevfusion_tiny.pth'
runner_type = 'PruningRunner'
pruning = dict(criterion='altermoma', sparsity=0.8, recalibrate=8, reactivation_steps=32)
