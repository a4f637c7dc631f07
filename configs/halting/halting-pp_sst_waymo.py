# SST_halt++ (section A.2.3): the time that halting saves is used for a second block of convolutions at half the
# resolution and a pyramid; the U-Net's map is added to the bird's-eye view. The paper does not give the width of the
# second block.
_base_ = ['./halting_sst_waymo_s89.py']
norm_2d = _base_.norm_2d
model = dict(
    backbone=dict(unet_to_bev=True, num_attached_conv=0, conv_kwargs=[], conv_shortcut=False),
    neck=dict(
        _delete_=True,
        type='SSTConvNeck',
        second=dict(
            type='SECOND',
            in_channels=128,
            out_channels=[128, 128],
            layer_nums=[3, 3],  # convolutions after the first one of each block
            layer_strides=[1, 2],
            norm_cfg=norm_2d,
        ),
        fpn=dict(
            type='SECONDFPN',
            in_channels=[128, 128],
            out_channels=[128, 128],
            upsample_strides=[1, 2],
            norm_cfg=norm_2d,
        ),
    ),
    bbox_head=dict(in_channels=256),
)
