"""Keeps the camera matrices of a sample consistent while pixels or the world move."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mmprune3d.ops.cameras import as_4x4, lidar2img_of


def move_pixels(results: dict, matrices: Sequence[np.ndarray]) -> None:
    """Follows a change of the images.

    Args:
        results: Dict of the data pipeline; ``cam2img`` and ``lidar2img`` are replaced.
        matrices: Per camera 3x3, from old to new homogeneous pixels.
    """
    cam2img = [as_4x4(matrix) @ as_4x4(old) for matrix, old in zip(matrices, results['cam2img'], strict=True)]
    _replace(results, cam2img, [as_4x4(matrix) for matrix in results['lidar2cam']])


def move_world(results: dict, motion: np.ndarray) -> None:
    """Follows a motion of the lidar frame, which the cameras do not take part in.

    Args:
        results: Dict of the data pipeline; ``lidar2cam`` and ``lidar2img`` are replaced.
        motion: 4x4, from old to new lidar coordinates; any invertible affine map.
    """
    back = np.linalg.inv(motion)
    _replace(
        results,
        [as_4x4(matrix) for matrix in results['cam2img']],
        [as_4x4(matrix) @ back for matrix in results['lidar2cam']],
    )


def _replace(results: dict, cam2img: list[np.ndarray], lidar2cam: list[np.ndarray]) -> None:
    results['cam2img'], results['lidar2cam'] = cam2img, lidar2cam
    results['lidar2img'] = list(lidar2img_of(results))
