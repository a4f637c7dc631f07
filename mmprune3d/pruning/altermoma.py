"""AlterMOMA: pruning fusion models by alternative modality masking (section 3, appendices A to D, algorithm 1).

What the stream of one sensor takes over once the other sensor is gone was redundant while both were there. So each
modality is masked in turn, the rest is trained for some steps, and weights are scored by what they contribute to the
whole model (DeCI) minus what they do when they are needed as a substitute (ReRI)::

    gradients = alter_moma_gradients(parameters, model, loss, eval_batches, batches, groups, plan.make_optimizer)
    scores = alter_moma_scores(parameters, gradients, groups, alpha=plan.alpha, beta=plan.beta)
    masks = keep_masks(scores, plan.sparsity)

The first line trains, and is part of `mmprune3d.engine.altermoma`; the others are pure functions.

Readings of the paper where it errs or is silent: masks are reset between the stages; the highest (1 - sparsity) N
scores stay (Eq. 2; algorithm 1 has the percentile the other way round); DeCI is taken without any mask; all gradients
are multiplied by the initial weights; absolute values come after the mean over batches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from torch.optim import Optimizer

from . import checks
from .alter_eva import (
    REDUCTIONS,
    AlterGradients,
    PerChannel,
    Stage,
    alter_eva,
    alter_moma_scores,
    contribution,
    per_weight,
    redundancy,
)
from .settings import Plan
from .thresholds import SCOPES

__all__ = [
    'AlterGradients',
    'AlterMOMAPlan',
    'PerChannel',
    'Stage',
    'WeightPlan',
    'alter_eva',
    'alter_moma_scores',
    'contribution',
    'per_weight',
    'redundancy',
]


@dataclass(frozen=True)
class WeightPlan(Plan):
    """Which share of a model's weights or channels is removed, and by which scores.

    Exactly one of `sparsity`, `flops` and `params` is given. All three are shares that are removed, 0 <= share < 1.

    Attributes:
        sparsity: Share of the prunable weights, or with `mode='channels'` of the channels.
        flops: Share of the FLOPs, by removing channels.
        params: Share of the parameters, by removing channels.
        mode: 'unstructured' removes single weights, 'channels' whole channels. None chooses what the target needs.
        criterion: What ranks the weights: 'altermoma', which needs a detector that fuses sensors, or one of those that
            it is compared with: 'prospr', 'snip', 'synflow', 'magnitude' (with `rounds` it is IMP), 'random'.
        scope: Whether all weights are ranked together, 'global' (section 3.2), or those of each group, 'per_group', or
            of each layer, 'per_layer'; see `keep_masks`.
        min_keep: What every layer keeps at least: a number, or a share below 1. None means 0 weights, or 1 channel.
        protected: Parts that lose nothing, as beginnings of parameter names.
        alpha: Factor of DeCI (Eq. 11).
        beta: Factor of ReRI (Eq. 11).
        reduce: How the terms of a channel are combined; see `PerChannel`.
        dead_lowest: Whether weights that contribute exactly nothing are removed first. None means yes for channels, no
            for single weights.
        reactivation_steps: B, the training steps while a modality is masked; the inner steps of ProsPr. None means 100,
            or 3 for ProsPr.
        optimizer: The optimizer of the reactivation: 'adamw' (without weight decay) or 'sgd'. ProsPr always uses SGD.
        lr: The learning rate of these steps.
        eval_batches: K, the number of batches that each gradient is averaged over.
        same_eval_batches: Whether the gradients before and after the reactivation are taken on the same batches.
        mask_cross_modal_inputs: Whether the raw data of a masked modality are hidden from the other streams too.
        rounds: Steps in which the target is reached. None means 100 for SynFlow, 1 for the others.
        seed: The seed of 'random', and of the batches.
    """

    method: ClassVar[str] = 'altermoma'
    title: ClassVar[str] = 'Weight pruning'
    example: ClassVar[str] = 'sparsity=0.8'
    purpose: ClassVar[str] = 'how much is removed'
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
        self._default('min_keep', 1 if channels else 0)  # a layer may be all zeros, but it cannot have no channel
        # The scores of a sensor's group sum to zero, so that a channel that does nothing, with its 0, would rank above
        # about half of all. Single weights follow the letter of the paper.
        self._default('dead_lowest', channels)
        # The paper does not say how many steps it takes; 3 are those of ProsPr's code.
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
        # The letter of Eq. 10 takes Z on D_B, the last batch of the reactivation.
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
            raise ValueError(f'{self.title}: {kind}={checks.shown(share)} must be a share to remove, from 0 to below 1')
        self._default('mode', 'unstructured' if kind == 'sparsity' else 'channels')
        self.check_choice('mode', self.modes)
        if self.mode == 'unstructured' and kind != 'sparsity':
            raise ValueError(f"{self.title}: {kind}={share} needs mode='channels': zeros among weights save none")

    def _default(self, name: str, value: Any) -> None:
        if getattr(self, name) is None:
            self.set(name, value)

    def _make_bool(self, name: str) -> None:
        """Takes 'true' and 'false' for what they say: plans are also parsed from text, which has no booleans."""
        value = getattr(self, name)
        word = value.lower() if isinstance(value, str) else value
        if isinstance(word, float) or word not in ('true', '1', 1, 'false', '0', 0):
            raise ValueError(f'{self.title}: {name}={checks.shown(value)}; valid are true, false')
        self.set(name, word in ('true', '1', 1))

    @property
    def target(self) -> tuple[str, float]:
        """Which of `targets` is given, and the share that is removed."""
        return next((name, getattr(self, name)) for name in self.targets if getattr(self, name) is not None)

    def make_optimizer(self, parameters: list[nn.Parameter]) -> Optimizer:
        """The optimizer of the reactivation.

        It has neither momentum (SGD) nor weight decay: a step is then the gradient of the masked loss alone, which is
        what the derivation of ReRI assumes (appendix A).
        """
        if self.optimizer == 'sgd':
            return torch.optim.SGD(parameters, lr=self.lr)
        return torch.optim.AdamW(parameters, lr=self.lr, weight_decay=0.0)


AlterMOMAPlan = WeightPlan
"""The same plan by the name of its default criterion, which checkpoints and older code use."""
