"""Updates of the camera matrices of a sample when pixels or the world are transformed.

There are two ways to pass augmentation on to a model. Camera detectors read matrices that belong to the augmented
sample: ``cam2img``, ``lidar2cam`` and ``lidar2img`` change. Fusion models such as BEVFusion read the matrices of the
recording and, separately, the transforms of the pixels and of the world: after `RecordAugmentation`,
``img_aug_matrix`` and ``lidar_aug_matrix`` change instead.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from mmcv.transforms import BaseTransform
from mmdet3d.registry import TRANSFORMS

from mmprune3d.ops.cameras import as_4x4, lidar2img_of


@TRANSFORMS.register_module()
class RecordAugmentation(BaseTransform):
    """Makes the following transforms of this package keep the camera matrices and record the augmentation instead.

    A point p of the augmented LiDAR frame is projected to ``img_aug_matrix @ (u, v, d, 1)``, where
    ``(u d, v d, d, 1) = lidar2img @ inverse(lidar_aug_matrix) @ p``. These are the conventions of BEVFusion.
    """

    def transform(self, results: dict) -> dict:
        """Converts all matrices to float64 4x4, one per camera, and adds three entries.

        ``cam2lidar`` belongs to the recording; ``img_aug_matrix`` (one per camera, from recorded to new pixels) and
        ``lidar_aug_matrix`` (one 4x4, from recorded to new LiDAR coordinates) are initialized as identities.
        """
        _replace(results, *([as_4x4(matrix) for matrix in results[key]] for key in ('cam2img', 'lidar2cam')))
        results['cam2lidar'] = [np.linalg.inv(matrix) for matrix in results['lidar2cam']]
        results['img_aug_matrix'] = [np.eye(4) for _ in results['cam2img']]
        results['lidar_aug_matrix'] = np.eye(4)
        return results


def move_pixels(results: dict, matrices: Sequence[np.ndarray]) -> None:
    """Updates the matrices of a sample after its images were transformed.

    Args:
        results: Dict of the data pipeline; ``cam2img`` and ``lidar2img`` are replaced, or ``img_aug_matrix`` if
            augmentation is recorded.
        matrices: Matrix 3x3 of each camera, from old to new homogeneous pixels.
    """
    if 'img_aug_matrix' in results:
        pairs = zip(matrices, results['img_aug_matrix'], strict=True)
        results['img_aug_matrix'] = [_on_pixels_and_depth(matrix) @ old for matrix, old in pairs]
        return
    cam2img = [as_4x4(matrix) @ as_4x4(old) for matrix, old in zip(matrices, results['cam2img'], strict=True)]
    _replace(results, cam2img, [as_4x4(matrix) for matrix in results['lidar2cam']])


def move_world(results: dict, motion: np.ndarray) -> None:
    """Updates the matrices of a sample after its lidar frame was transformed and the cameras were not.

    Args:
        results: Dict of the data pipeline; ``lidar2cam`` and ``lidar2img`` are replaced, or ``lidar_aug_matrix`` if
            augmentation is recorded.
        motion: Matrix 4x4 from old to new lidar coordinates; any invertible affine map.
    """
    if 'lidar_aug_matrix' in results:
        results['lidar_aug_matrix'] = motion @ results['lidar_aug_matrix']
        return
    back = np.linalg.inv(motion)
    _replace(
        results,
        [as_4x4(matrix) for matrix in results['cam2img']],
        [as_4x4(matrix) @ back for matrix in results['lidar2cam']],
    )


def _on_pixels_and_depth(matrix: np.ndarray) -> np.ndarray:
    """Extends an affine 3x3 matrix on (u, v, 1) to a 4x4 matrix on (u, v, depth, 1) that does not change the depth."""
    moved = np.eye(4)
    moved[:2, :2], moved[:2, 3] = matrix[:2, :2], matrix[:2, 2]
    return moved


def _replace(results: dict, cam2img: list[np.ndarray], lidar2cam: list[np.ndarray]) -> None:
    results['cam2img'], results['lidar2cam'] = cam2img, lidar2cam
    results['lidar2img'] = list(lidar2img_of(results))
