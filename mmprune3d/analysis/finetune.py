"""Fine-tuning inside an upgrade: GPQ on the user's own config, then the small model."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.runner import Runner

from mmprune3d.checkpoint.compact import TRAINING_STATE
from mmprune3d.pruning.gpq import GPQPlan

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


def gpq_config(
    config: Config,
    checkpoint: Path,
    plan: GPQPlan,
    work_dir: Path,
    epochs: int | None = None,
    lr_factor: float = LR_FACTOR,
) -> Config:
    """`config`, set up to fine-tune `checkpoint` while queries go; goes on where an earlier run in `work_dir` stopped.

    Raises:
        ValueError: If the config has no training set, or has a GPQHook already.
    """
    if config.get('train_dataloader') is None or config.get('train_cfg') is None:
        raise ValueError('the config has no train_dataloader and train_cfg: there is nothing to fine-tune with')
    if any(hook['type'] == GPQ_HOOK for hook in config.get('custom_hooks') or []):
        raise ValueError(
            f'the config has a {GPQ_HOOK} already: train it with tools/train.py, then use tools/compact.py'
        )
    config = copy.deepcopy(config) if epochs is None else shortened(config, epochs)
    config.custom_hooks = [*(config.get('custom_hooks') or []), dict(plan.to_dict(), type=GPQ_HOOK)]
    config.optim_wrapper.optimizer.lr *= lr_factor
    config.work_dir = str(work_dir)
    config.resume = (work_dir / 'last_checkpoint').is_file()
    # mmengine would resume from load_from, not from the last checkpoint
    config.load_from = None if config.resume else str(checkpoint)
    return config


def prune_queries(
    config: Config, checkpoint: Path, plan: GPQPlan, out: Path, epochs: int | None = None, lr_factor: float = LR_FACTOR
) -> Compacted:
    """Fine-tunes with GPQ and compacts.

    Args:
        config: Of the unpruned detector.
        checkpoint: Its weights.
        plan: What to remove.
        out: Folder; the training runs in ``out/finetune``, and a second call goes on there.
        epochs: Epochs of fine-tuning; None means as many as the config trains.
        lr_factor: Times the learning rate of the config.

    Raises:
        ValueError: If config or plan do not fit.
    """
    tuned = gpq_config(config, checkpoint, plan, out / 'finetune', epochs, lr_factor)
    Runner.from_cfg(copy.deepcopy(tuned)).train()
    last = Path((out / 'finetune' / 'last_checkpoint').read_text().strip())
    data: dict[str, Any] = torch.load(last, map_location='cpu', weights_only=True)
    small = compact(tuned, data, (plan.target,), TRAINING_STATE)[0]
    config = copy.deepcopy(config)  # as the user has it, but for the number of queries
    config.model = small.config.model
    return Compacted(small.num_queries, config, small.checkpoint)
