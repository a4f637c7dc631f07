"""CMT (Cross Modal Transformer, ICCV 2023) for mmdet3d 1.4; loads the official weights, and its keys can be pruned."""

from .box_coder import CMT3DBBoxCoder
from .detector import CMT3D
from .head import CMT3DHead, CMT3DImageHead, CMT3DLidarHead
from .task_heads import SeparateTaskHead

__all__ = ['CMT3D', 'CMT3DBBoxCoder', 'CMT3DHead', 'CMT3DImageHead', 'CMT3DLidarHead', 'SeparateTaskHead']
