"""Camera matrices of a sample, as mmdet3d stores them: lists of 3x3, 3x4 or 4x4 matrices, one per camera.

The frame of a camera has x to the right, y down and z forward; the frame of the car x forward, y left and z up.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

RING = 6
"""Cameras that look around a car in `camera_ring`."""
FIELD_OF_VIEW = math.radians(70.0)
"""Horizontal field of view of a camera of `camera_ring`, in radians: neighbours overlap by ten degrees."""


def as_4x4(matrix: Any) -> np.ndarray:
    """Extends a 3x3, 3x4 or 4x4 matrix to 4x4 with the rows and columns of the identity, in float64."""
    matrix = np.asarray(matrix, dtype=np.float64)
    padded = np.eye(4)
    padded[: matrix.shape[0], : matrix.shape[1]] = matrix
    return padded


def lidar2img_of(meta: Mapping[str, Any]) -> np.ndarray:
    """Projection matrices of all cameras of a sample, from lidar points to (u d, v d, d, 1): [cameras, 4, 4] float64.

    The product ``cam2img @ lidar2cam`` is used where both are given, because mmdet3d's transforms keep these two up to
    date; otherwise ``lidar2img`` is used.

    Args:
        meta: Meta information of a data sample, or the dict of a data pipeline.

    Raises:
        KeyError: If `meta` has neither both ``cam2img`` and ``lidar2cam`` nor ``lidar2img``.
    """
    if 'cam2img' in meta and 'lidar2cam' in meta:
        pairs = zip(meta['cam2img'], meta['lidar2cam'], strict=True)
        return np.stack([as_4x4(cam2img) @ as_4x4(lidar2cam) for cam2img, lidar2cam in pairs])
    if 'lidar2img' not in meta:
        raise KeyError(f'a sample needs "cam2img" and "lidar2cam", or "lidar2img"; it has {", ".join(sorted(meta))}')
    return np.stack([as_4x4(matrix) for matrix in meta['lidar2img']])


def camera_ring(count: int, image_size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Made-up cameras that look around a car like the six of nuScenes: level, 1.5 m above the ground, every 60 degrees.

    The first one looks forward, the others follow clockwise (seen from above). More than `RING` cameras begin again.

    Args:
        count: Number of cameras.
        image_size: (height, width) in pixels.

    Returns:
        Intrinsic matrices [count, 4, 4] float64, from camera coordinates to pixels times depth, and poses
        [count, 4, 4] float64, from camera coordinates to those of the car, in metres.
    """
    height, width = image_size
    focal = width / 2 / math.tan(FIELD_OF_VIEW / 2)
    intrinsic = as_4x4([[focal, 0.0, width / 2], [0.0, focal, height / 2], [0.0, 0.0, 1.0]])
    forward = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])
    poses = np.stack([np.eye(4)] * count)
    for place, pose in enumerate(poses):
        yaw = -2 * math.pi * (place % RING) / RING
        turn = np.array([[math.cos(yaw), -math.sin(yaw), 0.0], [math.sin(yaw), math.cos(yaw), 0.0], [0.0, 0.0, 1.0]])
        pose[:3, :3], pose[:3, 3] = turn @ forward, turn @ (1.0, 0.0, 1.5)
    return np.stack([intrinsic] * count), poses
