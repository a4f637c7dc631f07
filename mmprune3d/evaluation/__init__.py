"""Metrics that mmdet3d has for CUDA only; importing this registers them."""

from .kitti_ap import kitti_average_precision
from .kitti_metric import KittiMetricCPU

__all__ = ['KittiMetricCPU', 'kitti_average_precision']
