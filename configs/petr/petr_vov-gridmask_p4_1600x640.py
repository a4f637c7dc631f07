# PETR, VoVNet-99, 1600 x 640 pixels: 24000 keys. Published: 40.4 mAP, 45.5 NDS.
_base_ = ['./petr_vov-gridmask_p4_800x320.py']

train_pipeline = _base_.train_pipeline
train_pipeline[4] = dict(type='MultiViewImageAug', image_size=(640, 1600), resize_range=(0.94, 1.25))
test_pipeline = _base_.test_pipeline
test_pipeline[1] = dict(type='MultiViewImageAug', image_size=(640, 1600), training=False)

train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
