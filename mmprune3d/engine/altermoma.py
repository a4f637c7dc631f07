"""The procedure of AlterMOMA: modalities are masked in turn, the rest is trained, gradients are taken before and after.

The scores that these gradients lead to are those of :mod:`mmprune3d.pruning.altermoma`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from mmprune3d.adapters.fusion import FusionMap, modalities, parameter_groups
from mmprune3d.adapters.modality_masking import ModalityMasker
from mmprune3d.layers.preserved import preserved
from mmprune3d.pruning.alter_eva import AlterGradients, MeanGradients, Stage, check_groups
from mmprune3d.pruning.altermoma import WeightPlan
from mmprune3d.pruning.checks import shortened

from .gradients import Reduce, average, mean_gradients, train_steps

FUSION = 'fusion'
"""The group that is never masked, unless modalities are given by name."""


def alter_moma_gradients(
    parameters: Mapping[str, nn.Parameter],
    modules: nn.Module,
    loss: Callable[[Any, str | None], Tensor],
    eval_batches: Iterable[Any],
    reactivation_batches: Iterable[Any],
    groups: Mapping[str, str],
    make_optimizer: Callable[[list[nn.Parameter]], Optimizer],
    reduce_gradients: Reduce | None = None,
    same_eval_batches: bool = True,
    modalities: Sequence[str] | None = None,
    on_stage: Callable[[str, str | None], None] | None = None,
) -> AlterGradients:
    """Lines 2 to 7 of algorithm 1: masking, reactivation and gradients, for each modality in turn.

    The model is put back between the stages and at the end, also after an error (see `preserved`). A and Z are made
    with the same random numbers, so that dropout does not differ. The caller chooses the mode: training, unless batch
    norm should use running statistics, which do not fit a masked model.

    Args:
        parameters: Name in `modules` -> parameter that is scored.
        modules: The model, not wrapped.
        loss: ``loss(batch, masked)``, the training loss with zeros instead of what the modality `masked` gives to the
            fusion (None: all modalities).
        eval_batches: The data D; the loss over D is the mean over its batches. They are read several times.
        reactivation_batches: D_1 to D_B, one step each; they are read once per modality.
        groups: Name -> group, for all parameters of `modules` that are scored or trained.
        make_optimizer: Makes an optimizer of parameters, one per stage; it does not get those of the masked modality.
        reduce_gradients: Averages over processes; None if there is only one.
        same_eval_batches: Whether Z is taken over D, as A is. Otherwise it is taken on D_B alone, which is the letter
            of Eq. 10; the difference between the data is then part of ReRI.
        modalities: Groups that are masked, in this order; None means all but 'fusion', in the order of `groups`.
        on_stage: Called with ``('original', None)``, then with ``('reactivated', masked)`` while the reactivated
            weights are in place, to look at features; what it changes in the model is undone.

    Raises:
        ValueError: If groups or modalities do not fit, a parameter is not one of `modules`, or there are no batches.
        FloatingPointError: If a gradient is not finite.
    """
    chosen = _modalities(groups) if modalities is None else list(modalities)
    _check_inputs(parameters, modules, groups, chosen)
    _check_batches(eval_batches, reactivation_batches)
    report = on_stage or (lambda *_: None)
    with preserved(modules) as snapshot:

        def gradients(scored: Mapping[str, nn.Parameter], batches: Iterable[Any], masked: str | None) -> MeanGradients:
            # Otherwise A and Z would differ by their dropout masks and augmentations, and ReRI, which is what they
            # differ by, would be mostly noise for weights that reactivation hardly moved.
            snapshot.restore_random()
            return mean_gradients(scored, lambda batch: loss(batch, masked), batches, reduce_gradients, _where(masked))

        def stage(masked: str) -> Stage:
            kept = {name: p for name, p in parameters.items() if groups[name] != masked}
            trained = _train_others(modules, groups, masked)
            before = gradients(kept, eval_batches, masked)
            losses, last = train_steps(
                trained,
                lambda batch: loss(batch, masked),
                reactivation_batches,
                make_optimizer(list(trained.values())),
                reduce_gradients,
                f'{_where(masked)}, reactivation',
            )
            if not losses and not same_eval_batches:
                raise ValueError('without reactivation batches there is no D_B: use same_eval_batches')
            return Stage(before, gradients(kept, eval_batches if same_eval_batches else [last], masked), tuple(losses))

        unmasked, stages = gradients(parameters, eval_batches, None), {}
        report('original', None)
        for masked in chosen:
            snapshot.restore()
            stages[masked] = stage(masked)
            report('reactivated', masked)
    return AlterGradients(unmasked, stages)


def _where(masked: str | None) -> str:
    return f'{masked or "no modality"} masked'


def _train_others(modules: nn.Module, groups: Mapping[str, str], masked: str) -> dict[str, nn.Parameter]:
    """Freezes the masked modality, which needs no gradients and would be decayed; returns what is trained."""
    trained = {name: parameter for name, parameter in modules.named_parameters() if parameter.requires_grad}
    for name, parameter in trained.items():
        parameter.requires_grad_(groups[name] != masked)
    return {name: parameter for name, parameter in trained.items() if parameter.requires_grad}


def _modalities(groups: Mapping[str, str]) -> list[str]:
    return [group for group in dict.fromkeys(groups.values()) if group != FUSION]


def _check_inputs(
    parameters: Mapping[str, nn.Parameter], modules: nn.Module, groups: Mapping[str, str], chosen: Sequence[str]
) -> None:
    own = dict(modules.named_parameters(remove_duplicate=False))
    foreign = [name for name, parameter in parameters.items() if own.get(name) is not parameter]
    if foreign or not parameters:
        raise ValueError(f'{shortened(foreign) or "nothing"} to score: not parameters of the model under these names')
    check_groups([*parameters, *(name for name, p in modules.named_parameters() if p.requires_grad)], groups)
    present = ', '.join(sorted(set(groups.values())))
    if len(chosen) < 2 or len(set(chosen)) < len(chosen) or not set(chosen) <= set(groups.values()):
        raise ValueError(f'modalities {chosen}: two or more different groups must be masked; there are {present}')


def _check_batches(*batches: Iterable[Any]) -> None:
    if any(isinstance(several, Iterator) for several in batches):
        raise ValueError('batches are read several times: give lists, or loaders, not iterators')


def modality_gradients(
    model: nn.Module,
    plan: WeightPlan,
    batches: Sequence[Any],
    fusion: FusionMap,
    parameters: Mapping[str, nn.Parameter],
    on_stage: Callable[[str, str | None], None] | None = None,
) -> AlterGradients:
    """`alter_moma_gradients` of a detector: each of its modalities is masked in turn; averaged over all processes.

    Args:
        model: The detector, not wrapped, in training mode.
        plan: The settings of AlterMOMA.
        batches: The first `eval_batches` of the plan are those that gradients are taken on; those of the reactivation
            follow.
        fusion: The model's map.
        parameters: Name -> parameter that is scored.
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
        batches[plan.eval_batches : plan.eval_batches + plan.reactivation_steps],
        parameter_groups(model, fusion),
        plan.make_optimizer,
        reduce_gradients=average,
        same_eval_batches=plan.same_eval_batches,
        modalities=present,
        on_stage=on_stage,
    )
