"""Which tokens a transformer stops computing, and the record of it (dynamic token halting, sections 4.2 to 4.5, A.2.1).

Tokens are rows [b, z, y, x] of a sparse bird's-eye view; attention layers are numbered from 0. A decision is a
`HaltingStep`; all decisions of one forward pass, of whichever path, are one `HaltingRecord`.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor

from . import checks
from .settings import Plan

SECOND_GATE = 0.4
"""Share of the tokens that pass the first gate which also pass the second: 8 % of 20 %, for a sparsity of 0.89."""

# What decimal bounds such as 0.8 lose in binary: 10 * (1 - 0.8) is a little less than 2 and must still count as 2.
_ROUNDING = 1e-6


@dataclass(frozen=True)
class HaltingPlan(Plan):
    """How much of an SST is halted: two gates, before the first and the second block (section 6.1), and their loss.

    Attributes:
        sparsity: Share of halted tokens, averaged over all attention layers, from 0 to below 1: the number of the
            paper's Table 5.
        threshold: Score from which tokens go on, as far as the bounds of the gate allow it, from 0 to below 1.
        slack: How far the share of tokens that a gate halts may lie below or above the share that `sparsity` asks for;
            with 0 the scores decide which tokens halt, but not how many.
        in_channels: Number of features of a token, from the first, that the halting modules read.
        loss: ``'nonuniform'`` (section 4.6) or ``'uniform'``.
        loss_weight: Weight of the sparsity loss.
    """

    method: ClassVar[str] = 'halting'
    title: ClassVar[str] = 'token halting'
    example: ClassVar[str] = 'sparsity=0.82'
    purpose: ClassVar[str] = 'the mean share of halted tokens'
    losses: ClassVar[tuple[str, ...]] = ('nonuniform', 'uniform')

    sparsity: float
    threshold: float = 0.01
    slack: float = 0.0
    in_channels: int = 32
    loss: str = 'nonuniform'
    loss_weight: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_choice('loss', self.losses)
        self.check_count('in_channels', 1)
        for name in ('sparsity', 'threshold', 'slack'):
            self.check_number(name, most=1, below=True)
        self.check_number('loss_weight')

    def bounds(self, num_blocks: int) -> list[tuple[float, float]]:
        """The bounds of the two gates: least and largest share of all tokens that have halted after the gate.

        A share p of the tokens passes the first gate and 0.4 p the second, so that p (1 + 0.4 (blocks - 1)) / blocks of
        them are computed on average. Where p would exceed 1, the first gate halts nothing.

        Args:
            num_blocks: Number of blocks of the backbone, 2 or more.

        Returns:
            A pair (lower, upper) for each gate.

        Raises:
            ValueError: If the backbone has fewer than 2 blocks.
        """
        if num_blocks < 2:
            raise ValueError(f'{self.title}: the backbone has {num_blocks} block; gates stand before two')
        kept = (1 - self.sparsity) * num_blocks
        first = min(1.0, kept / (1 + SECOND_GATE * (num_blocks - 1)))
        second = (kept - first) / (num_blocks - 1)
        return [(max(0.0, 1 - share - self.slack), min(1.0, 1 - share + self.slack)) for share in (first, second)]

    def gates(self, embed_dims: int, num_blocks: int) -> list[dict[str, Any]]:
        """The gates for a backbone, as the list of configs that ``HaltingSST`` takes as its argument ``halting``.

        Args:
            embed_dims: Number of features of a token.
            num_blocks: Number of blocks of the backbone.

        Raises:
            ValueError: If the modules would read more features than tokens have, or there are too few blocks.
        """
        if self.in_channels > embed_dims:
            raise ValueError(
                f'{self.title}: in_channels={self.in_channels}, but tokens have {embed_dims} features; valid are 1 to '
                f'{embed_dims}'
            )
        # as wide, next to the tokens, as in the paper's size: on narrow ones a wider U-Net costs what halting saves
        widths = tuple(max(8, embed_dims // part) for part in (8, 4, 2))
        modules: tuple[dict[str, Any], ...] = (dict(type='HaltingUNet', widths=widths), dict(type='HaltingMLP'))
        return [
            dict(
                block=block,
                module=dict(module, in_channels=self.in_channels),
                threshold=self.threshold,
                bounds=tuple(_neat(bound) for bound in bounds),
            )
            for block, (module, bounds) in enumerate(zip(modules, self.bounds(num_blocks)))
        ]


def _neat(bound: float) -> float:
    """The bound rounded to four digits, unless it would become 0 or 1."""
    rounded = round(bound, 4)
    return bound if rounded in (0, 1) else rounded


@dataclass(frozen=True, eq=False)
class HaltingStep:
    """The decision of one halting module.

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
    """All halting decisions of one forward pass.

    Attributes:
        steps: The decisions, in the order of their layers.
        coords: [N, 4] int64 rows (b, z, y, x) of all tokens.
        batch_size: Number of samples, with or without tokens.
        num_layers: Number of attention layers of the transformer.
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
        """The sparsity of each attention layer, the share of tokens that take no part in it: [num_layers] float32.

        Args:
            among: [N] bool, the tokens to count, for example foreground, or those of one sample; None counts all. Where
                no token is counted, the sparsity is 0.
        """
        halted = ~self.live()
        if among is None:
            return halted.sum(1) / max(halted.shape[1], 1)
        return (halted & among).sum(1) / among.sum().clamp(min=1)

    def mean_sparsity(self) -> float:
        """The mean of `sparsity` over the attention layers, the number of the paper's Table 5."""
        return float(self.sparsity().double().mean())


def check_halting_rule(threshold: Any, bounds: Any) -> tuple[float, tuple[float, float]]:
    """Checks the threshold and the bounds of a gate, and returns them as plain numbers.

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
    """Which tokens go on: those whose score reaches a threshold, within bounds on the share that halts (section A.2.1).

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
        totals: [B] integers, the numbers of tokens that the bounds are shares of: all tokens of a sample if sparsity is
            cumulative.
        threshold: The threshold u of the score.
        bounds: Least and largest share of halted tokens, (lower, upper).

    Returns:
        [K] bool, True for tokens that go on.

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
    """The rank [K] int64 of each score [K] within its sample [K]: 0 for the largest, equal scores in their order."""
    lowest_last = torch.where(scores.isnan(), float('-inf'), scores)
    order = lowest_last.argsort(stable=True, descending=True)
    if batch_size > 1:
        order = order[sample[order].argsort(stable=True)]
    sizes = sample.new_zeros(batch_size).index_add(0, sample, torch.ones_like(sample))
    place = torch.arange(len(sample), device=sample.device) - (sizes.cumsum(0) - sizes)[sample[order]]
    return torch.empty_like(order).scatter(0, order, place)


def straight_through(keep: Tensor, scores: Tensor) -> Tensor:
    """The decision [K] as a differentiable number: its value is 0 or 1, its gradient that of the score [K].

    The straight-through estimator with the identity (Eq. 11). The value is exact to the bit, which
    ``keep + scores - scores.detach()``, summed from the left, is not.
    """
    return keep.to(scores) + (scores - scores.detach())


@torch.no_grad()
def would_be_kept(scores: Tensor, sample: Tensor, kept: Tensor, batch_size: int) -> Tensor:
    """Extends a decision to tokens that were halted before: they would go on if they score above the least kept score.

    Training needs it: the gradient of an earlier decision about a token depends on whether the token would go on now
    (the product k_{0:l} of Eq. 9).

    Args:
        scores: [N], the scores of all tokens.
        sample: [N] int64, the sample of each token.
        kept: [N] bool, the decision; False for tokens halted before.
        batch_size: Number of samples.

    Returns:
        [N] bool; equal to `kept` for the tokens that the decision was about, up to ties.
    """
    infinite = scores.new_full((batch_size,), float('inf'))
    least = infinite.scatter_reduce(0, sample, torch.where(kept, scores, float('inf')), 'amin')
    return kept | (scores > least[sample])
