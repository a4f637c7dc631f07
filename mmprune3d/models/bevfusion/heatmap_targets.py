"""Targets of the dense heatmap: a Gaussian at every object, in bird's-eye view.

Boxes are (x, y, z, l, w, h, yaw, ...) in metres and radians, maps are [B, classes, x, y].
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def heatmap_targets(
    boxes: list[Tensor],
    labels: list[Tensor],
    shape: Sequence[int],
    origin: Sequence[float],
    cell_size: Sequence[float],
    overlap: float,
    min_radius: int,
) -> Tensor:
    """Draws a Gaussian at the cell of every object; where two overlap the maximum counts (CenterNet's targets).

    Args:
        boxes: Boxes [N_b, 7+] of each sample. Boxes without a footprint are not drawn.
        labels: Labels [N_b] of each sample.
        shape: Shape of the result: B, classes, x, y.
        origin: Origin of the map, x and y in metres.
        cell_size: Size of a cell along x and y in metres.
        overlap: IoU that a box shifted by the radius of the Gaussian must still have with the object.
        min_radius: Smallest radius in cells.

    Returns:
        Heatmap [B, classes, x, y] float32.
    """
    sample = torch.cat([item.new_full((len(item),), b, dtype=torch.long) for b, item in enumerate(boxes)])
    flat, classes = torch.cat(boxes).float(), torch.cat(labels)
    drawn = (flat[:, 3:5] > 0).all(1)
    sample, flat, classes = sample[drawn], flat[drawn], classes[drawn]
    heatmap = flat.new_zeros(shape)
    if not len(flat):
        return heatmap
    cell_size, origin = flat.new_tensor(cell_size), flat.new_tensor(origin)
    radius = gaussian_radius(flat[:, 3:5] / cell_size, overlap).int().clamp(min=min_radius)
    centre = ((flat[:, :2] - origin) / cell_size).int()
    reach = int(radius.max())
    steps = torch.arange(-reach, reach + 1, device=flat.device)
    offsets = torch.cartesian_prod(steps, steps)
    sigma = (2 * radius[:, None] + 1).double() / 6
    values = torch.exp(-offsets.square().sum(1) / (2 * sigma.square())).float()
    cells = centre[:, None] + offsets
    inside = ((cells >= 0) & (cells < cells.new_tensor(shape[2:]))).all(2)
    inside &= offsets.abs().amax(1) <= radius[:, None]
    index = ((sample * shape[1] + classes)[:, None] * shape[2] + cells[..., 0]) * shape[3] + cells[..., 1]
    heatmap.view(-1).scatter_reduce_(0, index[inside], values[inside], 'amax')
    return heatmap


def gaussian_radius(size: Tensor, overlap: float) -> Tensor:
    """Radii [N] in cells of the Gaussians for footprints [N, 2] in cells, as published with CornerNet and CenterNet.

    The radius is the smallest of the three shifts (both corners outward, both inward, one each) that keep the IoU
    `overlap`, with the denominators of the published code, which all trained models were trained with.
    """
    total, area = size.sum(1), size.prod(1)
    one_each = (total + (total**2 - 4 * (area * (1 - overlap) / (1 + overlap))).sqrt()) / 2
    inward = (2 * total + ((2 * total) ** 2 - 16 * ((1 - overlap) * area)).sqrt()) / 2
    outward = (-2 * overlap * total + ((2 * overlap * total) ** 2 - 16 * overlap * ((overlap - 1) * area)).sqrt()) / 2
    return torch.minimum(torch.minimum(one_each, inward), outward)
