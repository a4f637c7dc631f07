"""AlterMOMA: pruning fusion models by alternative modality masking (section 3, appendices A to D, algorithm 1).

What one sensor's stream does again once the other sensor is gone was redundant while both were there. So each modality
is masked in turn, the rest is trained for some steps, and weights are scored by what they contribute to the whole model
(DeCI) minus what they do when they are needed as a substitute (ReRI)::

    gradients = alter_moma_gradients(parameters, model, loss, eval_batches, batches, groups, plan.make_optimizer)
    scores = alter_moma_scores(parameters, gradients, groups, alpha=plan.alpha, beta=plan.beta)
    masks = keep_masks(scores, plan.sparsity)

Readings of the paper where it errs or is silent: masks are reset between the stages; the highest (1 - sparsity) N
scores stay (Eq. 2; algorithm 1 has the percentile the other way round); DeCI is taken without any mask; all gradients
are multiplied by the initial weights; absolute values come after the mean over batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from . import checks
from .alter_eva import (
    REDUCTIONS,
    AlterGradients,
    PerChannel,
    Stage,
    alter_eva,
    alter_moma_scores,
    check_groups,
    contribution,
    per_weight,
    redundancy,
)
from .gradients import MeanGradients, Reduce, mean_gradients, preserved, shortened, train_steps
from .settings import Plan
from .thresholds import SCOPES

__all__ = [
    'AlterGradients',
    'AlterMOMAPlan',
    'PerChannel',
    'Stage',
    'alter_eva',
    'alter_moma_gradients',
    'alter_moma_scores',
    'contribution',
    'per_weight',
    'redundancy',
]
FUSION = 'fusion'
"""The group that is never masked, unless modalities are given by name."""


@dataclass(frozen=True)
class AlterMOMAPlan(Plan):
    """How much of a fusion model goes, and by which scores.

    Exactly one of `sparsity`, `flops` and `params` is given; all are shares that go, 0 <= share < 1.

    Attributes:
        sparsity: Share of the prunable weights, or with `mode='channels'` of the channels.
        flops: Share of the FLOPs, by removing channels.
        params: Share of the parameters, by removing channels.
        mode: 'unstructured' (single weights) or 'channels'; None means what the target needs.
        criterion: What ranks: 'altermoma', or one to compare with. 'magnitude' with `rounds` is IMP.
        scope: Ranking over all weights together (section 3.2), or in each group or layer; see `keep_masks`.
        min_keep: What stays in every layer at least, a number or a share; None means 0 weights, or 1 channel.
        protected: Parts that lose nothing, as beginnings of parameter names.
        alpha: Weight of DeCI (Eq. 11).
        beta: Weight of ReRI.
        reduce: How the terms of a channel are combined, see `PerChannel`.
        dead_lowest: Whether what contributes exactly nothing goes first; None means for channels only.
        reactivation_steps: B, training steps per masked modality; ProsPr's inner steps. None means 100; 3 for ProsPr.
        optimizer: Of the reactivation: 'adamw' (without weight decay) or 'sgd'. ProsPr always has SGD.
        lr: Its learning rate.
        eval_batches: K, batches that each gradient is averaged over.
        same_eval_batches: Whether the gradients before and after reactivation are from the same batches.
        mask_cross_modal_inputs: Whether a masked modality's raw data are hidden from the other streams too.
        rounds: Steps in which the target is reached. None means 100 for SynFlow, 1 for the others.
        seed: Of 'random', and of the batches.
    """

    method: ClassVar[str] = 'altermoma'
    title: ClassVar[str] = 'AlterMOMA'
    example: ClassVar[str] = 'sparsity=0.8'
    purpose: ClassVar[str] = 'how much goes'
    lists: ClassVar[tuple[str, ...]] = ('protected',)
    targets: ClassVar[tuple[str, ...]] = ('sparsity', 'flops', 'params')
    modes: ClassVar[tuple[str, ...]] = ('unstructured', 'channels')
    criteria: ClassVar[tuple[str, ...]] = ('altermoma', 'prospr', 'snip', 'synflow', 'magnitude', 'random')
    optimizers: ClassVar[tuple[str, ...]] = ('adamw', 'sgd')

    sparsity: float | None = None
    flops: float | None = None
    params: float | None = None
    mode: str | None = None
    criterion: str = 'altermoma'
    scope: str = 'global'
    min_keep: int | float | None = None
    protected: tuple[str, ...] = ()
    alpha: float = 1.0
    beta: float = 1.0
    reduce: str = 'dot'
    dead_lowest: bool | None = None
    reactivation_steps: int | None = None
    optimizer: str = 'adamw'
    lr: float = 1e-4
    eval_batches: int = 8
    same_eval_batches: bool = True
    mask_cross_modal_inputs: bool = False
    rounds: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        protected = (self.protected,) if isinstance(self.protected, str) else self.protected
        what = "a list of beginnings of parameter names, such as ['bbox_head']"
        self.set('protected', checks.texts(f'{self.title}: protected', protected, what, least=0))
        self._check_target()
        channels = self.mode == 'channels'
        self._default('min_keep', 1 if channels else 0)
        self._default('dead_lowest', channels)
        self._default('reactivation_steps', 3 if self.criterion == 'prospr' else 100)
        self._default('rounds', 100 if self.criterion == 'synflow' else 1)
        for name, valid in (
            ('criterion', self.criteria), ('scope', SCOPES), ('reduce', REDUCTIONS), ('optimizer', self.optimizers)
        ):  # fmt: skip
            self.check_choice(name, valid)
        for name, least in (('reactivation_steps', 0), ('eval_batches', 1), ('rounds', 1)):
            self.check_count(name, least)
        self.check_seed('seed')
        for name in ('dead_lowest', 'same_eval_batches', 'mask_cross_modal_inputs'):
            self._make_bool(name)
        for name in ('alpha', 'beta', 'lr'):
            self.check_number(name)
        if isinstance(self.min_keep, float):  # a share; 1.0 might be meant as 1
            self.check_number('min_keep', most=1, below=True)
        else:
            self.check_count('min_keep')
        if not self.reactivation_steps and not self.same_eval_batches:
            raise ValueError(f'{self.title}: reactivation_steps=0 leaves no batch for same_eval_batches=False')

    def _check_target(self) -> None:
        given = [name for name in self.targets if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f'{self.title}: give exactly one of {", ".join(self.targets)}, {self.purpose} (example: {self.example})'
                + (f', not {" and ".join(given)}' if given else '')
            )
        kind, share = self.target
        if not checks.is_number(share) or not 0 <= share < 1:
            raise ValueError(f'{self.title}: {kind}={checks.shown(share)} must be a share that goes, from 0 to below 1')
        self._default('mode', 'unstructured' if kind == 'sparsity' else 'channels')
        self.check_choice('mode', self.modes)
        if self.mode == 'unstructured' and kind != 'sparsity':
            raise ValueError(f"{self.title}: {kind}={share} needs mode='channels': zeros among weights save none")

    def _default(self, name: str, value: Any) -> None:
        if getattr(self, name) is None:
            self.set(name, value)

    def _make_bool(self, name: str) -> None:
        """Text has no booleans."""
        value = getattr(self, name)
        word = value.lower() if isinstance(value, str) else value
        if isinstance(word, float) or word not in ('true', '1', 1, 'false', '0', 0):
            raise ValueError(f'{self.title}: {name}={checks.shown(value)}; valid are true, false')
        self.set(name, word in ('true', '1', 1))

    @property
    def target(self) -> tuple[str, float]:
        """Which of `targets` is given, and the share that goes."""
        return next((name, getattr(self, name)) for name in self.targets if getattr(self, name) is not None)

    def make_optimizer(self, parameters: list[nn.Parameter]) -> Optimizer:
        """The optimizer of the reactivation, without weight decay and momentum of SGD."""
        if self.optimizer == 'sgd':
            return torch.optim.SGD(parameters, lr=self.lr)
        return torch.optim.AdamW(parameters, lr=self.lr, weight_decay=0.0)


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

    The model is put back between the stages and at the end, also after an error: parameters, all buffers, gradients,
    random generators, the flags `training` and `requires_grad`. A and Z are made with the same random numbers, so that
    dropout does not differ. Modes are the caller's: `train()`, unless batch norm should use statistics that do not fit
    a masked model.

    Args:
        parameters: Name in `modules` -> parameter that is scored.
        modules: The model, not wrapped.
        loss: ``loss(batch, masked)``, the training loss with zeros instead of what the modality `masked` gives to the
            fusion (None: all modalities).
        eval_batches: The data D; the loss over D is the mean over its batches. Read several times.
        reactivation_batches: D_1 to D_B, one step each. Read once per modality.
        groups: Name -> group, for all parameters of `modules` that are scored or trained.
        make_optimizer: From parameters to an optimizer, one per stage; those of the masked modality are not in it.
        reduce_gradients: Averages over processes.
        same_eval_batches: Z is taken over D, as A is; otherwise on D_B alone (the letter of Eq. 10; ReRI then also has
            the difference between the data).
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
    """Freezes the masked modality: optimizers would decay it, and it needs no gradients. The others are returned."""
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
