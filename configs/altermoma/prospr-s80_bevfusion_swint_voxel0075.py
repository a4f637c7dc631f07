_base_ = ['altermoma-s80_bevfusion_swint_voxel0075.py']
pruning = dict(criterion='prospr')
