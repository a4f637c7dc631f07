# petr_tiny for comparing numbers of queries: three decoder layers instead of six, backbone and neck frozen. That makes
# ten trainings affordable on two CPU cores.
_base_ = ['../petr/petr_tiny.py']

model = dict(freeze_images=True, aux_head=None, pts_bbox_head=dict(transformer=dict(num_layers=3)))
