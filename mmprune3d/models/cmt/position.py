"""Position encodings of CMT (Cross Modal Transformer, section 3.2), exactly as the published weights expect them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mmprune3d.models.petr.box_coder import relative_to


def pos2embed(points: Tensor, num_feats: int) -> Tensor:
    """Encodes points by sines and cosines.

    Args:
        points: Points [..., 2], x and y in 0..1.
        num_feats: Number of features per coordinate, F; even.

    Returns:
        Features [..., 2F]: those of y, then those of x.
    """
    # The published code has a temperature, but does not use it: the divisors grow linearly from 1 to almost 3.
    steps = torch.arange(num_feats, dtype=torch.float32, device=points.device)
    divisors = 2 * torch.div(steps, 2, rounding_mode='floor') / num_feats + 1
    angles = points[..., None] * (2 * math.pi) / divisors
    waves = torch.stack((angles[..., 0::2].sin(), angles[..., 1::2].cos()), dim=-1).flatten(-2)
    return torch.cat((waves[..., 1, :], waves[..., 0, :]), dim=-1)


def bev_cells(grid_size: Sequence[int], downsample_scale: int, device: torch.device | None = None) -> Tensor:
    """Computes the centres of the cells of the bird's-eye-view feature map.

    Args:
        grid_size: Number of voxels along x, y (and z).
        downsample_scale: Voxels per cell.
        device: Device of the result.

    Returns:
        Centres [cells, 2], x and y in 0..1 of the grid.
    """
    # As published: the outer loop runs over the number of rows although it is scaled like columns. Square grids, which
    # all published models have, are right; the weights of others would have been trained with this order.
    columns, rows = grid_size[0] // downsample_scale, grid_size[1] // downsample_scale
    first = (torch.arange(rows, dtype=torch.float32, device=device) + 0.5) / columns
    second = (torch.arange(columns, dtype=torch.float32, device=device) + 0.5) / rows
    y, x = torch.meshgrid(first, second, indexing='ij')
    return torch.stack((x, y), dim=-1).flatten(0, 1)


def pixel_rays(
    img2lidar: Tensor, canvas: tuple[int, int], cells: tuple[int, int], depths: Tensor, pc_range: Sequence[float]
) -> Tensor:
    """Computes the points on the ray of every cell of the image features.

    Args:
        img2lidar: Inverse projection matrices [B, cameras, 4, 4].
        canvas: Height and width in pixels of the padded images.
        cells: Height H and width W of the feature map.
        depths: Depths [D] in metres.
        pc_range: Lower x, y, z and upper x, y, z in metres.

    Returns:
        Points [B, cameras, H, W, 3D], relative to the range.
    """
    device = img2lidar.device
    # The corner of a cell and not its centre: the published code adds no half pixel.
    row = torch.arange(cells[0], dtype=torch.float32, device=device) * canvas[0] / cells[0]
    column = torch.arange(cells[1], dtype=torch.float32, device=device) * canvas[1] / cells[1]
    y, x, depth = torch.meshgrid(row, column, depths, indexing='ij')
    frustum = torch.stack((x * depth, y * depth, depth, torch.ones_like(depth)), dim=-1)
    points = torch.einsum('hwdo,bvco->bvhwdc', frustum, img2lidar)
    return relative_to(points[..., :3], pc_range).flatten(-2)


def point_rays(
    points: Tensor,
    lidar2img: Tensor,
    img2lidar: Tensor,
    canvas: tuple[int, int],
    depths: Tensor,
    pc_range: Sequence[float],
) -> tuple[Tensor, Tensor]:
    """Computes the points on the rays from every camera through given points.

    Args:
        points: Points [B, N, 3] in 0..1 of the range.
        lidar2img: Projection matrices [B, cameras, 4, 4].
        img2lidar: Their inverses [B, cameras, 4, 4].
        canvas: Height and width in pixels of the padded images.
        depths: Depths [D] in metres.
        pc_range: Lower x, y, z and upper x, y, z in metres.

    Returns:
        Points [B, cameras, N, 3D], relative to the range, and a mask [B, cameras, N] bool, True where the camera sees
        the point.
    """
    bounds = points.new_tensor(pc_range)
    metric = points * (bounds[3:] - bounds[:3]) + bounds[:3]
    homogeneous = torch.cat((metric, torch.ones_like(metric[..., :1])), dim=-1)
    projected = torch.einsum('bnd,bvcd->bvnc', homogeneous, lidar2img)[..., :3]
    # No gradient through the divisor; dividing z by itself plus a small number gives almost 1, kept as published.
    z = projected[..., 2:3].detach()
    in_front = z > 0
    pixel = projected / torch.where(in_front, z + 1e-6, z - 1e-6)
    inside = (pixel[..., :2] >= 0) & (pixel[..., :2] < pixel.new_tensor([canvas[1], canvas[0]]))
    rays = torch.einsum('bvnc,d->bvndc', pixel, depths)
    rays = torch.cat((rays, torch.ones_like(rays[..., :1])), dim=-1)
    back = torch.einsum('bvndo,bvco->bvndc', rays, img2lidar)[..., :3]
    return relative_to(back, pc_range).flatten(-2), inside.all(-1) & in_front[..., 0]
