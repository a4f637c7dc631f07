"""AlterEva: importance of weights and channels from gradients (AlterMOMA, section 3.3 and appendices B to D)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from .channels import ChannelGroup, group_terms
from .checks import shortened

REDUCTIONS = ('dot', 'abs_sum', 'abs_mean')
Terms = Mapping[str, Tensor]
Measure = Callable[[Terms], dict[str, Tensor]]
"""From signed first-order terms (name -> weight x gradient) to indicators, none of them negative."""


def per_weight(terms: Terms) -> dict[str, Tensor]:
    """The absolute value of every single term."""
    return {name: term.abs() for name, term in terms.items()}


@dataclass(frozen=True)
class PerChannel:
    """A measure of whole channels (appendix D: the mask has the shape of the channels).

    Attributes:
        groups: The groups of coupled channels; those without any term are left out of the result.
        reduce: 'dot' is the absolute value of the signed sum over all that one mask multiplies; 'abs_sum' and
            'abs_mean' are the sum and mean of absolute values.
        roles: Roles of the members that count, see `group_terms`.
    """

    groups: Sequence[ChannelGroup]
    reduce: str = 'dot'
    roles: tuple[str, ...] = ('out', 'through')

    def __post_init__(self) -> None:
        if self.reduce not in REDUCTIONS:
            raise ValueError(f'reduce={self.reduce!r}; valid are {", ".join(REDUCTIONS)}')

    def __call__(self, terms: Terms) -> dict[str, Tensor]:
        """The indicators of the channels: group name -> [C] float64."""
        made = {}
        for group in self.groups:
            present = {m.tensor: terms[m.tensor] for m in group.members if m.role in self.roles and m.tensor in terms}
            if not present:
                continue
            if self.reduce == 'dot':
                made[group.name] = group_terms(present, group, self.roles).abs()
                continue
            made[group.name] = group_terms(per_weight(present), group, self.roles)
            if self.reduce == 'abs_mean':
                ones = {name: torch.ones_like(term) for name, term in present.items()}
                made[group.name] /= group_terms(ones, group, self.roles)
        return made


@torch.no_grad()
def contribution(weights: Terms, gradients: Terms, measure: Measure = per_weight) -> dict[str, Tensor]:
    """DeCI, the first-order loss change when a weight is deactivated: ``|theta x dL/dtheta|`` (Eq. 6, 23, 29).

    Args:
        weights: Name -> initial weights; at least the names of `gradients`.
        gradients: Name -> gradient of the unmasked loss at these weights.
        measure: `per_weight` or a `PerChannel`.

    Returns:
        Name -> indicator, shaped like the parameter; or group name -> [C].
    """
    return measure({name: weights[name].detach() * gradient for name, gradient in gradients.items()})


@torch.no_grad()
def redundancy(weights: Terms, before: Terms, after: Terms, measure: Measure = per_weight) -> dict[str, Tensor]:
    """ReRI, the first-order loss change by reactivation: ``|theta0 x A - theta0 x Z|`` (Eq. 10, 26, 34, 35).

    Args:
        weights: Name -> initial weights theta0; at least the names of `before`.
        before: Name -> gradient A of the masked loss at theta0.
        after: Name -> gradient Z of the masked loss at the reactivated weights.
        measure: `per_weight` or a `PerChannel`.
    """
    return measure({n: weights[n].detach() * before[n] - weights[n].detach() * after[n] for n in before})


@torch.no_grad()
def alter_eva(
    contributions: Terms,
    redundancies: Mapping[str, Terms],
    groups: Mapping[str, str],
    alpha: float = 1.0,
    beta: float = 1.0,
    eps: float = 1e-30,
    dead_lowest: bool = False,
) -> dict[str, Tensor]:
    """Importance scores, normalised inside each group (Eq. 11-13, 27, 36), for any number of modalities.

    A group takes part in the stages in which another group was masked, and beta is split evenly among them: all of it
    for a modality of two, beta / 2 each for the fusion or a modality of three. With alpha = beta the scores of a group
    sum to zero.

    Args:
        contributions: Name -> DeCI.
        redundancies: Masked modality -> name -> ReRI, for all names outside of that modality.
        groups: Name -> group.
        alpha: Factor of DeCI.
        beta: Factor of ReRI.
        eps: An indicator whose sum over a group is not above this counts as zero there (0 / 0).
        dead_lowest: Whether what contributes exactly nothing gets -inf; its score, 0, would be above all negative ones.

    Returns:
        Name -> scores.

    Raises:
        ValueError: If a name has no group, or a group takes part in no stage although beta is not 0.
    """
    check_groups(contributions, groups)
    scores: dict[str, Tensor] = {}
    for group in dict.fromkeys(groups[name] for name in contributions):
        names = [name for name in contributions if groups[name] == group]
        stages = [terms for masked, terms in redundancies.items() if masked != group]
        if beta and not stages:
            raise ValueError(f'group {group!r}: beta={beta}, but no other modality was masked: {list(redundancies)}')
        shares = [(alpha, contributions), *((-beta / len(stages), stage) for stage in stages)]
        scales = [share / total if (total := _sum(terms, names)) > eps else 0.0 for share, terms in shares]
        for name in names:
            score = reduce(torch.add, (terms[name] * scale for scale, (_, terms) in zip(scales, shares)))
            scores[name] = score.masked_fill(contributions[name] == 0, -torch.inf) if dead_lowest else score
    return {name: scores[name] for name in contributions}


def _sum(terms: Terms, names: Iterable[str]) -> float:
    return sum(float(terms[name].sum(dtype=torch.float64)) for name in names)


def check_groups(names: Iterable[str], groups: Mapping[str, str]) -> None:
    """Raises ValueError if a name has no group."""
    unknown = [name for name in names if name not in groups]
    if unknown:
        valid = ', '.join(sorted(set(groups.values())))
        raise ValueError(f'no group ({valid}) is given for {shortened(unknown)}')


@dataclass(frozen=True)
class MeanGradients:
    """The gradient of a mean loss.

    Attributes:
        values: Parameter name -> gradient in float32 or better; zero where there is none.
        missing: Names of the parameters that had no gradient in any batch: frozen ones, and those of skipped branches.
        loss: The mean loss of this process.
    """

    values: dict[str, Tensor]
    missing: tuple[str, ...]
    loss: float


@dataclass(frozen=True)
class Stage:
    """The gradients of the stage in which one modality was masked.

    Attributes:
        before: A, the gradients of the parameters outside of the modality at the initial weights.
        after: Z, the same at the reactivated weights.
        losses: The masked loss of every reactivation batch, before its step.
    """

    before: MeanGradients
    after: MeanGradients
    losses: tuple[float, ...]


@dataclass(frozen=True)
class AlterGradients:
    """All gradients of algorithm 1.

    Attributes:
        unmasked: G0, the gradients with all modalities at the initial weights.
        stages: Masked modality -> its stage, in the order of masking.
    """

    unmasked: MeanGradients
    stages: dict[str, Stage]

    @property
    def without_gradient(self) -> dict[str, tuple[str, ...]]:
        """Parameters whose terms are zero because they had no gradient, where there are any.

        Keys are 'unmasked' and, per stage, such as 'lidar masked, before' and 'lidar masked, after'.
        """
        found = {'unmasked': self.unmasked.missing}
        for masked, stage in self.stages.items():
            found[f'{masked} masked, before'] = stage.before.missing
            found[f'{masked} masked, after'] = stage.after.missing
        return {where: names for where, names in found.items() if names}


def alter_moma_scores(
    weights: Terms, gradients: AlterGradients, groups: Mapping[str, str], measure: Measure = per_weight, **settings: Any
) -> dict[str, Tensor]:
    """Importance scores from the gradients of algorithm 1, see `alter_eva`.

    Args:
        weights: Name -> initial weights.
        gradients: The gradients of `mmprune3d.engine.altermoma.alter_moma_gradients`.
        groups: Name of what is scored (parameter, or group of channels) -> group.
        measure: `per_weight` or a `PerChannel`.
        **settings: The settings alpha, beta, eps and dead_lowest of `alter_eva`.

    Returns:
        Name -> scores.
    """
    redundancies = {
        masked: redundancy(weights, stage.before.values, stage.after.values, measure)
        for masked, stage in gradients.stages.items()
    }
    return alter_eva(contribution(weights, gradients.unmasked.values, measure), redundancies, groups, **settings)
