"""What the hooks of all methods that prune keys have in common, and how pruning grows over a training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmprune3d import adapters
from mmprune3d.engine.unwrap import unwrap
from mmprune3d.pruning import checks
from mmprune3d.pruning.key_plan import KeyPlan
from mmprune3d.pruning.schedules import heated
from mmprune3d.pruning.settings import names

from .single import check_single


class KeyPruningHook(Hook):
    """Attaches a plan to the model while it is validated or tested, and if wanted while it trains.

    The adapter of the detector's family says where the plan is attached, the plan says what is removed, and this hook
    says when. Each method has a subclass, whose arguments are the settings of its plan.

    Args:
        plan: The plan to attach.
        train: How pruning grows during training, as a dict of the settings of `TrainingSchedule`, for example
            ``dict(warmup=1, heating=2)``; None: training is not pruned.

    Raises:
        ValueError: For a second hook that prunes keys, for a model without a decoder that an adapter knows, for
            settings that do not fit the decoder, and for a training that ends before pruning begins.
        RuntimeError: When an epoch of validation or test ends in which nothing was pruned although the plan says so.
    """

    priority = 'LOW'
    prunes_tests: ClassVar[bool] = True
    """A model that is tested with this hook is pruned; see `measure.baseline`."""

    def __init__(self, plan: KeyPlan, train: Mapping[str, Any] | None = None) -> None:
        self.plan = plan
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
        """Attaches the plan to the model before it is validated."""
        adapters.attach(unwrap(runner.model), self.plan)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Checks that keys were pruned, then detaches."""
        model = unwrap(runner.model)
        adapters.check_pruned(model, self.plan)
        adapters.detach(model)

    def before_test_epoch(self, runner: Runner) -> None:
        """Attaches the plan, as before a validation."""
        self.before_val_epoch(runner)

    def after_test_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Checks that keys were pruned, then detaches."""
        self.after_val_epoch(runner)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: dict | None = None) -> None:
        """Attaches the share of the plan that this iteration prunes; the first iteration also checks its counts."""
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
        """Stores the plan in the meta of the checkpoint."""
        checkpoint['meta'].setdefault('mmprune3d', {})[self.plan.method] = self.plan.to_dict()


@dataclass(frozen=True)
class TrainingSchedule:
    """Which share of a plan is pruned in an iteration of training (appendix D.4 and the official training hook).

    Nothing is removed during `warmup`, then linearly more during `heating`, then everything; see `heated`. Only the
    number of removed keys grows, the other settings of the plan hold from the beginning.

    Attributes:
        warmup: Length of the training before pruning begins, in epochs (in iterations with ``by_epoch=False``).
        heating: Length of the training over which pruning grows linearly to the full plan, in the same unit.
        by_epoch: Whether the lengths are in epochs rather than iterations.

    Raises:
        ValueError: If a number is negative or not finite, or `by_epoch` is not a bool.
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
        """A schedule from the argument `train` of a hook.

        Raises:
            ValueError: If `data` is not a dict, or a setting is unknown.
        """
        return cls(**checks.settings('train', data, names(cls), 'dict(warmup=1, heating=2)'))

    def share(self, iteration: int, iterations_per_epoch: int) -> float:
        """The share (0..1) of the plan in iteration `iteration`, counted from 0 over the whole training."""
        unit = iterations_per_epoch if self.by_epoch else 1
        return heated(iteration, round(self.warmup * unit), round(self.heating * unit))
