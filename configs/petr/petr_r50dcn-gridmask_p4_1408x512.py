# PETR, ResNet-50 with deformable convolutions, 1408 x 512 pixels: 16896 keys. Published: 31.7 mAP, 36.7 NDS.
_base_ = ['./petr_vov-gridmask_p4_800x320.py']

model = dict(
    data_preprocessor=dict(std=[1.0, 1.0, 1.0]),
    img_backbone=dict(
        _delete_=True,
        type='mmdet.ResNet',
        depth=50,
        num_stages=4,
        out_indices=(2, 3),
        frozen_stages=-1,
        norm_cfg=dict(type='BN2d', requires_grad=False),
        norm_eval=True,
        style='caffe',
        with_cp=True,
        dcn=dict(type='DCNv2', deform_groups=1, fallback_on_stride=False),
        stage_with_dcn=(False, False, True, True),
        init_cfg=dict(type='Pretrained', checkpoint='ckpts/resnet50_msra-5891d200.pth'),
    ),
    img_neck=dict(in_channels=[1024, 2048]),
)
load_from = None

train_pipeline = _base_.train_pipeline
train_pipeline[4] = dict(type='MultiViewImageAug', image_size=(512, 1408), resize_range=(0.8, 1.0))
test_pipeline = _base_.test_pipeline
test_pipeline[1] = dict(type='MultiViewImageAug', image_size=(512, 1408), training=False)

train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
