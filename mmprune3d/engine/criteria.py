"""From a detector and some batches to scores, and to masks: the same for every criterion."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from mmengine.dist import all_reduce, broadcast, get_world_size
from torch import Tensor, nn

from mmprune3d.adapters.fusion import FusionMap, frozen, modalities, parameter_groups, prunable
from mmprune3d.adapters.modality_masking import ModalityMasker
from mmprune3d.engine.altermoma import alter_moma_gradients
from mmprune3d.engine.batches import seeded, warn_without_objects
from mmprune3d.engine.flow_scores import flow_scores
from mmprune3d.engine.gradients import mean_gradients
from mmprune3d.engine.prospr import prospr
from mmprune3d.layers.preserved import preserved
from mmprune3d.pruning import saliency
from mmprune3d.pruning.alter_eva import AlterGradients, Measure, per_weight
from mmprune3d.pruning.altermoma import AlterMOMAPlan, alter_moma_scores
from mmprune3d.pruning.masks import keep_rates
from mmprune3d.pruning.thresholds import keep_masks

BY_GRADIENT = ('altermoma', 'prospr', 'snip')
"""Criteria that read gradients of the training loss."""


@dataclass(frozen=True)
class Scores:
    """What scoring found.

    Attributes:
        values: Parameter -> score of every weight, higher is more important.
        notes: Plain data about how they came about.
    """

    values: dict[str, Tensor]
    notes: dict[str, Any] = field(default_factory=dict)


def batches_needed(plan: AlterMOMAPlan) -> int:
    """How many batches `score_model` reads."""
    needed = {
        'altermoma': plan.eval_batches + plan.reactivation_steps,
        'prospr': plan.reactivation_steps + 1,
        'snip': plan.eval_batches,
        'synflow': 1,
    }
    return needed.get(plan.criterion, 0)


def score_model(model: nn.Module, plan: AlterMOMAPlan, batches: Sequence[Any], fusion: FusionMap) -> Scores:
    """Scores of all prunable weights, by the criterion of the plan.

    Everything that needs gradients runs in training mode, in the precision of the weights: neither mixed precision nor
    gradient clipping has a part in it. Parameters, buffers, random numbers and modes are afterwards what they were.
    With several processes gradients are averaged, so that all have the same scores.

    Args:
        model: The detector, not wrapped.
        plan: Criterion and its settings.
        batches: As arguments of the model, `batches_needed` or more; AlterMOMA evaluates on the first `eval_batches`
            and reactivates on those that follow.
        fusion: The model's map.

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
        return _CRITERIA[plan.criterion](_Scoring(model, plan, batches, fusion))


@dataclass(frozen=True)
class _Scoring:
    """The inputs of a criterion."""

    model: nn.Module
    plan: AlterMOMAPlan
    batches: Sequence[Any]
    fusion: FusionMap

    @property
    def weights(self) -> dict[str, nn.Parameter]:
        return prunable(self.model)

    def loss(self, batch: Any) -> Tensor:
        """The training loss."""
        return self.model.parse_losses(self.model(**batch, mode='loss'))[0]


def modality_gradients(
    model: nn.Module,
    plan: AlterMOMAPlan,
    batches: Sequence[Any],
    fusion: FusionMap,
    parameters: Mapping[str, nn.Parameter],
    on_stage: Callable[[str, str | None], None] | None = None,
) -> AlterGradients:
    """`alter_moma_gradients` of a detector: each of its modalities is masked in turn.

    Args:
        model: Not wrapped, in training mode.
        plan: Of AlterMOMA.
        batches: As for `score_model`.
        fusion: The model's map.
        parameters: What is scored.
        on_stage: See `alter_moma_gradients`.

    Raises:
        ValueError: If fewer than two modalities have weights.
        FloatingPointError: If a gradient is not finite.
    """
    masker, present = ModalityMasker(model, fusion, plan.mask_cross_modal_inputs), modalities(model, fusion)
    if len(present) < 2:
        raise ValueError(
            f'AlterMOMA masks modalities in turn, but {type(model).__name__} has weights of {present or "none"} only; '
            f'the map has {", ".join(fusion.interfaces) or "no interfaces"}: see groups and interfaces, or use '
            "another criterion, such as 'snip'"
        )

    def loss(batch: Any, masked: str | None) -> Tensor:
        with masker.masked(masked):
            return model.parse_losses(model(**batch, mode='loss'))[0]

    return alter_moma_gradients(
        parameters,
        model,
        loss,
        batches[: plan.eval_batches],
        batches[plan.eval_batches : batches_needed(plan)],
        parameter_groups(model, fusion),
        plan.make_optimizer,
        reduce_gradients=average,
        same_eval_batches=plan.same_eval_batches,
        modalities=present,
        on_stage=on_stage,
    )


def altermoma_scores(
    model: nn.Module,
    plan: AlterMOMAPlan,
    batches: Sequence[Any],
    fusion: FusionMap,
    parameters: Mapping[str, nn.Parameter],
    groups: Mapping[str, str],
    measure: Measure = per_weight,
) -> Scores:
    """Scores of AlterMOMA, of weights or of what `measure` makes of them; `groups` has the names of the latter."""
    gradients = modality_gradients(model, plan, batches, fusion, parameters)
    settings = {'alpha': plan.alpha, 'beta': plan.beta, 'dead_lowest': plan.dead_lowest}
    values = alter_moma_scores(parameters, gradients, groups, measure, **settings)
    losses = {masked: list(stage.losses) for masked, stage in gradients.stages.items()}
    missing = {where: list(names) for where, names in gradients.without_gradient.items()}
    return Scores(values, {'reactivation_losses': losses, 'without_gradient': missing})


def _altermoma(scoring: _Scoring) -> Scores:
    model, fusion = scoring.model, scoring.fusion
    groups = parameter_groups(model, fusion)
    return altermoma_scores(model, scoring.plan, scoring.batches, fusion, scoring.weights, groups)


def _prospr(scoring: _Scoring) -> Scores:
    plan = scoring.plan
    return Scores(
        prospr(
            scoring.weights,
            scoring.model,
            scoring.loss,
            scoring.batches,
            plan.reactivation_steps,
            plan.lr,
            reduce_gradients=average,
        )
    )


def _snip(scoring: _Scoring) -> Scores:
    found = mean_gradients(scoring.weights, scoring.loss, scoring.batches[: scoring.plan.eval_batches], average, 'SNIP')
    values = saliency.snip(scoring.weights, found.values)
    return Scores(values, {'without_gradient': {'unmasked': list(found.missing)} if found.missing else {}})


def _synflow(scoring: _Scoring) -> Scores:
    model, plan, fusion = scoring.model, scoring.plan, scoring.fusion
    choose = partial(choose_masks, plan=plan, groups=parameter_groups(model, fusion))
    values, without_flow = flow_scores(model, scoring.batches[0], fusion, plan.sparsity, plan.rounds, choose)
    return Scores(values, {'without_flow': without_flow})


def _magnitude(scoring: _Scoring) -> Scores:
    return Scores(saliency.magnitude(scoring.weights))


def _random(scoring: _Scoring) -> Scores:
    return Scores(saliency.random_scores(scoring.weights, scoring.plan.seed))


_CRITERIA = {
    'altermoma': _altermoma,
    'prospr': _prospr,
    'snip': _snip,
    'synflow': _synflow,
    'magnitude': _magnitude,
    'random': _random,
}


def average(tensors: list[Tensor]) -> None:
    """Averages over processes, in place."""
    if get_world_size() > 1:
        for tensor in tensors:
            all_reduce(tensor, 'mean')


def choose_masks(
    scores: Mapping[str, Tensor], sparsity: float, plan: AlterMOMAPlan, groups: Mapping[str, str]
) -> dict[str, Tensor]:
    """Masks at `sparsity`, with the other settings of the plan, on the device of the scores."""
    return keep_masks(
        scores, sparsity, groups=groups, scope=plan.scope, protected=plan.protected, min_keep=plan.min_keep
    )


def make_masks(
    scores: Scores,
    plan: AlterMOMAPlan,
    groups: Mapping[str, str],
    sparsity: float | None = None,
    earlier: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Masks that are the same in all processes: those of the first one.

    Args:
        scores: Of `score_model`.
        plan: Scope, protected parts and so on.
        groups: Parameter -> group.
        sparsity: If another than that of the plan, as between the rounds of IMP.
        earlier: Masks in force; what they remove is removed first.
    """
    earlier = earlier or {}
    values = {
        name: score.masked_fill(~earlier[name].to(score.device), -torch.inf) if name in earlier else score
        for name, score in scores.values.items()
    }
    masks = choose_masks(values, plan.sparsity if sparsity is None else sparsity, plan, groups)
    if get_world_size() > 1:
        for mask in masks.values():
            bits = mask.to(torch.uint8)
            broadcast(bits)  # sums of floats may differ in the last digit between processes
            mask.copy_(bits)
    return masks


def keep_report(
    model: nn.Module, plan: AlterMOMAPlan, fusion: FusionMap, scores: Scores, masks: Mapping[str, Tensor]
) -> dict[str, Any]:
    """What stays of the model, as plain data.

    Returns:
        ``plan``, and from `keep_rates` ``total``, ``groups`` and ``layers``, rows of ``kept``, ``total`` and ``rate``
        (those of layers have their ``group`` too); ``frozen``, names of weights that could not be scored; ``notes``.
    """
    groups = parameter_groups(model, fusion)
    rates = keep_rates(masks, groups)
    rates['layers'] = {name: {**row, 'group': groups[name]} for name, row in rates['layers'].items()}
    return {'plan': plan.to_dict(), **rates, 'frozen': list(frozen(model)), 'notes': scores.notes}


def keep_table(report: Mapping[str, Any], layers: bool = False) -> str:
    """The report of `keep_report` as a table in Markdown.

    Args:
        report: The report.
        layers: Whether every layer has a row.
    """
    rows = [('all', '', report['total']), *((f'**{name}**', '', row) for name, row in report['groups'].items())]
    if layers:
        rows += [(f'`{name}`', row['group'], row) for name, row in report['layers'].items()]
    lines = ['| part | group | weights | kept | kept, % |', '|---|---|---:|---:|---:|']
    lines += [f'| {part} | {group} | {r["total"]} | {r["kept"]} | {100 * r["rate"]:.2f} |' for part, group, r in rows]
    return '\n'.join(lines)
