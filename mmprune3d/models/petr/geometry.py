"""Reads camera matrices and image sizes from a batch's meta information; nothing here changes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmprune3d.ops.cameras import lidar2img_of


def check_images(metas: Sequence[Mapping[str, Any]], num_cameras: int, cells: tuple[int, int]) -> None:
    """Compares cameras and canvas with the features that a batch has.

    Raises:
        ValueError: If a sample has other cameras than images, the samples have canvases of different sizes, or a canvas
            is no multiple of the feature map: a cell would be taken to see other pixels than it does.
    """
    canvas = canvas_of(metas[0])
    for number, meta in enumerate(metas):
        cameras = len(lidar2img_of(meta))
        if cameras != num_cameras:
            raise ValueError(
                f'sample {number} has {num_cameras} images and camera matrices of {cameras}: what the pipeline takes '
                'away or reorders it must take from images and from cam2img and lidar2cam (or lidar2img) alike'
            )
        if canvas_of(meta) != canvas:
            raise ValueError(f'samples of one batch have canvases of {canvas} and {canvas_of(meta)} pixels')
    if any(side % count for side, count in zip(canvas, cells, strict=True)):
        raise ValueError(
            f'images padded to {canvas[0]} x {canvas[1]} pixels have features of {cells[0]} x {cells[1]} cells, which '
            'do not divide them: set data_preprocessor.pad_size_divisor to a multiple of the stride of the features'
        )


def img2lidar_of(metas: Sequence[Mapping[str, Any]], device: torch.device) -> Tensor:
    """Inverse projections [B, cameras, 4, 4] float32, inverted in float64."""
    inverse = np.stack([np.linalg.inv(lidar2img_of(meta)) for meta in metas])
    return torch.as_tensor(inverse, dtype=torch.float32, device=device)


def canvas_of(meta: Mapping[str, Any]) -> tuple[int, int]:
    """(height, width) in pixels of the padded images of the batch that this sample is in."""
    shape = meta.get('batch_input_shape', meta.get('pad_shape'))
    if shape is None:
        raise KeyError(f'a sample needs "batch_input_shape" or "pad_shape"; it has {", ".join(sorted(meta))}')
    return int(shape[0]), int(shape[1])


def image_shapes_of(meta: Mapping[str, Any], num_cameras: int) -> list[tuple[int, int]]:
    """Valid (height, width) in pixels of every image; ``img_shape`` may be one size, or a list of them."""
    shape = meta.get('img_shape', canvas_of(meta))
    if np.ndim(shape[0]) == 0:
        shape = [shape] * num_cameras
    return [(int(one[0]), int(one[1])) for one in shape]
