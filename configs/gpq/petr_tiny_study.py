# petr_tiny for comparing numbers of queries: three decoder layers, backbone and neck frozen. Training the head alone, and
# half of it, makes ten trainings affordable on two CPU cores.
_base_ = ['../petr/petr_tiny.py']

model = dict(freeze_images=True, aux_head=None, pts_bbox_head=dict(transformer=dict(num_layers=3)))
