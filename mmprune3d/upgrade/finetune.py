"""Fine-tuning inside an upgrade: the user's own training, shorter or slower, that goes on where it was interrupted."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.hooks import CheckpointHook, Hook
from mmengine.optim import AmpOptimWrapper
from mmengine.optim.scheduler.param_scheduler import ConstantParamScheduler, LinearParamScheduler
from mmengine.registry import HOOKS, OPTIM_WRAPPERS
from mmengine.runner import Runner
from torch import nn

from mmprune3d.checkpoint.compact import TRAINING_STATE
from mmprune3d.checkpoint.resuming import go_on, newest_whole_checkpoint
from mmprune3d.config_types import dotted, is_a, writable
from mmprune3d.engine.batches import CachedBatches, draw, seeded
from mmprune3d.engine.recalibration import has_batch_norm, recalibrate
from mmprune3d.measure.annotations import missing_named
from mmprune3d.measure.runners import with_own_visualizer
from mmprune3d.pruning import checks
from mmprune3d.pruning.settings import Plan
from mmprune3d.screen import bar

from .configs import with_plan
from .schedules import SHORTEST, scaled, stretched, stretched_hooks
from .steps import Options, Step

if TYPE_CHECKING:  # Python 3.10 has no Self
    from typing import Self

FOLDER = 'finetune'
"""Folder of the training, in that of the upgrade."""
LR_FACTOR = 0.5
"""Learning rate of fine-tuning over that of training: 1e-4 over 2e-4 in the paper (section 4.2)."""


def shortened(config: Config, epochs: int) -> Config:
    """`config` with another number of epochs: schedules of learning rates, momentum and hooks are stretched alike.

    Raises:
        ValueError: If training is not counted in epochs, or a scheduler is unknown or cannot be that short.
    """
    config = copy.deepcopy(config)
    train, whole = config.train_cfg, config.train_cfg.get('max_epochs')
    if not whole:
        raise ValueError(
            'the config trains by iterations: --epochs cannot shorten it; set train_cfg.max_iters, and the counts of '
            'param_scheduler with it, with --cfg-options'
        )
    train.update(max_epochs=epochs, val_interval=min(train.get('val_interval', 1), epochs))
    if train.get('val_begin'):
        train.val_begin = epochs + 1 if train.val_begin > whole else max(round(train.val_begin * epochs / whole), 1)
    if train.get('dynamic_intervals'):  # (from which epoch on, interval)
        train.dynamic_intervals = [
            (max(round(begin * epochs / whole), 1), min(interval, epochs))
            for begin, interval in train.dynamic_intervals
        ]
    config.param_scheduler = stretched(config.get('param_scheduler'), whole, epochs)
    if config.get('custom_hooks'):
        config.custom_hooks = stretched_hooks(config.custom_hooks, whole, epochs)
    return config


def slowed(config: Config, factor: float) -> Config:
    """`config` with learning rates `factor` times as high, those of its schedulers too.

    Raises:
        ValueError: If an optimizer has no learning rate, or a scheduler is unknown.
    """
    config = copy.deepcopy(config)
    for optimizer in optimizers(config):
        optimizer['lr'] *= factor
    config.param_scheduler = scaled(config.get('param_scheduler'), factor)
    return config


def optimizers(config: Config) -> list[Any]:
    """The optimizers of a config, as parts of it: one, or one of each wrapper that a constructor makes.

    Raises:
        ValueError: If the config has no optimizer, or one without a learning rate.
    """
    wrapper = config.get('optim_wrapper') or {}
    parts = [wrapper, *(part for part in wrapper.values() if isinstance(part, Mapping))]
    found = [part['optimizer'] for part in parts if isinstance(part.get('optimizer'), Mapping)]
    if not found:
        raise ValueError(
            'the config has no optim_wrapper with an optimizer: write optim_wrapper=dict(optimizer=dict(type=..., '
            f'lr=...)), or one such dict per name if there are several; optim_wrapper has {sorted(wrapper)}'
        )
    for optimizer in found:
        if not isinstance(optimizer.get('lr'), (int, float)):
            raise ValueError(
                f'optim_wrapper: {dotted(optimizer.get("type"))} has lr={optimizer.get("lr")}: give a number'
            )
    return found


def finetuning(
    config: Config,
    checkpoint: Path,
    work_dir: Path,
    epochs: int | None = None,
    lr_factor: float = LR_FACTOR,
    hooks: Iterable[Mapping[str, Any]] = (),
) -> Config:
    """`config`, set up to fine-tune `checkpoint`; it goes on where an earlier run in `work_dir` stopped.

    Args:
        config: Config of the detector.
        checkpoint: File with the weights to begin with.
        work_dir: Folder of the training.
        epochs: See `shortened`; None means as many as the config trains.
        lr_factor: Learning rate as a multiple of that in the config, see `slowed`.
        hooks: Added to those of the config, as they are.

    Raises:
        ValueError: If the config has no training set, or its schedule cannot be changed as asked, or the earlier run
            was another one.
    """
    if config.get('train_dataloader') is None or config.get('train_cfg') is None:
        raise ValueError('the config has no train_dataloader and train_cfg: there is nothing to fine-tune with')
    config = slowed(config if epochs is None else shortened(config, epochs), lr_factor)
    defaults = config.get('default_hooks') or {}
    saver = defaults.get('checkpoint') or dict(type='CheckpointHook', max_keep_ckpts=2)
    if is_a(saver, CheckpointHook, HOOKS):
        saver = {**saver, 'save_last': True}
    config.default_hooks = {**defaults, 'checkpoint': saver}  # without one, hours of training would leave nothing
    config.custom_hooks = [*(config.get('custom_hooks') or []), *hooks]
    go_on(config, work_dir, checkpoint)
    return writable(with_own_visualizer(config))  # the runner writes it into its folder


def check_device(config: Config) -> None:
    """Refuses AmpOptimWrapper on a CPU, where mmengine 0.10 stops with an AssertionError as the training begins.

    Raises:
        ValueError: If the config has one; the message names what works on a CPU.
    """
    wrapper = config.get('optim_wrapper') or {}
    parts = [wrapper, *(part for part in wrapper.values() if isinstance(part, Mapping))]
    if get_device() == 'cpu' and any(is_a(part.get('type'), AmpOptimWrapper, OPTIM_WRAPPERS) for part in parts):
        raise ValueError(
            "optim_wrapper: AmpOptimWrapper works on a GPU only; on a CPU write type='BFloat16OptimWrapper', or "
            "'OptimWrapper', and leave dtype and loss_scale out"
        )


class WarmUpCheckHook(Hook):
    """Refuses a training so short that a warm-up in it has a single step: mmengine 0.10 never gives the rate back."""

    def before_train(self, runner: Runner) -> None:
        """Looks at the ranges that mmengine has made of parts of epochs."""
        found = runner.param_schedulers or []
        for one in found if isinstance(found, list) else [one for part in found.values() for one in part]:
            factor = getattr(one, 'factor', getattr(one, 'start_factor', 1))
            if isinstance(one, (ConstantParamScheduler, LinearParamScheduler)) and one.end - one.begin < SHORTEST:
                raise ValueError(
                    f'{type(one).__name__} has a single step in so short a training ({runner.max_iters} iterations), '
                    f'and would leave the {one.param_name} at {factor:g} of what it is: train more epochs, or leave '
                    'it out of param_scheduler'
                )


class TrainingBarHook(Hook):
    """A progress bar over the iterations of a fine-tuning, with the loss; what mmengine logs goes on as before."""

    priority = 'LOWEST'

    def before_train(self, runner: Runner) -> None:
        """Opens the bar, at the iteration where an interrupted training goes on."""
        self._bar = bar(total=runner.max_iters, initial=runner.iter, desc='fine-tuning', unit='iteration')

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        """Moves the bar by one iteration."""
        if outputs and 'loss' in outputs:
            self._bar.set_postfix(loss=f'{float(outputs["loss"].detach()):.3g}', refresh=False)
        self._bar.update()

    def after_train(self, runner: Runner) -> None:
        """Closes the bar."""
        self._bar.close()


@dataclass(frozen=True)
class PlanWithFineTuning(Step):
    """A pruning plan, and how the detector is fine-tuned.

    Attributes:
        plan: What to remove.
        epochs: Epochs of fine-tuning; None means as many as the config trains.
        lr_factor: Learning rate as a multiple of that in the config.

    Raises:
        ValueError: If epochs or the factor are not positive.
    """

    options: ClassVar[tuple[str, ...]] = ('epochs', 'lr_factor')

    plan: Plan
    epochs: int | None = None
    lr_factor: float = LR_FACTOR

    def __post_init__(self) -> None:
        if self.epochs is not None:
            object.__setattr__(self, 'epochs', checks.count('epochs', self.epochs, 1))
        object.__setattr__(self, 'lr_factor', checks.number('lr_factor', self.lr_factor, above=0))

    @classmethod
    def parse(cls, plan_type: type[Plan], text: str, options: Options) -> Self:
        """See `Step`; ``epochs`` and ``lr_factor`` may be given."""
        factor = {} if options.lr_factor is None else {'lr_factor': options.lr_factor}
        return cls(plan_type.parse(text), options.epochs, **factor)

    def tuned(self, config: Config, checkpoint: Path, out: Path, hooks: Iterable[Mapping[str, Any]] = ()) -> Config:
        """`config`, set up to fine-tune `checkpoint` in ``out/finetune``; see `finetuning`."""
        return finetuning(config, checkpoint, out / FOLDER, self.epochs, self.lr_factor, hooks)

    def train(self, config: Config, runner_type: type[Runner] = Runner) -> None:
        """Runs the training of a config that `finetuning` made.

        Raises:
            ValueError: Before the first batch, if its epochs have too few iterations for the schedule, its optimizer
                wrapper does not work on this device, or the training set has no annotations.
        """
        check_device(config)
        runner = runner_type.from_cfg(copy.deepcopy(config))
        if self.epochs is not None:
            runner.register_hook(WarmUpCheckHook())
        runner.register_hook(TrainingBarHook())
        with missing_named('training', 'Give an ann_file with annotations in train_dataloader.dataset'):
            runner.train()

    def finished(self, out: Path) -> dict[str, Any]:
        """The checkpoint of a training in ``out/finetune`` that has ended, with the plan in its meta.

        Returns:
            The checkpoint, without what only resuming needs.

        Raises:
            FileNotFoundError: If the training left none.
        """
        work_dir = out / FOLDER
        last = newest_whole_checkpoint(work_dir)
        if last is None:
            raise FileNotFoundError(f'{work_dir}: the fine-tuning left no checkpoint; does the config save any?')
        data = torch.load(last, map_location='cpu', weights_only=True)
        return with_plan({name: value for name, value in data.items() if name not in TRAINING_STATE}, self.plan)

    def settled(self, model: nn.Module, config: Config, batches: int, seed: int = 0) -> bool:
        """Estimates batch norm anew, in place: with the usual momentum of 0.01 it lags by 100 iterations.

        Args:
            model: The fine-tuned model.
            config: A config with the training set.
            batches: On how many batches of it; 0 leaves the statistics alone.
            seed: Decides which batches, and their augmentations.

        Returns:
            Whether there is any batch norm.
        """
        if not batches or not has_batch_norm(model):
            return False
        raw = draw(Runner.build_dataloader(config.train_dataloader, seed=seed), batches, seed)
        with seeded(seed):
            recalibrate(model, CachedBatches(raw, model.get_submodule('data_preprocessor'), seed))
        return True

    def to_dict(self) -> dict[str, Any]:
        """The plan and the settings of fine-tuning, as plain types."""
        return {**self.plan.to_dict(), 'finetune_epochs': self.epochs, 'lr_factor': self.lr_factor}
