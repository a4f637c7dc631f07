"""Detectors that are not in the mmdet3d 1.4 wheel; importing this package registers them."""

from . import bevfusion, petr, slim_detector, sst

__all__ = ['bevfusion', 'petr', 'slim_detector', 'sst']
