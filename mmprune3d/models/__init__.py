"""Detectors that are not in the mmdet3d 1.4 wheel; importing this package registers them."""

import mmengine  # noqa: F401  (first, so that everything is registered before this runs: mmprune3d/registration.py)

from . import bevfusion, cmt, petr, slim_detector, sst

__all__ = ['bevfusion', 'cmt', 'petr', 'slim_detector', 'sst']
