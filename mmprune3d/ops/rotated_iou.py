"""Intersection over union of rotated 3D boxes, with the same result on CPU and GPU.

A box is (x, y, z of the bottom face, l, w, h, yaw, ...) in metres and radians, yaw counter-clockwise from x to y, as in
the LiDAR frame of mmdet3d 1.x. Columns after the seventh are ignored.

mmcv's ``box_iou_rotated`` is not used: it sorts the corners of the common polygon, and where edges of two boxes
(almost) coincide, as when a prediction is right or is turned by half a circle, it loses corners and is wrong by
anything up to 1.
"""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def bev_intersection(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Areas of the intersections of the footprints of boxes [N, 7+] and [M, 7+]: [N, M] float64 in square metres.

    The first box is moved into the frame of the second, where the second is a rectangle around the origin. Each point
    of the first box's outline is moved to the nearest point of that rectangle. Parts of the outline outside the
    rectangle then run along its edges and enclose nothing, so the area inside the moved outline is the intersection.
    No branch depends on rounding.
    """
    start, step = _outlines(boxes1.double(), boxes2.double())
    limit = boxes2[None, :, None, 3:5].double() / 2
    # Where each edge crosses the limits of the rectangle, as a fraction of the edge's length. An edge parallel to an
    # axis never crosses the limits of the other axis: 0 / 0 and x / 0 are then mapped to an end of the edge, which adds
    # a repeated point and no area.
    first, second = ((edge - start) / step for edge in (-limit, limit))
    first, second = (part.nan_to_num(0.0).clamp(0, 1) for part in (first, second))
    enter, leave = torch.minimum(first, second), torch.maximum(first, second)
    between = torch.stack((enter.amax(-1), leave.amin(-1)), dim=-1)
    ends = torch.zeros_like(between[..., 0]), enter.amin(-1), *between.aminmax(dim=-1), leave.amax(-1)
    points = start[..., None, :] + torch.stack(ends, dim=-1)[..., None] * step[..., None, :]
    moved = torch.minimum(torch.maximum(points, -limit[..., None, :]), limit[..., None, :]).flatten(2, 3)
    x, y = moved.unbind(-1)
    return ((x * y.roll(-1, -1) - y * x.roll(-1, -1)).sum(-1) / 2).clamp(min=0)


def _outlines(boxes1: Tensor, boxes2: Tensor) -> tuple[Tensor, Tensor]:
    """Edges of the first boxes, counter-clockwise, in the frames of the second boxes: starts and steps [N, M, 4, 2]."""
    offset = boxes1[:, None, :2] - boxes2[:, :2]
    sine, cosine = boxes2[:, 6].sin(), boxes2[:, 6].cos()
    x = offset[..., 0] * cosine + offset[..., 1] * sine
    y = offset[..., 1] * cosine - offset[..., 0] * sine
    yaw = boxes1[:, None, 6] - boxes2[:, 6]
    signs = boxes1.new_tensor([[1, 1], [-1, 1], [-1, -1], [1, -1]])
    along, across = (boxes1[:, None, None, 3:5] / 2 * signs).unbind(-1)
    sine, cosine = yaw.sin()[..., None], yaw.cos()[..., None]
    corners = (x[..., None] + along * cosine - across * sine, y[..., None] + along * sine + across * cosine)
    start = torch.stack(corners, dim=-1)
    return start, start.roll(-1, 2) - start


@torch.no_grad()
def rotated_iou_3d(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Intersection over union of the volumes of boxes [N, 7+] and [M, 7+]: [N, M] float32 in 0..1.

    A box with a side that is not positive, or with a number that is not finite, has an overlap of 0 with every box. The
    result has no gradient.

    Raises:
        ValueError: If the boxes have fewer than seven columns.
    """
    for boxes in (boxes1, boxes2):
        if boxes.dim() != 2 or boxes.shape[1] < 7:
            raise ValueError(f'boxes are [N, 7 or more] (x, y, z bottom, l, w, h, yaw, ...), got {tuple(boxes.shape)}')
    first, second = boxes1[:, :7].double(), boxes2[:, :7].double()
    top = torch.minimum((first[:, 2] + first[:, 5])[:, None], second[:, 2] + second[:, 5])
    bottom = torch.maximum(first[:, 2, None], second[:, 2])
    shared = bev_intersection(first, second) * (top - bottom).clamp(min=0)
    union = first[:, 3:6].prod(1)[:, None] + second[:, 3:6].prod(1) - shared
    return torch.where(_solid(first)[:, None] & _solid(second), shared / union, 0).clamp(0, 1).float()


def _solid(boxes: Tensor) -> Tensor:
    """Marks the boxes [N, 7] that are finite and have a positive volume: [N] bool."""
    return boxes.isfinite().all(1) & (boxes[:, 3:6] > 0).all(1)
