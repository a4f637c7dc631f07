"""Scores that AlterMOMA is compared with and that need no model: magnitude (IMP), SNIP, random; the schedule of IMP.

All return name -> scores shaped like the weights; `keep_masks` makes masks of them. Those that run a model are
`mmprune3d.engine.prospr` and `mmprune3d.engine.flow_scores`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .alter_eva import Measure, contribution, per_weight


def keep_ratio(sparsity: float, done: int, rounds: int) -> float:
    """Share that is left after `done` of `rounds` rounds: (1 - sparsity)^(done / rounds).

    The schedule of IMP ("The Lottery Ticket Hypothesis"; every round trains, prunes by magnitude and rewinds) and of
    SynFlow.

    Raises:
        ValueError: If `done` lies outside 0..rounds.
    """
    if not 0 <= done <= rounds or rounds < 1:
        raise ValueError(f'round {done} of {rounds}; valid are 0 to the number of rounds, which is 1 or more')
    return (1 - sparsity) ** (done / rounds)


@torch.no_grad()
def magnitude(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Absolute values, the score of IMP."""
    return {name: weight.detach().abs() for name, weight in weights.items()}


@torch.no_grad()
def snip(
    weights: Mapping[str, Tensor], gradients: Mapping[str, Tensor], measure: Measure = per_weight
) -> dict[str, Tensor]:
    """SNIP: ``|weight x gradient|``, divided by the sum over all weights (Lee et al., Eq. 6).

    This is AlterMOMA's DeCI without groups.

    Args:
        weights: Name -> weights.
        gradients: Name -> gradient of the loss, mean or sum over batches.
        measure: `per_weight` or a `PerChannel`.

    Returns:
        Name -> scores shaped like the weights; or group name -> [C].
    """
    scores = contribution(weights, gradients, measure)
    total = sum(float(score.sum(dtype=torch.float64)) for score in scores.values())
    return {name: score / (total or 1.0) for name, score in scores.items()}


def random_scores(shapes: Mapping[str, Sequence[int]], seed: int = 0) -> dict[str, Tensor]:
    """Uniform scores on the CPU that depend on the seed and on names and shapes only.

    Args:
        shapes: Name -> shape of its scores.
        seed: The seed.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = {name: torch.rand(tuple(shapes[name]), generator=generator) for name in sorted(shapes)}
    return {name: drawn[name] for name in shapes}
