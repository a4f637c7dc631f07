"""From a detector and some batches to scores of whole channels, and to the channels that stay, for every criterion."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mmprune3d.adapters.fusion import FusionMap
from mmprune3d.engine.batches import seeded, warn_without_objects
from mmprune3d.engine.criteria import BY_GRADIENT, Scores, altermoma_scores, batches_needed
from mmprune3d.engine.flow_scores import flow_scores
from mmprune3d.engine.gradients import mean_gradients, train_steps
from mmprune3d.layers.preserved import preserved
from mmprune3d.pruning import saliency
from mmprune3d.pruning.alter_eva import PerChannel, contribution
from mmprune3d.pruning.altermoma import AlterMOMAPlan
from mmprune3d.pruning.channel_selection import Costs, Selection, select_channels
from mmprune3d.pruning.channels import ChannelGroup, channel_masks, group_terms

MAKING = ('out', 'through')
"""Roles of the tensors whose terms count for a channel, see `group_terms`."""
Choose = Callable[[Mapping[str, Tensor], float], Selection]
"""From scores and the share that goes to the channels that stay."""


def trained_groups(model: nn.Module, groups: Sequence[ChannelGroup]) -> tuple[list[ChannelGroup], list[str]]:
    """The groups with a trained weight among those that make them, and the names of the others, which are frozen."""
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    kept = [group for group in groups if any(m.role == 'out' and m.tensor in trained for m in group.members)]
    names = {group.name for group in kept}
    return kept, [group.name for group in groups if group.name not in names]


def score_channels(
    model: nn.Module,
    plan: AlterMOMAPlan,
    batches: Sequence[Any],
    fusion: FusionMap,
    groups: Sequence[ChannelGroup],
    choose: Choose,
) -> Scores:
    """Scores of channels, by the criterion of the plan; the model is afterwards what it was.

    AlterMOMA, SNIP and ProsPr sum the signed terms weight x gradient over everything that makes a channel, norm affines
    and biases included, before the absolute value (AlterMOMA, appendix D; `plan.reduce` has alternatives). SynFlow sums
    the scores of the weights that make it. The magnitude is the root mean square over the layers that make it of the L2
    norms of its weights, which is of one size in narrow and wide layers.

    Args:
        model: The detector, not wrapped.
        plan: Criterion and its settings.
        batches: As for `mmprune3d.engine.criteria.score_model`.
        fusion: The model's map; a group of channels belongs where the module belongs that it is named after.
        groups: Of `trained_groups`.
        choose: What SynFlow removes between its rounds.

    Returns:
        Group name -> [C] scores on the CPU, and notes.

    Raises:
        ValueError: If there are too few batches, or AlterMOMA finds fewer than two modalities with weights.
        FloatingPointError: If a gradient is not finite.
    """
    if len(batches) < batches_needed(plan):
        raise ValueError(f'{plan.criterion} needs {batches_needed(plan)} batches, got {len(batches)}')
    if plan.criterion in BY_GRADIENT:
        warn_without_objects(batches[: batches_needed(plan)], plan.criterion)
    with seeded(plan.seed), preserved(model):
        model.train()
        found = _CRITERIA[plan.criterion](_Scoring(model, plan, batches, fusion, groups, choose))
    return Scores({name: score.detach().cpu() for name, score in found.values.items()}, found.notes)


def choose_channels(
    scores: Mapping[str, Tensor],
    groups: Sequence[ChannelGroup],
    plan: AlterMOMAPlan,
    share: float,
    costs: Costs | None = None,
    max_ratio: float = 0.9,
    round_to: int = 1,
    tolerance: float = 0.01,
) -> Selection:
    """The channels that stay, when `share` of what the plan's target counts goes.

    Args:
        scores: Group name -> [C].
        groups: The groups.
        plan: Which target, and `min_keep`: channels per group, or their share.
        share: How much goes.
        costs: For targets in FLOPs and parameters.
        max_ratio: No group loses more than this share.
        round_to: Kept channels are a multiple of this.
        tolerance: How far the reached share may be from `share`.

    Raises:
        ValueError: If the target cannot be reached, or the plan wants a scope other than 'global'.
    """
    if plan.scope != 'global':
        raise ValueError(f"scope={plan.scope!r}: channels are ranked all together, scope='global'")
    kind = 'channels' if plan.target[0] == 'sparsity' else plan.target[0]
    if 0 < plan.min_keep < 1:
        max_ratio = min(max_ratio, 1 - plan.min_keep)
    least = max(1, math.floor(plan.min_keep))
    return select_channels(scores, groups, (kind, share), costs, max_ratio, least, round_to, tolerance)


@dataclass(frozen=True)
class _Scoring:
    """The inputs of a criterion."""

    model: nn.Module
    plan: AlterMOMAPlan
    batches: Sequence[Any]
    fusion: FusionMap
    groups: Sequence[ChannelGroup]
    choose: Choose

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """What is trained and makes channels."""
        making = {m.tensor for group in self.groups for m in group.members if m.role in MAKING}
        return {n: p for n, p in self.model.named_parameters() if p.requires_grad and n in making}

    @property
    def measure(self) -> PerChannel:
        return PerChannel(self.groups, self.plan.reduce, MAKING)

    def loss(self, batch: Any) -> Tensor:
        """The training loss."""
        return self.model.parse_losses(self.model(**batch, mode='loss'))[0]


def _altermoma(scoring: _Scoring) -> Scores:
    fusion = scoring.fusion
    belongs = {group.name: str(fusion.group_of(group.name)) for group in scoring.groups}
    return altermoma_scores(
        scoring.model, scoring.plan, scoring.batches, fusion, scoring.parameters, belongs, scoring.measure
    )


def _snip(scoring: _Scoring) -> Scores:
    batches = scoring.batches[: scoring.plan.eval_batches]
    found = mean_gradients(scoring.parameters, scoring.loss, batches, where='SNIP')
    return Scores(contribution(scoring.parameters, found.values, scoring.measure))


def _prospr(scoring: _Scoring) -> Scores:
    """Of first order, as for weights."""
    plan, batches = scoring.plan, scoring.batches
    trained = {name: p for name, p in scoring.model.named_parameters() if p.requires_grad}
    initial = {name: p.detach().clone() for name, p in scoring.parameters.items()}
    optimizer = torch.optim.SGD(trained.values(), lr=plan.lr)
    train_steps(trained, scoring.loss, batches[: plan.reactivation_steps], optimizer, where='ProsPr')
    outer = [batches[plan.reactivation_steps]]
    found = mean_gradients(scoring.parameters, scoring.loss, outer, where='ProsPr')
    return Scores(contribution(initial, found.values, scoring.measure))


def _synflow(scoring: _Scoring) -> Scores:
    plan, weights = scoring.plan, dict(scoring.model.named_parameters())

    def channels(scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
        # infinite are those of weights that no flow reaches, and of those that went before: nothing flows there
        finite = {name: score.nan_to_num(posinf=0, neginf=0) for name, score in scores.items()}
        return {group.name: group_terms(finite, group, ('out',)) for group in scoring.groups}

    def choose(scores: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
        keep = scoring.choose({name: score.cpu() for name, score in channels(scores).items()}, share).keep
        masks = channel_masks({name: weights[name] for name in scores}, scoring.groups, keep)
        whole = {name: torch.ones_like(weights[name], dtype=torch.bool) for name in scores}
        return {name: masks.get(name, mask).to(mask.device) for name, mask in whole.items()}

    values, without_flow = flow_scores(
        scoring.model, scoring.batches[0], scoring.fusion, plan.target[1], plan.rounds, choose
    )
    return Scores(channels(values), {'without_flow': without_flow})


def _magnitude(scoring: _Scoring) -> Scores:
    squares = {name: p.detach().double().square() for name, p in scoring.parameters.items() if p.dim() > 1}
    values = {}
    for group in scoring.groups:
        makers = {m.tensor for m in group.members if m.role == 'out' and m.tensor in squares}
        values[group.name] = (group_terms(squares, group, ('out',)) / len(makers)).sqrt()
    return Scores(values)


def _random(scoring: _Scoring) -> Scores:
    return Scores(saliency.random_scores({g.name: torch.empty(g.size) for g in scoring.groups}, scoring.plan.seed))


_CRITERIA = {
    'altermoma': _altermoma,
    'prospr': _prospr,
    'snip': _snip,
    'synflow': _synflow,
    'magnitude': _magnitude,
    'random': _random,
}
