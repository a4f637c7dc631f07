"""Transforms of samples with several cameras; importing this package registers them."""

import mmengine  # noqa: F401  (first, so that everything is registered before this runs: mmprune3d/registration.py)

from .cameras import RecordAugmentation
from .images import MultiViewImageAug, MultiViewPhotoMetricDistortion
from .modality import CMT3DModalMask
from .world import MultiViewGlobalRotScaleTrans, MultiViewRandomFlip3D

__all__ = [
    'CMT3DModalMask',
    'MultiViewGlobalRotScaleTrans',
    'MultiViewImageAug',
    'MultiViewPhotoMetricDistortion',
    'MultiViewRandomFlip3D',
    'RecordAugmentation',
]
