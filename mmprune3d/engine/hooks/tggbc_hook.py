"""Key pruning as three lines in a config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from mmprune3d import adapters
from mmprune3d.engine.unwrap import unwrap
from mmprune3d.pruning import checks
from mmprune3d.pruning.key_plan import KeyPlan, TgGBCPlan, ToMePlan
from mmprune3d.pruning.schedules import heated

from .single import check_single


class KeyPruningHook(Hook):
    """Attaches a plan to the model while it is validated or tested, and if wanted while it trains.

    What attaches where is the adapter's business, what is removed the plan's; this hook only says when.

    Args:
        train: None to train unpruned, or ``dict(warmup=W, heating=H)``: nothing is removed in the first W units of
            training, then linearly more over H units, then everything (appendix D.4 and the official training hook).
            ``by_epoch=True`` (the default) counts in epochs, False in iterations. Only r is spread over training.
        **plan: The settings of the plan.

    Raises:
        ValueError: For unknown settings, for a second hook that prunes keys, for a model without a decoder that an
            adapter knows, for settings that do not fit the decoder, and for a training that ends before pruning begins.
        RuntimeError: When an epoch of validation or test ends in which nothing was pruned although the plan says so.
    """

    priority = 'LOW'
    prunes_tests: ClassVar[bool] = True
    """A model that is tested with this hook is pruned; see `measure.baseline`."""
    plan_type: ClassVar[type[KeyPlan]]

    def __init__(self, train: dict | None = None, **plan: Any) -> None:
        self.plan = self.plan_type.from_dict(plan)
        self.train = None if train is None else TrainingSchedule.from_dict(train)
        self._checking: Any = None  # a handle in the first iteration, then False
        if self.train is not None and getattr(self.plan, 'q', 0):
            raise ValueError(f'{self.plan.title}: q={self.plan.q} cannot be trained with: the losses need all queries')

    def before_run(self, runner: Runner) -> None:
        """Checks that no other hook prunes keys; GPQHook prunes queries and may be there."""
        check_single(runner, KeyPruningHook, 'prune keys')

    def before_train(self, runner: Runner) -> None:
        """Checks before hours of training that the plan fits the model, and that some of it will be pruned.

        A plan for validation alone is checked as well: it would stop the run after its first epoch.
        """
        model = unwrap(runner.model)
        if self.train is not None or not adapters.is_attached(model):  # what somebody attached to train with stays
            adapters.attach(model, self.plan)
            adapters.detach(model)
        if self.train is None:
            return
        if not self.train.share(runner.max_iters - 1, len(runner.train_dataloader)):
            raise ValueError(
                f'{self.plan.title}: {runner.max_iters} iterations of training end before {self.train} begins: '
                'warmup must be shorter'
            )

    def before_val_epoch(self, runner: Runner) -> None:
        """Attaches the plan."""
        adapters.attach(unwrap(runner.model), self.plan)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Checks that keys were pruned, then detaches."""
        model = unwrap(runner.model)
        adapters.check_pruned(model, self.plan)
        adapters.detach(model)

    def before_test_epoch(self, runner: Runner) -> None:
        """Attaches the plan."""
        self.before_val_epoch(runner)

    def after_test_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Checks that keys were pruned, then detaches."""
        self.after_val_epoch(runner)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: dict | None = None) -> None:
        """Attaches the share of the plan that this iteration prunes; in the first one its keys are counted as well."""
        if self._checking is None:
            self._checking = adapters.check_in_passing(unwrap(runner.model), self.plan) or False
        if self.train is None:
            return
        share = self.train.share(runner.iter, len(runner.train_dataloader))
        plan = self.plan.scaled(share)
        if plan.removes:
            adapters.attach(unwrap(runner.model), plan)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None, outputs: dict | None = None
    ) -> None:
        """Detaches: between iterations the model is what it was, so that other hooks may save or evaluate it."""
        if self._checking:
            self._checking.remove()
            self._checking = False
        if self.train is not None:
            adapters.detach(unwrap(runner.model))

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """The plan travels with the checkpoint."""
        checkpoint['meta'].setdefault('mmprune3d', {})[self.plan.method] = self.plan.to_dict()


@dataclass(frozen=True)
class TrainingSchedule:
    """How much of a plan is pruned in an iteration; see `heated`.

    Attributes:
        warmup: Units of training without pruning.
        heating: Units over which pruning grows to the full plan.
        by_epoch: Units are epochs; otherwise iterations.

    Raises:
        ValueError: If a number is negative or not finite, or `by_epoch` no bool.
    """

    warmup: float = 1
    heating: float = 2
    by_epoch: bool = True

    def __post_init__(self) -> None:
        for name in ('warmup', 'heating'):
            object.__setattr__(self, name, checks.number(f'train: {name}', getattr(self, name), most=checks.MOST))
        object.__setattr__(self, 'by_epoch', checks.flag('train: by_epoch', self.by_epoch))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TrainingSchedule:
        """A schedule from a config.

        Raises:
            ValueError: If it is no dict, or a setting is unknown.
        """
        valid = [field.name for field in fields(cls)]
        return cls(**checks.settings('train', data, valid, 'dict(warmup=1, heating=2)'))

    def share(self, iteration: int, iterations_per_epoch: int) -> float:
        """The share (0..1) of the plan in iteration `iteration`, counted from 0 over the whole training."""
        unit = iterations_per_epoch if self.by_epoch else 1
        return heated(iteration, round(self.warmup * unit), round(self.heating * unit))


@HOOKS.register_module()
class TgGBCHook(KeyPruningHook):
    """tgGBC: prunes the keys at which confident queries look least (paper section 3.3).

    Settings of the plan: see ``TgGBCPlan``.
    """

    plan_type = TgGBCPlan


@HOOKS.register_module()
class ToMeHook(KeyPruningHook):
    """ToMe: merges the keys that are most alike, the method that tgGBC is compared with (paper section 4.3).

    Settings of the plan: see ``ToMePlan``.
    """

    plan_type = ToMePlan
