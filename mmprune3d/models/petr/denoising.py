"""Denoising queries: ground-truth centres with noise, which the decoder learns to repair (DN-DETR; PETRv2's DN head).

They stand in front of the learned queries in training, in groups that see neither each other nor are seen by the
learned queries, and skip the matching: the box that a query was made from is its target.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .box_coder import relative_to


@dataclass(frozen=True)
class DenoisingBatch:
    """The denoising queries of a batch; N = groups * (largest number of boxes of a sample, at least 1).

    Fillers, which make all samples equally long, lie at the origin of the range and should be called background.

    Attributes:
        points: [B, N, 3] in 0..1.
        sample: [M] int64, the sample of every query that is no filler.
        query: [M] int64, its place in 0..N-1.
        box: [M] int64, the box of this sample that it was made from.
        is_object: [M] bool; False for points so far off that they should be called background.
        self_attn_mask: [N + learned, N + learned] bool, True where self-attention is forbidden.
    """

    points: Tensor
    sample: Tensor
    query: Tensor
    box: Tensor
    is_object: Tensor
    self_attn_mask: Tensor

    @property
    def num(self) -> int:
        """Queries per sample, N."""
        return self.points.shape[1]


class DenoisingQueries:
    """Makes denoising queries.

    Args:
        groups: How often every box is repeated.
        noise_scale: Largest shift of a centre along each axis, in half box sizes.
        noise_trans: The same, in metres, added to the half sizes.
        split: A shift whose length (as a fraction of the largest one, over three axes) exceeds this is background.
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
        """Draws the queries of a batch.

        Args:
            boxes: Per sample [n, 7 or more], z at the centre.
            pc_range: Lower x, y, z and upper x, y, z in metres.
            num_learned: Number of learned queries that follow.

        Returns:
            The queries; without any box they are all fillers, so that every rank computes the same losses.
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
    """Mask [N, N] bool of `groups` groups of `size` queries and the learned ones: True where attention is forbidden.

    Nobody sees a group of denoising queries but itself; all see the learned queries.
    """
    owner = torch.arange(groups, device=device).repeat_interleave(size)
    owner = torch.cat((owner, owner.new_full((num_learned,), groups)))
    seen = (owner[:, None] == owner[None, :]) | (owner[None, :] == groups)
    return ~seen
