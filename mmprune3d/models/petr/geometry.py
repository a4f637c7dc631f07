"""Functions that read camera matrices and image sizes from the meta information of samples, without modifying it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmprune3d.ops.cameras import lidar2img_of


def img2lidar_of(metas: Sequence[Mapping[str, Any]], device: torch.device) -> Tensor:
    """Inverse projection matrices [B, cameras, 4, 4] float32, inverted in float64."""
    inverse = np.stack([np.linalg.inv(lidar2img_of(meta)) for meta in metas])
    return torch.as_tensor(inverse, dtype=torch.float32, device=device)


def canvas_of(meta: Mapping[str, Any]) -> tuple[int, int]:
    """Height and width in pixels of the padded images of the batch that this sample is in.

    Raises:
        KeyError: If `meta` has neither ``batch_input_shape`` nor ``pad_shape``.
    """
    shape = meta.get('batch_input_shape', meta.get('pad_shape'))
    if shape is None:
        raise KeyError(f'a sample needs "batch_input_shape" or "pad_shape"; it has {", ".join(sorted(meta))}')
    return int(shape[0]), int(shape[1])


def image_shapes_of(meta: Mapping[str, Any], num_cameras: int) -> list[tuple[int, int]]:
    """Height and width in pixels of every image before padding; ``img_shape`` may be one size, or one per camera."""
    shape = meta.get('img_shape', canvas_of(meta))
    if np.ndim(shape[0]) == 0:
        shape = [shape] * num_cameras
    return [(int(one[0]), int(one[1])) for one in shape]
