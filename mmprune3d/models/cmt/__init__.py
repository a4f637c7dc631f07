"""CMT (Cross Modal Transformer, ICCV 2023) for mmdet3d 1.4; loads the official weights, and its keys can be pruned."""

from .box_coder import MultiTaskBBoxCoder
from .detector import CmtDetector
from .head import CmtHead, CmtImageHead, CmtLidarHead
from .task_heads import SeparateTaskHead

__all__ = ['CmtDetector', 'CmtHead', 'CmtImageHead', 'CmtLidarHead', 'MultiTaskBBoxCoder', 'SeparateTaskHead']
