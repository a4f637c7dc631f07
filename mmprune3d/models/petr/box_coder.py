"""Encoding of boxes as the values that a network regresses, in the conventions of the PETR family.

A box is (x, y, z, l, w, h, yaw[, vx, vy]) in mmdet3d 1.x terms: metres and radians in the lidar frame, z at the box
centre, yaw counter-clockwise from x. A code holds centre, log sizes, sine and cosine of the yaw, and velocity; the
published models disagree on order and angle:

=================  ==========================  ==============================
convention         slots 0 to 5                angle in slots 6 and 7
=================  ==========================  ==============================
``mmdet3d``        cx, cy, l, w, cz, h         yaw (ours; also 3DPPE, MV2D)
``projects_petr``  cx, cy, l, w, cz, h         -yaw - pi / 2
``petr``           cx, cy, w, l, cz, h         -yaw - pi / 2 (also PETRv2, M-BEV)
``streampetr``     cx, cy, cz, l, w, h         yaw (also FocalPETR, OPEN, ToC3D)
=================  ==========================  ==============================

Because sin(-yaw - pi / 2) = -cos(yaw) and cos(-yaw - pi / 2) = -sin(yaw), going from one convention to another
permutes rows of the last regression layer and flips signs: exact in floating point (see ``checkpoint/convert.py``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from mmdet3d.registry import TASK_UTILS
from torch import Tensor

from mmprune3d.pruning.selection import top_indices

from .checks import check_counts, check_range


@dataclass(frozen=True)
class CodeLayout:
    """Order of the entries of a box code in one convention.

    Attributes:
        centre: Indices of x, y, z.
        size: Indices of length, width, height.
        legacy_yaw: Whether entries 6 and 7 are sine and cosine of -yaw - pi / 2 instead of yaw.
        inclusive_threshold: Whether boxes whose score equals the score threshold are kept.
    """

    centre: tuple[int, int, int]
    size: tuple[int, int, int]
    legacy_yaw: bool = False
    inclusive_threshold: bool = False


LAYOUTS = {
    'mmdet3d': CodeLayout(centre=(0, 1, 4), size=(2, 3, 5)),
    'projects_petr': CodeLayout(centre=(0, 1, 4), size=(2, 3, 5), legacy_yaw=True),
    'petr': CodeLayout(centre=(0, 1, 4), size=(3, 2, 5), legacy_yaw=True),
    'streampetr': CodeLayout(centre=(0, 1, 2), size=(3, 4, 5), inclusive_threshold=True),
}


def layout_of(convention: str) -> CodeLayout:
    """Looks up the layout of a convention.

    Raises:
        ValueError: If the convention is unknown; the message lists the valid ones.
    """
    if convention not in LAYOUTS:
        raise ValueError(f'unknown box convention {convention!r}; valid are {", ".join(LAYOUTS)}')
    return LAYOUTS[convention]


def encode_boxes(boxes: Tensor, convention: str = 'mmdet3d') -> Tensor:
    """Encodes boxes [..., 7 or 9] (z at the centre) as codes [..., 8 or 10]; centres stay in metres."""
    layout = layout_of(convention)
    yaw = boxes[..., 6]
    sine, cosine = (-yaw.cos(), -yaw.sin()) if layout.legacy_yaw else (yaw.sin(), yaw.cos())
    columns: list[Tensor] = [sine] * 6 + [sine, cosine, *boxes[..., 7:].unbind(-1)]
    values = (*boxes[..., :3].unbind(-1), *boxes[..., 3:6].log().unbind(-1))
    for slot, value in zip(layout.centre + layout.size, values):
        columns[slot] = value
    return torch.stack(columns, dim=-1)


def decode_boxes(codes: Tensor, convention: str = 'mmdet3d') -> Tensor:
    """Decodes codes [..., 8 or 10] to boxes [..., 7 or 9]: z at the centre, yaw in -pi..pi.

    Sine and cosine do not need to have norm 1.
    """
    layout = layout_of(convention)
    sine, cosine = codes[..., 6], codes[..., 7]
    yaw = torch.atan2(-cosine, -sine) if layout.legacy_yaw else torch.atan2(sine, cosine)
    parts = (codes[..., list(layout.centre)], codes[..., list(layout.size)].exp(), yaw[..., None], codes[..., 8:])
    return torch.cat(parts, dim=-1)


@TASK_UTILS.register_module()
class PETR3DBoxCoder:
    """Encodes ground-truth boxes and selects the final boxes, without non-maximum suppression.

    Args:
        pc_range: Lower x, y, z and upper x, y, z in metres; the head predicts centres relative to this range.
        post_center_range: Range in which the centre of a final box must lie, in metres; None keeps all.
        max_num: Number of (query, class) pairs with the highest scores that are decoded.
        score_threshold: Lowest score of a final box; None and 0 keep all.
        num_classes: Number of classes of the head.
        convention: Convention of the network's outputs; see the table in the docstring of this module.

    Raises:
        ValueError: If the convention is unknown, a range is not valid, or `max_num` is less than 1.
    """

    def __init__(
        self,
        pc_range: Sequence[float],
        post_center_range: Sequence[float] | None = None,
        max_num: int = 300,
        score_threshold: float | None = None,
        num_classes: int = 10,
        convention: str = 'mmdet3d',
    ) -> None:
        self.layout = layout_of(convention)
        check_range('pc_range', pc_range)
        if post_center_range is not None:
            check_range('post_center_range', post_center_range)
        check_counts(max_num=max_num, num_classes=num_classes)
        self.pc_range = list(pc_range)
        self.post_center_range = None if post_center_range is None else list(post_center_range)
        self.max_num = max_num
        self.score_threshold = score_threshold
        self.num_classes = num_classes
        self.convention = convention

    def encode(self, boxes: Tensor) -> Tensor:
        """Encodes boxes [..., 7 or 9] (z at the centre) in the coder's convention; see :func:`encode_boxes`."""
        return encode_boxes(boxes, self.convention)

    def decode(self, logits: Tensor, codes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Selects the final boxes of one sample, by descending score.

        Args:
            logits: Class logits [N_q, classes].
            codes: Box codes [N_q, 8 or 10], centres in metres.

        Returns:
            Boxes [n, 7 or 9] with z at the centre, scores [n] in 0..1, labels [n] int64.
        """
        scores = logits.float().sigmoid().flatten()
        index = top_indices(scores, min(self.max_num, logits.numel()))
        scores = scores[index]
        query = torch.div(index, self.num_classes, rounding_mode='floor')
        return self.inside(decode_boxes(codes.float()[query], self.convention), scores, index % self.num_classes)

    def inside(self, boxes: Tensor, scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Keeps the boxes [n, 7 or 9], scores [n] and labels [n] above the threshold and inside `post_center_range`."""
        keep = self._above_threshold(scores)
        if self.post_center_range is not None:
            limits = boxes.new_tensor(self.post_center_range)
            keep &= ((boxes[:, :3] >= limits[:3]) & (boxes[:, :3] <= limits[3:])).all(1)
        return boxes[keep], scores[keep], labels[keep]

    def _above_threshold(self, scores: Tensor) -> Tensor:
        if not self.score_threshold:
            return torch.ones_like(scores, dtype=torch.bool)
        if self.layout.inclusive_threshold:
            return scores >= self.score_threshold
        return scores > self.score_threshold


def relative_to(points: Tensor, pc_range: Sequence[float]) -> Tensor:
    """Scales points [..., 3] in metres to coordinates relative to a range: 0..1 inside."""
    bounds = points.new_tensor(pc_range)
    return (points - bounds[:3]) / (bounds[3:] - bounds[:3])


def wrap_angle(angle: Tensor) -> Tensor:
    """Moves angles in radians into -pi..pi."""
    return torch.remainder(angle + math.pi, 2 * math.pi) - math.pi
