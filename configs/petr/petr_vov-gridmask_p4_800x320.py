# PETR, VoVNet-99, 800 x 320 pixels: 6000 keys. Published: 37.8 mAP, 42.6 NDS.
_base_ = [
    '../_base_/models/petr_vov.py',
    '../_base_/datasets/nuscenes_6cams.py',
    '../_base_/schedules/petr_24e.py',
    'mmdet3d::_base_/default_runtime.py',
]
custom_imports = dict(imports=['mmprune3d'], allow_failed_imports=False)

# The backbone pretrained for monocular 3D detection that the authors publish.
load_from = 'ckpts/fcos3d_vovnet_imgbackbone-remapped.pth'
