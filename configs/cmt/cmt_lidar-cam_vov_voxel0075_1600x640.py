# CMT with cameras (VoVNet-99, 1600 x 640 pixels) and LiDAR (voxels of 0.075 m): 32400 + 24000 keys. Published: 70.3 mAP,
# 72.9 NDS.
_base_ = 'cmt_lidar-cam_r50_voxel0100_800x320.py'

image_size = (640, 1600)  # height, width

train_pipeline = _base_.train_pipeline
train_pipeline[5] = dict(
    type='MultiViewImageAug', image_size=image_size, resize_range=(0.94, 1.25), flip_prob=0.5, per_image=True
)
test_pipeline = _base_.test_pipeline
test_pipeline[3] = dict(type='MultiViewImageAug', image_size=image_size, training=False, test_resize=1.0)
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

model = dict(
    data_preprocessor=dict(voxel_layer=dict(voxel_size=[0.075, 0.075, 0.2])),
    img_backbone=dict(
        _delete_=True,
        type='PETR3DVoVNet',
        spec_name='V-99-eSE',
        norm_eval=True,
        out_features=('stage4', 'stage5'),
    ),
    img_neck=dict(in_channels=[768, 1024]),
    pts_middle_encoder=dict(sparse_shape=[41, 1440, 1440]),
    pts_bbox_head=dict(grid_size=[1440, 1440, 40]),
)
