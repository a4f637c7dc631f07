"""Counts of halted tokens by attention layer, gate and kind of token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from .halting import HaltingRecord, HaltingStep, rank_in_sample
from .halting_loss import pairs_inside

KINDS = ('foreground', 'background', 'unlabelled')
"""Kinds of tokens: inside an annotated box, outside of all boxes, and those of batches without annotations."""


def inside_boxes(
    coords: Tensor, boxes: Sequence[Tensor], voxel_size: Sequence[float], point_cloud_range: Sequence[float]
) -> Tensor:
    """Which tokens have the centre of their cell inside an annotated box, in bird's-eye view.

    Args:
        coords: [N, 4] int64 rows (sample, z, y, x).
        boxes: Boxes [G, 7 or more] of each sample: x, y, z, length, width, height, yaw in metres and radians.
        voxel_size: x, y, z in metres.
        point_cloud_range: Lower x, y, z and upper x, y, z in metres.

    Returns:
        [N] bool.
    """
    # not `token_heatmap` > 0: far from the centre of a long thin box it is too small for a float
    inside = torch.zeros(len(coords), dtype=torch.bool, device=coords.device)
    size, lower = (coords.new_tensor(values[:2], dtype=torch.float32) for values in (voxel_size, point_cloud_range))
    for sample, some in enumerate(boxes):
        rows = (coords[:, 0] == sample).nonzero().squeeze(1)
        centers = (coords[rows][:, [3, 2]] + 0.5) * size + lower
        inside[rows[pairs_inside(centers, some.to(centers))[1]]] = True
    return inside


def layer_counts(record: HaltingRecord, groups: Tensor, num_groups: int) -> tuple[Tensor, Tensor]:
    """The number of tokens of each group, and the number of them that take part in each attention layer.

    Args:
        record: The record of a batch.
        groups: [N] int64, the group of each token, 0 to num_groups - 1.
        num_groups: Number of groups.

    Returns:
        Numbers of tokens [num_groups] and of live tokens [num_layers, num_groups], float64.
    """
    member = one_hot(groups, num_groups).double()
    return member.sum(0), record.live().double() @ member


@dataclass(frozen=True)
class HaltingSums:
    """Counts of halted tokens that can be added up over batches, iterations and processes.

    Attributes:
        counts: [1 + num_layers, 3] float64: all tokens, then the live ones of each attention layer; columns as `KINDS`.
        gates: [G, 6] float64, a row per gate: tokens that reached it; tokens it kept; tokens with a score of the
            threshold or more; samples with tokens; samples in which the threshold alone halts too little for the bounds
            or nothing at all; samples in which it halts too much or everything.
        layers: The first attention layer that each gate decides for.
    """

    counts: Tensor
    gates: Tensor
    layers: tuple[int, ...]

    @classmethod
    @torch.no_grad()
    def of(cls, record: HaltingRecord, foreground: Tensor | None, thresholds: Sequence[float | None]) -> HaltingSums:
        """The counts of one batch.

        Args:
            record: The record of the batch.
            foreground: [N] bool, True for tokens inside a box, or None where there are no annotations.
            thresholds: The threshold of each gate; None for gates without one.
        """
        tokens = record.coords[:, 0]
        kinds = torch.full_like(tokens, 2) if foreground is None else (~foreground).long()
        total, live = layer_counts(record, kinds, len(KINDS))
        gates = [_gate_row(record, step, threshold) for step, threshold in zip(record.steps, thresholds, strict=True)]
        return cls(torch.cat([total[None], live]), torch.stack(gates), tuple(step.layer for step in record.steps))

    def plus(self, other: HaltingSums) -> HaltingSums:
        """The counts of both together.

        Raises:
            ValueError: If `other` has gates before other layers.
        """
        if self.layers != other.layers:
            raise ValueError(f'records of gates before layers {self.layers} and {other.layers} cannot be added up')
        return HaltingSums(self.counts + other.counts, self.gates + other.gates, self.layers)

    def sparsity(self, kind: str | None = None) -> Tensor:
        """The share of tokens (all, or of one of `KINDS`) that are halted in each layer, [num_layers]; NaN if none."""
        counts = self.counts.sum(1) if kind is None else self.counts[:, KINDS.index(kind)]
        return 1 - counts[1:] / counts[0]

    def scalars(self) -> dict[str, float]:
        """The figures that are logged, by name; those of kinds without tokens are left out."""
        sparsity = {'': self.sparsity(), **{f'_{kind}': self.sparsity(kind) for kind in KINDS[:2]}}
        found = {f'layer{layer}': value for layer, value in enumerate(sparsity[''].tolist())}
        found.update({f'mean{kind}': float(values.mean()) for kind, values in sparsity.items()})
        for gate, layer in enumerate(self.layers):
            reached, kept = self.gates[gate, :2].tolist()
            found[f'gate{gate}'] = 1 - kept / reached if reached else float('nan')
            found.update({f'gate{gate}{kind}': float(sparsity[kind][layer]) for kind in list(sparsity)[1:]})
        return {f'halting/{name}': value for name, value in found.items() if value == value}


def _gate_row(record: HaltingRecord, step: HaltingStep, threshold: float | None) -> Tensor:
    sample, size = record.coords[step.rows, 0], record.batch_size
    high = step.keep if threshold is None else step.scores >= threshold
    reached, kept, above = (
        torch.zeros(size, dtype=torch.float64, device=sample.device).index_add_(0, sample, mask.double())
        for mask in (torch.ones_like(high), step.keep, high)
    )
    # the rule keeps as many as the threshold does, unless a bound wants fewer or more
    little = ((kept < above) | (above == reached)) & (reached > 0)
    much = ((kept > above) | (above == 0)) & (reached > 0)
    return torch.stack([part.double().sum() for part in (reached, kept, above, reached > 0, little, much)])


@torch.no_grad()
def fitting_thresholds(record: HaltingRecord, gate: int, bounds: tuple[float, float], relative: bool = False) -> Tensor:
    """The thresholds that would halt a share in the middle of the bounds, one per sample that has tokens at the gate.

    Args:
        record: The record of a batch.
        gate: Number of the gate, an index into the steps of the record.
        bounds: Least and largest share of halted tokens.
        relative: Whether the bounds are shares of the tokens that reach the gate rather than of all tokens.

    Returns:
        [samples], ascending; each threshold is the score of a token of its sample.
    """
    step, tokens = record.steps[gate], record.coords[:, 0]
    sample, scores = tokens[step.rows], step.scores.float()
    totals, reached = tokens.bincount(minlength=record.batch_size), sample.bincount(minlength=record.batch_size)
    wanted = ((reached if relative else totals) * (1 - sum(bounds) / 2)).round().long().clamp(min=1).minimum(reached)
    return scores[rank_in_sample(scores, sample, record.batch_size) + 1 == wanted[sample]].sort().values
