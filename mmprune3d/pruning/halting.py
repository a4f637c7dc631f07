"""Which tokens a transformer stops computing, and the record of it (dynamic token halting, sections 4.2 to 4.5, A.2.1).

Tokens are rows [b, z, y, x] of a sparse bird's-eye view; attention layers are numbered from 0. A decision is a
`HaltingStep`; all decisions of one forward pass, of whichever path, are one `HaltingRecord`.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from . import checks

# What decimal bounds such as 0.8 lose in binary: 10 * (1 - 0.8) is a little less than 2 and must still count as 2.
_ROUNDING = 1e-6


@dataclass(frozen=True, eq=False)
class HaltingStep:
    """What one halting module decided.

    Attributes:
        layer: First attention layer the decision holds for.
        rows: [K] int64, ascending: rows of the original token set that were not halted before (the paper's K_l).
        scores: [K], 0 to 1; differentiable on the training path.
        keep: [K] bool: the token goes on to `layer`.
    """

    layer: int
    rows: Tensor
    scores: Tensor
    keep: Tensor

    def __post_init__(self) -> None:
        shapes = {name: tuple(getattr(self, name).shape) for name in ('rows', 'scores', 'keep')}
        if len(set(shapes.values())) != 1 or self.rows.dim() != 1:
            raise ValueError(f'rows, scores and keep of a halting step must be [K] each, not {shapes}')
        if self.keep.dtype != torch.bool or self.rows.dtype != torch.int64:
            raise ValueError(f'rows must be int64 and keep bool, not {self.rows.dtype} and {self.keep.dtype}')


@dataclass(frozen=True, eq=False)
class HaltingRecord:
    """All decisions of one forward pass.

    Attributes:
        steps: In the order of their layers.
        coords: [N, 4] int64 rows (b, z, y, x) of all tokens.
        batch_size: Samples, with or without tokens.
        num_layers: Attention layers of the transformer.
    """

    steps: tuple[HaltingStep, ...]
    coords: Tensor
    batch_size: int
    num_layers: int

    def __post_init__(self) -> None:
        layers = [step.layer for step in self.steps]
        if any(a >= b for a, b in pairwise(layers)) or any(not 0 <= layer < self.num_layers for layer in layers):
            raise ValueError(
                f'halting steps before the layers {layers}; they must ascend, each from 0 to {self.num_layers - 1}'
            )

    def halted_at(self) -> Tensor:
        """[N] int64: the attention layer before which each token was halted, `num_layers` if it never was."""
        layer = self.coords.new_full((len(self.coords),), self.num_layers, dtype=torch.int64)
        for step in self.steps:
            layer = layer.scatter(0, step.rows, torch.where(step.keep, self.num_layers, step.layer))
        return layer

    def live(self) -> Tensor:
        """[num_layers, N] bool: the token takes part in the attention layer."""
        return self.halted_at() > torch.arange(self.num_layers, device=self.coords.device)[:, None]

    def sparsity(self, among: Tensor | None = None) -> Tensor:
        """Share of tokens [num_layers] float32 that no longer take part in each attention layer.

        Args:
            among: [N] bool, the tokens to count (foreground, one sample); all if None. Without any, nothing is halted.
        """
        halted = ~self.live()
        if among is None:
            return halted.sum(1) / max(halted.shape[1], 1)
        return (halted & among).sum(1) / among.sum().clamp(min=1)

    def mean_sparsity(self) -> float:
        """Mean of `sparsity` over the attention layers, the number of the paper's Table 5."""
        return float(self.sparsity().double().mean())


def check_halting_rule(threshold: Any, bounds: Any) -> tuple[float, tuple[float, float]]:
    """Threshold and bounds as plain numbers, for whoever builds a module.

    Raises:
        ValueError: Unless 0 <= threshold <= 1 and 0 <= lower <= upper <= 1.
    """
    threshold, bounds = checks.plain(threshold), checks.plain(bounds)
    if not checks.is_number(threshold) or not 0 <= threshold <= 1:
        raise ValueError(f'halting threshold={checks.shown(threshold)} must be a score, 0 to 1')
    shares = tuple(checks.plain(bound) for bound in bounds) if isinstance(bounds, (list, tuple)) else ()
    if len(shares) != 2 or not all(map(checks.is_number, shares)) or not 0 <= shares[0] <= shares[1] <= 1:
        raise ValueError(
            f'halting bounds={checks.shown(bounds)} must be shares of halted tokens, 0 <= lower <= upper <= 1, '
            'such as (0.8, 0.9)'
        )
    return threshold, shares


@torch.no_grad()
def keep_by_rank(
    scores: Tensor, sample: Tensor, totals: Tensor, threshold: float, bounds: tuple[float, float]
) -> Tensor:
    """Tokens whose score reaches the threshold, within bounds on how many of each sample are halted (section A.2.1).

    The paper clamps the threshold u to two quantiles of the scores. Here the number of tokens is clamped instead: of
    `totals` = N tokens, ``clamp(#(s >= u), ceil(N (1 - upper)), floor(N (1 - lower)))`` are kept, best scores first.
    Without ties this is the clamp to quantiles: the least score with a share of at least `lower` below it, and the
    largest with at most `upper` below it. With ties, where a quantile would keep all of them or none, earlier rows
    win, so that the bounds always hold. Strictly inside the bounds it is plainly ``s >= u``.

    If no whole number lies between the bounds (few tokens), the larger of the two counts: a sample is never emptied
    unless `upper` is 1. Tokens that were halted before count as the lowest of the N. NaN counts as a lowest score too
    (an error would need the host to wait for the device).

    Args:
        scores: [K], of the tokens not halted before, in the order in which ties are settled.
        sample: [K] int64, the sample of each token, 0 to B - 1, in any order.
        totals: [B] integers, what the bounds are shares of: all tokens of a sample if sparsity is cumulative.
        threshold: u.
        bounds: Least and largest share of halted tokens, (lower, upper).

    Returns:
        [K] bool.

    Raises:
        ValueError: If threshold or bounds are invalid.
    """
    threshold, bounds = check_halting_rule(threshold, bounds)
    passes = scores >= threshold
    most, least = (totals.double() * (1 - bound) for bound in bounds)
    count = torch.zeros_like(totals, dtype=torch.int64).index_add(0, sample, passes.long())
    count = torch.minimum(count, (most + _ROUNDING).floor().long())
    count = torch.maximum(count, (least - _ROUNDING).ceil().long())
    return rank_in_sample(scores, sample, len(totals)) < count[sample]


def rank_in_sample(scores: Tensor, sample: Tensor, batch_size: int) -> Tensor:
    """Place [K] int64 of each score [K] among those of its sample [K], 0 for the largest; equal ones in their order."""
    lowest_last = torch.where(scores.isnan(), float('-inf'), scores)
    order = lowest_last.argsort(stable=True, descending=True)
    if batch_size > 1:
        order = order[sample[order].argsort(stable=True)]
    sizes = sample.new_zeros(batch_size).index_add(0, sample, torch.ones_like(sample))
    place = torch.arange(len(sample), device=sample.device) - (sizes.cumsum(0) - sizes)[sample[order]]
    return torch.empty_like(order).scatter(0, order, place)


def straight_through(keep: Tensor, scores: Tensor) -> Tensor:
    """The decision [K] as a number that scores [K] can be trained through: 0 or 1, with the gradient of the score.

    The straight-through estimator with the identity (Eq. 11). The value is exact to the bit, which
    ``keep + scores - scores.detach()``, summed from the left, is not.
    """
    return keep.to(scores) + (scores - scores.detach())


@torch.no_grad()
def would_be_kept(scores: Tensor, sample: Tensor, kept: Tensor, batch_size: int) -> Tensor:
    """A decision about some tokens, extended to tokens halted before by the least score that was kept in their sample.

    Training needs it: how a decision matters to a token that was halted earlier depends on what would happen to it now
    (the product k_{0:l} of Eq. 9).

    Args:
        scores: [N] of all tokens.
        sample: [N] int64.
        kept: [N] bool, the decision; False for tokens halted before.
        batch_size: Samples.

    Returns:
        [N] bool; equal to `kept` for the tokens that the decision was about, up to ties.
    """
    infinite = scores.new_full((batch_size,), float('inf'))
    least = infinite.scatter_reduce(0, sample, torch.where(kept, scores, float('inf')), 'amin')
    return kept | (scores > least[sample])
