"""SST (Single-stride Sparse Transformer, CVPR 2022) for mmdet3d 1.4, on GPU and CPU, with dynamic token halting."""

from .avit_backbone import AViTSST
from .backbone import SSTBackbone
from .center_head import SSTCenterHead
from .conv_neck import SSTConvNeck
from .detector import SSTDetector
from .halting_backbone import HaltingSST
from .halting_detector import HaltingSSTDetector
from .input_layer import SSTInputLayer
from .voxel_encoder import SSTDynamicVFE

__all__ = [
    'AViTSST',
    'HaltingSST',
    'HaltingSSTDetector',
    'SSTBackbone',
    'SSTCenterHead',
    'SSTConvNeck',
    'SSTDetector',
    'SSTDynamicVFE',
    'SSTInputLayer',
]
