"""From a detector and some batches to scores and masks: six criteria, each written once, for weights and for channels.

A criterion does not know what it scores. It asks a :class:`Measured`, of which there are two: `Weights` here, and
`Channels` in :mod:`mmprune3d.engine.channel_scoring`. What they share are the signed first-order terms ``weight x
gradient`` of the parameters; what differs is how scores are made of these terms (`Measured.measure`): by the absolute
value of each, or by that of the sum over everything that the mask of one channel would multiply.

With several processes every criterion decides in all of them what one process would that has all their batches.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from mmengine.dist import broadcast, get_world_size
from torch import Tensor, nn

from mmprune3d.adapters.fusion import FusionMap, frozen, parameter_groups, prunable
from mmprune3d.engine.altermoma import modality_gradients
from mmprune3d.engine.batches import seeded, warn_without_objects
from mmprune3d.engine.flow_scores import flow_scores
from mmprune3d.engine.gradients import average, mean_gradients
from mmprune3d.engine.prospr import prospr
from mmprune3d.layers.preserved import preserved
from mmprune3d.pruning import saliency
from mmprune3d.pruning.alter_eva import Measure, per_weight
from mmprune3d.pruning.altermoma import WeightPlan, alter_moma_scores
from mmprune3d.pruning.masks import keep_rates
from mmprune3d.pruning.thresholds import keep_masks

BY_GRADIENT = ('altermoma', 'prospr', 'snip')
"""Criteria that use gradients of the training loss, to which batches without objects contribute little."""


@dataclass(frozen=True)
class Scores:
    """The result of scoring.

    Attributes:
        values: Name of what is scored (a parameter, or a group of channels) -> scores, higher is more important.
        notes: Plain data about how they came about.
    """

    values: dict[str, Tensor]
    notes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Measured(ABC):
    """What is scored in a detector, single weights or whole channels: all that the criteria know about it.

    Attributes:
        model: The detector, not wrapped.
        plan: Criterion and its settings.
        fusion: The model's map.
    """

    model: nn.Module
    plan: WeightPlan
    fusion: FusionMap

    @property
    @abstractmethod
    def measure(self) -> Measure:
        """From the signed first-order terms of `parameters` to scores."""

    @property
    @abstractmethod
    def parameters(self) -> dict[str, nn.Parameter]:
        """Name -> trained parameter whose terms count."""

    @property
    @abstractmethod
    def groups(self) -> dict[str, str]:
        """Name of what is scored -> group of the fusion map that it belongs to."""

    @property
    @abstractmethod
    def shapes(self) -> dict[str, Sequence[int]]:
        """Name of what is scored -> shape of its scores."""

    @abstractmethod
    def magnitudes(self) -> dict[str, Tensor]:
        """Name of what is scored -> size of the weights that belong to it."""

    @abstractmethod
    def from_flow(self, scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """From SynFlow's scores of single weights to those of what is scored."""

    @abstractmethod
    def flow_masks(self, scores: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
        """From SynFlow's scores of single weights to masks of them, when `share` of what is scored is removed."""

    def loss(self, batch: Any) -> Tensor:
        """The training loss of a batch."""
        return self.model.parse_losses(self.model(**batch, mode='loss'))[0]


class Weights(Measured):
    """Single weights of convolutions, linear layers and attention."""

    @property
    def measure(self) -> Measure:
        """The measure of single weights: the absolute value of each term."""
        return per_weight

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """Name -> weight that can be pruned, see `prunable`."""
        return prunable(self.model)

    @property
    def groups(self) -> dict[str, str]:
        """Name of every parameter -> its group in the fusion map."""
        return parameter_groups(self.model, self.fusion)

    @property
    def shapes(self) -> dict[str, Sequence[int]]:
        """Name -> shape of the weight."""
        return {name: weight.shape for name, weight in self.parameters.items()}

    def magnitudes(self) -> dict[str, Tensor]:
        """Name -> absolute values of the weight."""
        return saliency.magnitude(self.parameters)

    def from_flow(self, scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """SynFlow's scores as they are: they belong to single weights already."""
        return dict(scores)

    def flow_masks(self, scores: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
        """Masks that the plan's scope and protected parts allow, when `share` of the weights is removed."""
        return choose_masks(scores, share, self.plan, self.groups)


def batches_needed(plan: WeightPlan) -> int:
    """The number of batches that `score` reads with this plan."""
    needed = {
        'altermoma': plan.eval_batches + plan.reactivation_steps,
        'prospr': plan.reactivation_steps + 1,
        'snip': plan.eval_batches,
        'synflow': 1,
    }
    return needed.get(plan.criterion, 0)


def score(measured: Measured, batches: Sequence[Any]) -> Scores:
    """Scores of what is measured, by the criterion of its plan.

    Everything that needs gradients runs in training mode, in the precision of the weights: neither mixed precision nor
    gradient clipping has a part in it. The model and the random states are afterwards what they were.

    With several processes, each with as many batches, all have the same scores: those that one process would find with
    batches that hold the samples of all of them (of SynFlow a fraction of them, which ranks alike). Batch norm is the
    exception, as in every distributed training: its statistics are those of the process.

    Args:
        measured: What is scored.
        batches: Arguments of the model, batch by batch, `batches_needed` or more. AlterMOMA evaluates on the first
            `eval_batches` and reactivates on those that follow.

    Raises:
        ValueError: If there are too few batches, or AlterMOMA finds fewer than two modalities with weights.
        FloatingPointError: If a gradient is not finite.
    """
    plan = measured.plan
    if len(batches) < batches_needed(plan):
        raise ValueError(f'{plan.criterion} needs {batches_needed(plan)} batches, got {len(batches)}')
    if plan.criterion in BY_GRADIENT:
        warn_without_objects(batches[: batches_needed(plan)], plan.criterion)
    # Seeded first, so that going back to a snapshot of the model is going back to the seed as well: scores depend on
    # weights, batches and seed only, and a training that was killed while it scored finds the same ones again.
    with seeded(plan.seed), preserved(measured.model):
        measured.model.train()  # running statistics of batch norm do not fit a model without one of its streams
        found = _CRITERIA[plan.criterion](measured, batches)
    return Scores(_of_first_process(found.values), found.notes)


def score_model(model: nn.Module, plan: WeightPlan, batches: Sequence[Any], fusion: FusionMap) -> Scores:
    """`score` of all prunable weights: parameter -> scores of its shape.

    Args:
        model: The detector, not wrapped.
        plan: Criterion and its settings.
        batches: See `score`.
        fusion: The model's map.
    """
    return score(Weights(model, plan, fusion), batches)


def _altermoma(measured: Measured, batches: Sequence[Any]) -> Scores:
    plan, weights = measured.plan, measured.parameters
    gradients = modality_gradients(measured.model, plan, batches, measured.fusion, weights)
    settings = {'alpha': plan.alpha, 'beta': plan.beta, 'dead_lowest': plan.dead_lowest}
    values = alter_moma_scores(weights, gradients, measured.groups, measured.measure, **settings)
    losses = {masked: list(stage.losses) for masked, stage in gradients.stages.items()}
    missing = {where: list(names) for where, names in gradients.without_gradient.items()}
    return Scores(values, {'reactivation_losses': losses, 'without_gradient': missing})


def _prospr(measured: Measured, batches: Sequence[Any]) -> Scores:
    steps, lr = measured.plan.reactivation_steps, measured.plan.lr
    how = {'reduce_gradients': average, 'measure': measured.measure}
    return Scores(prospr(measured.parameters, measured.model, measured.loss, batches, steps, lr, **how))


def _snip(measured: Measured, batches: Sequence[Any]) -> Scores:
    weights = measured.parameters
    found = mean_gradients(weights, measured.loss, batches[: measured.plan.eval_batches], average, 'SNIP')
    values = saliency.snip(weights, found.values, measured.measure)
    return Scores(values, {'without_gradient': {'unmasked': list(found.missing)} if found.missing else {}})


def _synflow(measured: Measured, batches: Sequence[Any]) -> Scores:
    plan, (_, share) = measured.plan, measured.plan.target
    # One batch is enough: its features are replaced by ones, and only the places of voxels are left of it.
    values, without_flow = flow_scores(
        measured.model, batches[0], measured.fusion, share, plan.rounds, measured.flow_masks, average
    )
    return Scores(measured.from_flow(values), {'without_flow': without_flow})


def _magnitude(measured: Measured, batches: Sequence[Any]) -> Scores:
    return Scores(measured.magnitudes())


def _random(measured: Measured, batches: Sequence[Any]) -> Scores:
    return Scores(saliency.random_scores(measured.shapes, measured.plan.seed))


_CRITERIA: dict[str, Callable[[Measured, Sequence[Any]], Scores]] = {
    'altermoma': _altermoma,
    'prospr': _prospr,
    'snip': _snip,
    'synflow': _synflow,
    'magnitude': _magnitude,
    'random': _random,
}


def _of_first_process(scores: dict[str, Tensor]) -> dict[str, Tensor]:
    """The scores of the first process, given to all of them.

    Averaged scores are equal but for rounding, where the order of additions differs from device to device. With
    millions of them the threshold may lie between two that differ by no more, and processes that prune different
    weights would train different models from then on.
    """
    if get_world_size() == 1:
        return scores
    made = {name: values.detach().contiguous().clone() for name, values in scores.items()}
    for values in made.values():
        broadcast(values)
    return made


def choose_masks(
    scores: Mapping[str, Tensor], sparsity: float, plan: WeightPlan, groups: Mapping[str, str]
) -> dict[str, Tensor]:
    """Masks of weights at `sparsity`, with the scope, protected parts and `min_keep` of the plan.

    Args:
        scores: Parameter -> scores.
        sparsity: Share to remove.
        plan: The plan.
        groups: Parameter -> group.

    Returns:
        Parameter -> bool mask, True = keep, on the device of the scores.
    """
    return keep_masks(
        scores, sparsity, groups=groups, scope=plan.scope, protected=plan.protected, min_keep=plan.min_keep
    )


def make_masks(
    scores: Scores,
    plan: WeightPlan,
    groups: Mapping[str, str],
    sparsity: float | None = None,
    earlier: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Masks of weights; with scores of `score_model` they are the same in all processes.

    Args:
        scores: The scores of `score_model`.
        plan: The plan, for its scope, protected parts and `min_keep`.
        groups: Parameter -> group.
        sparsity: Share to remove; None means that of the plan. It is smaller between the rounds of IMP.
        earlier: Masks that are applied already; the weights that they remove are removed first.
    """
    earlier = earlier or {}
    values = {
        name: score.masked_fill(~earlier[name].to(score.device), -torch.inf) if name in earlier else score
        for name, score in scores.values.items()
    }
    return choose_masks(values, plan.sparsity if sparsity is None else sparsity, plan, groups)


def keep_report(
    model: nn.Module, plan: WeightPlan, fusion: FusionMap, scores: Scores, masks: Mapping[str, Tensor]
) -> dict[str, Any]:
    """How many weights are kept, as plain data.

    Args:
        model: The detector, not wrapped.
        plan: The plan.
        fusion: The model's map.
        scores: The scores, for their notes.
        masks: Parameter -> mask.

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
