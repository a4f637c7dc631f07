"""Masked-modal training of CMT (Cross Modal Transformer, section 3.5): samples without one of the sensors."""

from __future__ import annotations

import numpy as np
from mmcv.transforms import BaseTransform
from mmdet3d.registry import TRANSFORMS

SENSORS = ('image', 'points')
IMAGE_ABOVE, POINTS_ABOVE = 0.75, 0.5


@TRANSFORMS.register_module()
class CMT3DModalMask(BaseTransform):
    """Multiplies the images or the points of a sample by zero, as official CMT does.

    In training a quarter of the samples has no images and a quarter no points; at test time `mask_modal` is always
    masked. Images are zero before they are normalized, so they are a constant other than zero afterwards; masked points
    stay in the cloud, at the origin.

    Args:
        mode: ``'train'`` or ``'test'``.
        mask_modal: What is masked at test time, ``'image'`` or ``'points'``; not used in training.

    Raises:
        ValueError: If `mode` or `mask_modal` is unknown.
    """

    def __init__(self, mode: str = 'test', mask_modal: str = 'image') -> None:
        if mode not in ('train', 'test'):
            raise ValueError(f"mode must be 'train' or 'test', got {mode!r}")
        if mask_modal not in SENSORS:
            raise ValueError(f'mask_modal must be one of {", ".join(SENSORS)}, got {mask_modal!r}')
        self.mode = mode
        self.mask_modal = mask_modal

    def transform(self, results: dict) -> dict:
        """Masks ``img`` (a list of images) or ``points`` of a sample, or neither."""
        masked = self._draw() if self.mode == 'train' else self.mask_modal
        if masked == 'image':
            results['img'] = [0 * image for image in results['img']]
        elif masked == 'points':
            results['points'].tensor = results['points'].tensor * 0.0
        return results

    def _draw(self) -> str | None:
        number = np.random.rand()
        if number > IMAGE_ABOVE:
            return 'image'
        return 'points' if number > POINTS_ABOVE else None
