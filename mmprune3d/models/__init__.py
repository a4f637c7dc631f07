"""Detectors that mmdet3d 1.4's wheel lacks; importing this registers them."""

import mmengine  # noqa: F401  (first, so that everything is registered before this runs: mmprune3d/registration.py)

from . import bevfusion, petr, slim_detector, sst

__all__ = ['bevfusion', 'petr', 'slim_detector', 'sst']
