"""PETR (ECCV 2022) for mmdet3d 1.4; loads the official weights, and its keys and queries can be pruned."""

from .assigner import PETR3DAssigner, PETR3DBoxCost
from .box_coder import PETR3DBoxCoder
from .decoder import PETR3DDecoder, PETR3DDecoderLayer, PETR3DTransformer, TgGBCPETR3DTransformer
from .dense_aux_head import PETR3DDenseAuxHead
from .detector import PETR3D
from .fpn import PETR3DFPN
from .grid_mask import PETR3DGridMask
from .head import PETR3DHead
from .vovnet import PETR3DVoVNet

__all__ = [
    'PETR3D',
    'PETR3DFPN',
    'PETR3DAssigner',
    'PETR3DBoxCoder',
    'PETR3DBoxCost',
    'PETR3DDecoder',
    'PETR3DDecoderLayer',
    'PETR3DDenseAuxHead',
    'PETR3DGridMask',
    'PETR3DHead',
    'PETR3DTransformer',
    'PETR3DVoVNet',
    'TgGBCPETR3DTransformer',
]
