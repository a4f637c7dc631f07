"""Settings of the official implementation, as the reference files carry them, in our names."""

from __future__ import annotations

from typing import Any

from mmengine.config import ConfigDict

NAMES = {
    'BEVFusion': 'BEVFusion3D',
    'BEVFusionSparseEncoder': 'BEVFusion3DSparseEncoder',
    'GeneralizedLSSFPN': 'BEVFusion3DLSSFPN',
    'LSSTransform': 'BEVFusion3DLSSTransform',
    'DepthLSSTransform': 'BEVFusion3DDepthLSSTransform',
    'ConvFuser': 'BEVFusion3DConvFuser',
    'TransFusionHead': 'BEVFusion3DTransFusionHead',
    'TransformerDecoderLayer': 'BEVFusion3DDecoderLayer',
    'TransFusionBBoxCoder': 'BEVFusion3DBoxCoder',
    'HungarianAssigner3D': 'BEVFusion3DAssigner',
    'IoU3DCost': 'BEVFusion3DIoUCost',
    'BBoxBEVL1Cost': 'BEVFusion3DBEVL1Cost',
}
OWN_OVERLAP = 'BboxOverlaps3D'
"""An overlap that our assigner brings along."""
TUPLES = ('order', 'encoder_channels', 'encoder_paddings')
"""Settings that the sparse encoder wants as tuples; JSON-like files have lists."""


def as_ours(config: Any) -> Any:
    """The same settings, a ConfigDict with our types (other types stay)."""
    if isinstance(config, dict):
        renamed = {key: _tuples(value) if key in TUPLES else as_ours(value) for key, value in config.items()}
        if renamed.get('iou_calculator', {}).get('type') == OWN_OVERLAP:
            del renamed['iou_calculator']
        if isinstance(renamed.get('type'), str):
            renamed['type'] = NAMES.get(renamed['type'], renamed['type'])
        return ConfigDict(renamed)
    return [as_ours(value) for value in config] if isinstance(config, list) else config


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, (list, tuple)) else value
