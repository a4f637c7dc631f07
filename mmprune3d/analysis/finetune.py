"""Fine-tuning inside an upgrade: GPQ on the user's own config, then the small model."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.runner import Runner

from mmprune3d.checkpoint.compact import TRAINING_STATE
from mmprune3d.checkpoint.resuming import go_on, newest_whole_checkpoint
from mmprune3d.pruning import checks
from mmprune3d.pruning.gpq import GPQPlan
from mmprune3d.pruning.settings import Plan

from .compact import GPQ_HOOK, Compacted, compact

LR_FACTOR = 0.5
"""Learning rate of fine-tuning over that of training: 1e-4 over 2e-4 in the paper (section 4.2)."""


def shortened(config: Config, epochs: int) -> Config:
    """`config` with another number of epochs; schedules that are counted in epochs are stretched alike.

    Raises:
        ValueError: If training is not counted in epochs.
    """
    config = copy.deepcopy(config)
    whole = config.train_cfg.get('max_epochs')
    if not whole:
        raise ValueError('the config trains by iterations: set train_cfg.max_iters with --cfg-options, not --epochs')
    config.train_cfg.update(max_epochs=epochs, val_interval=min(config.train_cfg.get('val_interval', 1), epochs))
    schedulers = config.get('param_scheduler') or []
    for scheduler in schedulers if isinstance(schedulers, list) else [schedulers]:
        if scheduler.get('by_epoch', True):
            for name in ('begin', 'end', 'T_max'):
                if name in scheduler:
                    scheduler[name] = round(scheduler[name] * epochs / whole)
            if 'milestones' in scheduler:
                scheduler.milestones = [round(epoch * epochs / whole) for epoch in scheduler.milestones]
    return config


def finetuning(
    config: Config, checkpoint: Path, work_dir: Path, epochs: int | None = None, lr_factor: float = LR_FACTOR
) -> Config:
    """`config`, set up to fine-tune `checkpoint`; it goes on where an earlier run in `work_dir` stopped.

    Args:
        config: Of the detector.
        checkpoint: Its weights.
        work_dir: Folder of the training.
        epochs: See `shortened`; None means as many as the config trains.
        lr_factor: Times the learning rate of the config.

    Raises:
        ValueError: If the config has no training set.
    """
    if config.get('train_dataloader') is None or config.get('train_cfg') is None:
        raise ValueError('the config has no train_dataloader and train_cfg: there is nothing to fine-tune with')
    config = copy.deepcopy(config) if epochs is None else shortened(config, epochs)
    config.optim_wrapper.optimizer.lr *= lr_factor
    go_on(config, work_dir, checkpoint)
    return config


@dataclass(frozen=True)
class PlanWithFineTuning:
    """A pruning plan, and how the detector is fine-tuned.

    Attributes:
        plan: What to remove.
        epochs: Epochs of fine-tuning; None means as many as the config trains.
        lr_factor: Times the learning rate of the config.

    Raises:
        ValueError: If epochs or the factor are not positive.
    """

    plan: Plan
    epochs: int | None = None
    lr_factor: float = LR_FACTOR

    def __post_init__(self) -> None:
        if self.epochs is not None:
            object.__setattr__(self, 'epochs', checks.count('epochs', self.epochs, 1))
        object.__setattr__(self, 'lr_factor', checks.number('lr_factor', self.lr_factor, above=0))

    def to_dict(self) -> dict[str, Any]:
        """Plain types."""
        return {**self.plan.to_dict(), 'finetune_epochs': self.epochs, 'lr_factor': self.lr_factor}


@dataclass(frozen=True)
class QueryPruning(PlanWithFineTuning):
    """GPQ on a trained detector."""

    plan: GPQPlan

    def config(self, config: Config, checkpoint: Path, work_dir: Path) -> Config:
        """`config`, set up to fine-tune while queries go; it goes on where an earlier run in `work_dir` stopped.

        Raises:
            ValueError: If the config has no training set, or has a GPQHook already.
        """
        if any(hook['type'] == GPQ_HOOK for hook in config.get('custom_hooks') or []):
            raise ValueError(f'the config has a {GPQ_HOOK} already: use tools/train.py, then tools/compact.py')
        config = finetuning(config, checkpoint, work_dir, self.epochs, self.lr_factor)
        hook = {name: value for name, value in self.plan.to_dict().items() if name != 'method'}
        config.custom_hooks = [*(config.get('custom_hooks') or []), dict(type=GPQ_HOOK, **hook)]
        return config

    def run(self, config: Config, checkpoint: Path, out: Path) -> Compacted:
        """Fine-tunes and compacts.

        Args:
            config: Of the unpruned detector.
            checkpoint: Its weights.
            out: Folder; the training runs in ``out/finetune``, and a second call goes on there.

        Returns:
            The small detector, with the user's config but for the number of queries.

        Raises:
            ValueError: If config or plan do not fit.
        """
        tuned = self.config(config, checkpoint, out / 'finetune')
        Runner.from_cfg(copy.deepcopy(tuned)).train()
        last = newest_whole_checkpoint(out / 'finetune')
        data = torch.load(last, map_location='cpu', weights_only=True)
        small = compact(tuned, data, (self.plan.target,), TRAINING_STATE)[0]
        config = copy.deepcopy(config)
        config.model = small.config.model
        return Compacted(small.num_queries, config, small.checkpoint)
