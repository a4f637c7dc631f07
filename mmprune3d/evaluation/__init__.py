"""Metrics that mmdet3d has for CUDA only, and figures where evaluations of others stop; importing this sets both up."""

from . import nothing_found
from .kitti_ap import kitti_average_precision
from .kitti_metric import KittiMetricCPU
from .nothing_found import NaNPredictionError

nothing_found.install()

__all__ = ['KittiMetricCPU', 'NaNPredictionError', 'kitti_average_precision']
