"""Metrics that mmdet3d does not have or has for CUDA only; importing this also makes metrics accept empty results."""

import mmengine  # noqa: F401  (first, so that everything is registered before this runs: mmprune3d/registration.py)

from . import nothing_found
from .kitti_ap import kitti_average_precision
from .kitti_metric import KittiMetricCPU
from .nothing_found import NaNPredictionError
from .nuscenes_metric import NuScenesMetricWithoutVelocity

nothing_found.install()

__all__ = ['KittiMetricCPU', 'NaNPredictionError', 'NuScenesMetricWithoutVelocity', 'kitti_average_precision']
