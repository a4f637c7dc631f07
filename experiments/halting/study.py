"""The accuracy study of token halting on synthetic data: one SST, made faster in every way of the paper.

What follows the paper (Dynamic Token Halting, Figure 2, Tables 4 and 5, section A.2.2): the methods, their settings and
the ablations; mean sparsities of 0.75, 0.82, 0.89 and 0.95, by bounds on both modules; heads of an inner width of their
own for width and head scaling; A-ViT with recycling and 32 features for its scores; the one-cycle schedule; training on
the differentiable path, tests on the sparse one; accuracy against the measured speed-up of the backbone.

What does not: every row starts from the same converged SST and is fine-tuned for 256 iterations, where the paper trains
each from scratch for 24 epochs. Width and head scaling start from the weights of that SST, sliced. All rows, and the
unhalted control, train equally long on the same samples with the same rates. The bounds of a module are equal, so that
sparsity is what the row says in every sample. A-ViT decides after every block, and its scores are shifted to halt from
the start, as it would not learn that in time. The detector is small (tokens of 64 features with 4 heads instead of 128
with 8, a U-Net of half the width, 128 x 128 pillars), times are those of the device in the table, data are synthetic.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from torch import Tensor, nn

from experiments.study import WEIGHTS, Result, Study, dataset_length, estimate_norms, save_weights, tester, train
from mmprune3d.checkpoint.read import read_checkpoint
from mmprune3d.checkpoint.resuming import go_on
from mmprune3d.checkpoint.scale_attention import keep_head_channels, keep_heads
from mmprune3d.engine.halting import grid_of, listening
from mmprune3d.inspect.halting import HaltingStatistics
from mmprune3d.measure.accuracy import evenly_spaced, figures_of_row
from mmprune3d.pruning.halting import HaltingRecord

from .rows import RUNS, HaltingRow, row_config

ITERATIONS = 256
BATCH_SIZE = 4
"""One pass over so many samples, evenly spread over the training set: neighbours in a scene are alike."""
LR = 1e-3
"""The highest one; half of that which trained the SST."""
RECALIBRATION_BATCHES = 16
SAVE_EVERY = 128
"""Iterations between two checkpoints."""


def training_config(base: Config, row: HaltingRow, start: Path, seed: int, work_dir: Path) -> Config:
    """The config of a training.

    Args:
        base: Config of the SST without halting.
        row: The training.
        start: Weights to start from, see `start_of`.
        seed: Seed of data order, augmentation and new modules.
        work_dir: Folder of the training; an interrupted one goes on there.
    """
    config = row_config(base, row)
    config.train_dataloader.dataset.indices = evenly_spaced(dataset_length(base), ITERATIONS * BATCH_SIZE)
    config.train_dataloader.batch_size = BATCH_SIZE
    config.optim_wrapper.optimizer.lr = LR
    cycle = dict(eta_max=LR, pct_start=0.1, total_steps=ITERATIONS, by_epoch=False)
    config.param_scheduler = [dict(type='OneCycleLR', **cycle)]
    # iterations, as an epoch cannot be resumed in the middle; tested apart from it
    config.train_cfg = dict(
        type='IterBasedTrainLoop', max_iters=ITERATIONS, val_begin=ITERATIONS + 1, val_interval=ITERATIONS + 1
    )
    config.log_processor = dict(type='LogProcessor', window_size=50, by_epoch=False)
    config.default_hooks.checkpoint = dict(
        type='CheckpointHook', by_epoch=False, interval=SAVE_EVERY, max_keep_ckpts=1, save_last=True
    )
    config.randomness = dict(seed=seed)
    go_on(config, work_dir, start)
    return config


def start_of(base: Config, row: HaltingRow, checkpoint: Path, work_dir: Path) -> Path:
    """Weights that a training starts from: those of the converged SST, or for other heads a slice of them.

    Args:
        base: Config of the SST without halting.
        row: The training.
        checkpoint: The converged SST.
        work_dir: Folder of the training, where a slice is written.
    """
    if row.heads is None:
        return checkpoint
    data = read_checkpoint(checkpoint)
    number, width = row.heads
    state = keep_heads(data['state_dict'], base.model.backbone.nhead[0], number)
    state = keep_head_channels(state, number, width)
    save_weights(state, work_dir / 'start.pth')
    return work_dir / 'start.pth'


def run_training(base: Config, checkpoint: Path, name: str, seed: int, out: Path) -> Result:
    """Fine-tunes and tests a row, see `Study.run_training`."""
    return STUDY.run_training(base, checkpoint, name, seed, out)


def tuned_and_tested(base: Config, checkpoint: Path, name: str, seed: int, where: Path) -> Result:
    """Fine-tunes a row, unless that was done, and tests it.

    Args:
        base: Config of the SST without halting.
        checkpoint: Its converged weights.
        name: Name of the row.
        seed: Seed of the training.
        where: Folder of the row.

    Returns:
        What `train` measures, accuracy, and under ``sparsity`` the halted shares of tokens by kind and attention layer.
    """
    row = STUDY.rows[name]
    if not (where / WEIGHTS).is_file():
        fine_tune(training_config(base, row, start_of(base, row, checkpoint, where), seed, where), where / WEIGHTS)
    trained = torch.load(where / WEIGHTS, map_location='cpu', weights_only=True)['meta']
    return {**trained, **tested(row_config(base, row), where / WEIGHTS, name)}


def fine_tune(config: Config, path: Path) -> None:
    """Trains, estimates the statistics of batch norm anew, and writes weights and what `train` measures to `path`."""
    runner, measured = train(config)
    estimate_norms(runner.model, runner.train_dataloader, RECALIBRATION_BATCHES, config.randomness.seed)
    save_weights(runner.model.state_dict(), path, measured)


def tested(config: Config, weights: Path, name: str) -> dict[str, Any]:
    """Accuracy, and ``sparsity``: the ``mean`` share of halted tokens, and shares by kind as in `HaltingStatistics`."""
    runner = tester(config, weights)
    if not halts(runner.model):
        return {**figures_of_row(runner, name), 'sparsity': {'mean': 0.0}}
    statistics = HaltingStatistics(*grid_of(runner.model), rings=())

    def count(record: HaltingRecord, boxes: list[Tensor] | None) -> None:
        statistics.add(record, boxes)

    with listening(runner.model, count):
        found = figures_of_row(runner, name)
    sparsity = {kind: row['sparsity'] for kind, row in statistics.to_dict()['rows'].items()}
    return {**found, 'sparsity': {'mean': float(statistics.sparsity().mean()), **sparsity}}


def halts(detector: nn.Module) -> bool:
    """Whether tokens of this detector halt."""
    return hasattr(detector, 'record_listeners')


STUDY = Study(RUNS, tuned_and_tested, folder_name='{name}-{seed}', leftovers='iter_*.pth')
