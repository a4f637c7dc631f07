"""Denoising queries: ground-truth centres with noise, which the decoder learns to correct (DN-DETR; PETRv2's DN head).

In training they precede the learned queries, in groups that attend neither to each other nor are attended to by the
learned queries. They are not matched: the target of a query is the box that it was made from.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .box_coder import relative_to


@dataclass(frozen=True)
class DenoisingBatch:
    """The denoising queries of a batch; N = groups * (largest number of boxes of a sample, at least 1).

    Filler queries, which make all samples equally long, lie at the lower corner of the range; their target is
    background.

    Attributes:
        points: Reference points [B, N, 3] in 0..1.
        sample: Sample of every query that is not a filler [M] int64.
        query: Index of that query in its sample [M] int64, 0..N-1.
        box: Index of the box in this sample that the query was made from [M] int64.
        is_object: Whether the target is the box [M] bool; False for points so far away that it is background.
        self_attn_mask: Mask [N + learned, N + learned] bool, True where self-attention is forbidden.
    """

    points: Tensor
    sample: Tensor
    query: Tensor
    box: Tensor
    is_object: Tensor
    self_attn_mask: Tensor

    @property
    def num(self) -> int:
        """Number of denoising queries per sample, N."""
        return self.points.shape[1]


class DenoisingQueries:
    """Generates the denoising queries of a batch.

    Args:
        groups: Number of groups, each with one query per box.
        noise_scale: Factor of the largest shift of a centre along each axis, which is half the box size.
        noise_trans: Length in metres that is added to half the box size before scaling.
        split: Limit for the length of a shift, as a fraction of the largest shift along one axis; beyond it the target
            is background.
        weight: Weight of the denoising losses.
    """

    def __init__(
        self,
        groups: int = 10,
        noise_scale: float = 1.0,
        noise_trans: float = 0.0,
        split: float = 0.75,
        weight: float = 1.0,
    ) -> None:
        self.groups = groups
        self.noise_scale = noise_scale
        self.noise_trans = noise_trans
        self.split = split
        self.weight = weight

    def make(self, boxes: list[Tensor], pc_range: list[float], num_learned: int) -> DenoisingBatch:
        """Draws the denoising queries of a batch.

        Args:
            boxes: Ground-truth boxes [n, 7 or more] of each sample, z at the centre.
            pc_range: Lower x, y, z and upper x, y, z in metres.
            num_learned: Number of learned queries that follow.

        Returns:
            The queries; if the batch has no boxes they are all fillers, so that every rank computes the same losses.
        """
        counts = [len(sample) for sample in boxes]
        largest = max(1, *counts)
        device = boxes[0].device
        box = torch.cat([torch.arange(count, device=device) for count in counts]).repeat(self.groups)
        sample = torch.cat([torch.full((n,), i, device=device) for i, n in enumerate(counts)]).repeat(self.groups)
        group = torch.arange(self.groups, device=device).repeat_interleave(sum(counts))
        query = group * largest + box

        known = torch.cat([sample_boxes[:, :6] for sample_boxes in boxes]).repeat(self.groups, 1).float()
        shift = torch.rand_like(known[:, :3]) * 2 - 1
        centre = known[:, :3] + shift * (known[:, 3:6] / 2 + self.noise_trans) * self.noise_scale
        points = centre.new_zeros(len(boxes), self.groups * largest, 3)
        points[sample, query] = relative_to(centre, pc_range).clamp(0, 1)
        return DenoisingBatch(
            points=points,
            sample=sample,
            query=query,
            box=box,
            is_object=shift.norm(dim=1) <= self.split,
            self_attn_mask=separate_groups(self.groups, largest, num_learned, device),
        )


def separate_groups(groups: int, size: int, num_learned: int, device: torch.device) -> Tensor:
    """Mask [N, N] bool for `groups` groups of `size` queries and the learned ones: True where attention is forbidden.

    Only a group itself may attend to its queries; all queries may attend to the learned ones.
    """
    owner = torch.arange(groups, device=device).repeat_interleave(size)
    owner = torch.cat((owner, owner.new_full((num_learned,), groups)))
    seen = (owner[:, None] == owner[None, :]) | (owner[None, :] == groups)
    return ~seen
