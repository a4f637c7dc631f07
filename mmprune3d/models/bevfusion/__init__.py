"""BEVFusion (ICRA 2023) for mmdet3d 1.4, on GPU and CPU; loads the published weights and can be pruned."""

from .assigner import BEVFusion3DAssigner, BEVFusion3DBEVL1Cost, BEVFusion3DIoUCost
from .box_coder import BEVFusion3DBoxCoder
from .conv_fuser import BEVFusion3DConvFuser
from .depth_view_transform import BEVFusion3DDepthLSSTransform
from .detector import BEVFusion3D
from .lss_fpn import BEVFusion3DLSSFPN
from .sparse_encoder import BEVFusion3DSparseEncoder
from .transfusion_head import BEVFusion3DTransFusionHead
from .transfusion_layer import BEVFusion3DDecoderLayer
from .view_transform import BEVFusion3DLSSTransform
from .voxelization import BEVFusion3DVoxelization

__all__ = [
    'BEVFusion3D',
    'BEVFusion3DAssigner',
    'BEVFusion3DBEVL1Cost',
    'BEVFusion3DBoxCoder',
    'BEVFusion3DConvFuser',
    'BEVFusion3DDecoderLayer',
    'BEVFusion3DDepthLSSTransform',
    'BEVFusion3DIoUCost',
    'BEVFusion3DLSSFPN',
    'BEVFusion3DLSSTransform',
    'BEVFusion3DSparseEncoder',
    'BEVFusion3DTransFusionHead',
    'BEVFusion3DVoxelization',
]
