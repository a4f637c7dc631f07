"""Detectors that mmdet3d 1.4's wheel lacks; importing this registers them."""

from . import bevfusion, petr, slim_detector, sst

__all__ = ['bevfusion', 'petr', 'slim_detector', 'sst']
