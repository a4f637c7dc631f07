"""Augmentation of the 3D world around several cameras: boxes, points and ``lidar2cam`` are transformed together.

Boxes are transformed by mmdet3d's own methods and the cameras accordingly, so that every box still projects to the same
pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from mmcv.transforms import BaseTransform
from mmdet3d.registry import TRANSFORMS

from .cameras import move_pixels, move_world
from .images import mirror


@TRANSFORMS.register_module()
class MultiViewGlobalRotScaleTrans(BaseTransform):
    """Rotates the world about z, scales it, and translates it, in this order.

    Args:
        rot_range: Lowest and highest angle in radians, counter-clockwise.
        scale_ratio_range: Lowest and highest factor.
        translation_std: Standard deviation of the shift along x, y, z in metres.
    """

    def __init__(
        self,
        rot_range: tuple[float, float] = (-0.3925, 0.3925),
        scale_ratio_range: tuple[float, float] = (0.95, 1.05),
        translation_std: Sequence[float] = (0.0, 0.0, 0.0),
    ) -> None:
        self.rot_range = rot_range
        self.scale_ratio_range = scale_ratio_range
        self.translation_std = translation_std

    def transform(self, results: dict) -> dict:
        """Changes ``gt_bboxes_3d`` and ``points``, if the sample has them, and the camera matrices."""
        angle = np.random.uniform(*self.rot_range)
        scale = np.random.uniform(*self.scale_ratio_range)
        shift = np.random.normal(scale=self.translation_std, size=3)
        for key in ('gt_bboxes_3d', 'points'):
            if key in results:
                results[key].rotate(angle)
                results[key].scale(scale)
                results[key].translate(shift)
        motion = np.eye(4)
        motion[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        motion[:3] *= scale
        motion[:3, 3] = shift
        move_world(results, motion)
        return results


@TRANSFORMS.register_module()
class MultiViewRandomFlip3D(BaseTransform):
    """Mirrors y (horizontal flip) or x (vertical flip) of the world, or both.

    A mirrored world needs mirrored images, because camera frames would otherwise become left-handed: with an odd number
    of flips all images are flipped too. Each camera then sees what it would see in the mirrored world.

    Args:
        flip_ratio_bev_horizontal: Probability of mirroring y.
        flip_ratio_bev_vertical: Probability of mirroring x.
        flip_images: Whether to flip the images as described.
    """

    def __init__(
        self,
        flip_ratio_bev_horizontal: float = 0.5,
        flip_ratio_bev_vertical: float = 0.0,
        flip_images: bool = True,
    ) -> None:
        self.ratios = {'horizontal': flip_ratio_bev_horizontal, 'vertical': flip_ratio_bev_vertical}
        self.flip_images = flip_images

    def transform(self, results: dict) -> dict:
        """Changes ``gt_bboxes_3d`` and ``points``, if the sample has them, ``img`` and the camera matrices."""
        motion = np.eye(4)
        for direction, axis in (('horizontal', 1), ('vertical', 0)):
            if np.random.rand() < self.ratios[direction]:
                motion[axis, axis] = -1
                for key in ('gt_bboxes_3d', 'points'):
                    if key in results:
                        results[key].flip(direction)
        move_world(results, motion)
        if self.flip_images and np.linalg.det(motion) < 0:
            move_pixels(results, [mirror(image.shape[1]) for image in results['img']])
            results['img'] = [np.ascontiguousarray(image[:, ::-1]) for image in results['img']]
        return results
