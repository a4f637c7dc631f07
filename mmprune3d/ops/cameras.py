"""Camera matrices of a sample, as mmdet3d stores them: lists of 3x3, 3x4 or 4x4 matrices, one per camera."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np


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
