"""Metrics that mmdet3d lacks, or has for CUDA only; importing this registers them."""

from .kitti_ap import kitti_average_precision
from .kitti_metric import KittiMetricCPU
from .nuscenes_metric import NuScenesMetricWithoutVelocity

__all__ = ['KittiMetricCPU', 'NuScenesMetricWithoutVelocity', 'kitti_average_precision']
