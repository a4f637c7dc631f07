"""Adaptive computation time for tokens: the bookkeeping of A-ViT (CVPR 2022, section 3), a baseline of token halting.

After each unit of computation l (a block or a layer), a token that is still there has a halting score h_l, 0 to 1. It
halts after the first unit N at which its scores add up to more than 1 - eps, and at the latest after the last unit L:

    r = 1 - (h_1 + ... + h_{N-1})          its remainder
    p_l = h_l for l < N, p_N = r           weights of its features f_l in its output, sum_l p_l f_l; they add up to 1
    rho = N + r                            its ponder cost

N is a number without gradient; scores are trained through p and r. After the last unit every token halts, so its score
would be 1 whatever the features, and is not computed: L units have L - 1 decisions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from . import checks
from .halting import HaltingRecord

_TINY = 1e-30  # below any share that matters; the reciprocal is still a float32


@dataclass(frozen=True, eq=False)
class AViTRecord(HaltingRecord):
    """A halting record with the scores that the losses of A-ViT need.

    The steps' `scores` are what is left of each token after the unit, ``max(1 - (h_1 + ... + h_l), 0)``: a token goes
    on while this is at least eps, so that high scores mean the same as in other records.

    Attributes:
        halting_scores: For each step h_l [K], of the step's rows, differentiable on both paths.
    """

    halting_scores: tuple[Tensor, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        rows, scores = [len(step.rows) for step in self.steps], [tuple(h.shape) for h in self.halting_scores]
        if scores != [(count,) for count in rows]:
            raise ValueError(f'halting scores {scores} do not fit steps with {rows} rows')


def check_eps(eps: float) -> None:
    """Raises ValueError unless 0 < eps < 1; for modules that take `eps` from a config."""
    if not checks.is_number(checks.plain(eps)) or not 0 < eps < 1:
        raise ValueError(
            f'eps={checks.shown(eps)} must be between 0 and 1; a token halts when its scores exceed 1 - eps in sum'
        )


def ponder_step(spent: Tensor, scores: Tensor | None, eps: float = 0.01) -> tuple[Tensor, Tensor, Tensor]:
    """The decisions after one unit of computation about the tokens that have not halted yet.

    Args:
        spent: [K], the sums of their scores before this unit.
        scores: [K], the scores h_l of this unit; None for the last unit, after which all tokens halt.
        eps: A token halts when the sum of its scores exceeds 1 - eps.

    Returns:
        Weights p_l [K] of this unit's features, `spent` [K] after it, and whether tokens go on [K] bool.
    """
    if scores is None:
        return 1 - spent, torch.ones_like(spent), torch.zeros_like(spent, dtype=torch.bool)
    total = spent + scores
    keep = total <= 1 - eps
    return torch.where(keep, scores, 1 - spent), total, keep


def ponder_cost(record: AViTRecord) -> Tensor:
    """The ponder cost rho = N + r of each token: the number of units it went through, and its remainder.

    Returns:
        [N], float32 or better: in half precision the sum over units would be rounded at every step.
    """
    dtype = torch.promote_types(record.halting_scores[0].dtype, torch.float32)
    cost = torch.full((len(record.coords),), 2.0, dtype=dtype, device=record.coords.device)  # N = 1, r = 1
    for step, scores in zip(record.steps, record.halting_scores, strict=True):
        cost = cost.index_add(0, step.rows, step.keep * (1 - scores.to(dtype)))
    return cost


def ponder_loss(record: AViTRecord) -> Tensor:
    """The mean ponder cost of all tokens of the batch, a scalar; 0 without tokens."""
    return ponder_cost(record).sum() / max(len(record.coords), 1)


def depth_prior_loss(record: AViTRecord, depth: float, width: float = 1.0) -> Tensor:
    """The loss KL(q || g), a scalar: it moves halting towards a depth, independent of how much is halted.

    q is the mean halting score of each unit that ends with a decision, normalised over these units. Tokens that are
    gone count as 0, as they do in A-ViT, which blanks their features. g is a Gaussian at l = 1, 2, ..., normalised too.
    A-ViT's code clamps q to 0.01; here it is not, since units in which nothing halts would be left without a gradient.

    Args:
        record: The record of a forward pass.
        depth: Mean of g, in units of computation.
        width: Standard deviation of g, in units of computation.
    """
    dtype = torch.promote_types(record.halting_scores[0].dtype, torch.float32)
    mean = torch.stack([scores.sum(dtype=dtype) for scores in record.halting_scores]) / max(len(record.coords), 1)
    share = mean / mean.sum().clamp(min=_TINY)
    unit = torch.arange(1, len(mean) + 1, dtype=mean.dtype, device=mean.device)
    log_prior = (-0.5 * ((unit - depth) / width) ** 2).log_softmax(0)
    return (share * (share.clamp(min=_TINY).log() - log_prior)).sum()
