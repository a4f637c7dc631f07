"""PETR's position embeddings: the 3D points along the ray of each key, and the position of its cell in the images.

PETR: Position Embedding Transformation for Multi-View 3D Object Detection (ECCV 2022), sections 3.2 and 3.3.
"""

from __future__ import annotations

import math

import torch
from mmdet.models.layers.transformer import inverse_sigmoid
from torch import Tensor

TEMPERATURE = 10000


def sine_features(position: Tensor, num_feats: int, interleaved: bool = True) -> Tensor:
    """Sine and cosine features of scalar positions, as in DETR.

    Args:
        position: Positions [...], usually in 0..2 pi.
        num_feats: Number of features, even.
        interleaved: Whether sine and cosine alternate; otherwise all sines come first.

    Returns:
        Features [..., num_feats].
    """
    index = torch.arange(num_feats // 2, dtype=torch.float32, device=position.device)
    angle = position[..., None] / TEMPERATURE ** (2 * index / num_feats)
    return torch.stack((angle.sin(), angle.cos()), dim=-1 if interleaved else -2).flatten(-2)


def embed_points(points: Tensor, num_feats: int) -> Tensor:
    """Sine embedding of 3D points [..., 3] in 0..1: [..., 3 * num_feats], in the order y, x, z as in official PETR."""
    return sine_features(points[..., [1, 0, 2]] * (2 * math.pi), num_feats).flatten(-2)


def embed_cells(padding: Tensor, num_feats: int, eps: float = 1e-6) -> Tensor:
    """Sine embedding of camera, row and column of every cell, where only cells that are not padding are counted.

    All sines come before the cosines, unlike in `embed_points`: the published weights were trained so.

    Args:
        padding: Padding of the images [B, cameras, H, W] bool, True for padding.
        num_feats: Number of features per axis.
        eps: Keeps the division finite where a whole row, column or stack of cameras is padding.

    Returns:
        Embeddings [B, cameras, 3 * num_feats, H, W], float32.
    """
    valid = (~padding).float()
    parts = []
    for axis in (1, 2, 3):
        count = valid.cumsum(axis)
        total = count.narrow(axis, count.shape[axis] - 1, 1)
        parts.append(sine_features(count / (total + eps) * (2 * math.pi), num_feats, interleaved=False))
    return torch.cat(parts, dim=-1).permute(0, 1, 4, 2, 3)


def padded_cells(
    image_shapes: list[list[tuple[int, int]]], canvas: tuple[int, int], cells: tuple[int, int]
) -> Tensor | None:
    """Marks the cells that lie outside the images (the mask of the canvas, reduced by nearest neighbour).

    Args:
        image_shapes: Height and width in pixels of each image before padding, per sample and camera.
        canvas: Height and width in pixels of the padded images.
        cells: Height H and width W of the feature map.

    Returns:
        Mask [B, cameras, H, W] bool, True for padding; None if all images fill the canvas, so that the attention needs
        no mask (decided from Python numbers, without waiting for the device).
    """
    limits = torch.tensor(image_shapes)
    if all(height >= canvas[0] and width >= canvas[1] for sample in image_shapes for height, width in sample):
        return None
    rows = (torch.arange(cells[0]) * (canvas[0] / cells[0])).floor()
    columns = (torch.arange(cells[1]) * (canvas[1] / cells[1])).floor()
    below = rows >= limits[..., 0, None]
    beside = columns >= limits[..., 1, None]
    return below[..., :, None] | beside[..., None, :]


def depth_bins(num: int, start: float, end: float, linear_increasing: bool, device: torch.device) -> Tensor:
    """Depths [num] in metres from `start` to below `end`: uniform, or with linearly increasing steps (LID)."""
    index = torch.arange(num, dtype=torch.float32, device=device)
    if linear_increasing:
        return start + (end - start) / (num * (1 + num)) * index * (index + 1)
    return start + (end - start) / num * index


def check_canvas(canvas: tuple[int, int], cells: tuple[int, int]) -> None:
    """Raises ValueError if the cells do not divide the canvas evenly, as their rays would pass through other pixels."""
    if any(side % count for side, count in zip(canvas, cells, strict=True)):
        raise ValueError(
            f'images padded to {canvas[0]} x {canvas[1]} pixels have features of {cells[0]} x {cells[1]} cells, which '
            'do not divide them: set data_preprocessor.pad_size_divisor to a multiple of the stride of the features'
        )


def frustum_embedding(
    img2lidar: Tensor, depths: Tensor, canvas: tuple[int, int], cells: tuple[int, int], position_range: list[float]
) -> Tensor:
    """Points along every cell's ray in the lidar frame, relative to a range, as logits (PETR, eq. 1 and 2).

    Args:
        img2lidar: Matrices [B, cameras, 4, 4] float32, from (u d, v d, d, 1) with pixels u, v and depth d in metres.
        depths: Depths [D] in metres.
        canvas: Height and width in pixels of the padded images.
        cells: Height H and width W of the feature map; as in official PETR a cell is represented by its upper left
            pixel.
        position_range: Lower x, y, z and upper x, y, z in metres.

    Returns:
        Logits [B, cameras, 3 D, H, W] float32, channel 3 d + axis.

    Raises:
        ValueError: If the cells do not divide the canvas evenly.
    """
    check_canvas(canvas, cells)
    height, width = cells
    v = torch.arange(height, dtype=torch.float32, device=depths.device) * (canvas[0] / height)
    u = torch.arange(width, dtype=torch.float32, device=depths.device) * (canvas[1] / width)
    v, u = torch.meshgrid(v, u, indexing='ij')
    pixels = torch.stack((u, v, torch.ones_like(u)))
    rays = (img2lidar[..., :3, :3] @ pixels.flatten(1)).unflatten(-1, cells)
    origin = img2lidar[..., :3, 3, None, None]
    points = rays[:, :, None] * depths[:, None, None, None] + origin[:, :, None]
    bounds = points.new_tensor(position_range)[:, None, None]
    relative = (points - bounds[:3]) / (bounds[3:] - bounds[:3])
    return inverse_sigmoid(relative).flatten(2, 3)
