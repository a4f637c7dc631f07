"""The evidence for AlterMOMA on synthetic data: one detector pruned by every criterion, and fine-tuned equally long.

Every training is a command of its own and goes on where it stopped; the table is made of what is there. Which trainings
there are, and what the paper says of each, is `RUNS`.
"""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.runner import Runner

from experiments.study import dataset_length
from mmprune3d import files
from mmprune3d.checkpoint import begun
from mmprune3d.checkpoint.resuming import go_on, newest_whole_checkpoint
from mmprune3d.engine.batches import CachedBatches, draw
from mmprune3d.engine.loops.altermoma_loop import REPORT
from mmprune3d.engine.recalibration import recalibrate
from mmprune3d.engine.runners import AlterMOMARunner
from mmprune3d.measure.accuracy import figures_of_row
from mmprune3d.measure.annotations import require_accuracy_of
from mmprune3d.measure.runners import prepare
from mmprune3d.pruning.altermoma import AlterMOMAPlan

SPARSITIES = (80, 85, 90)
"""Per cent, as in Table 1."""
EPOCHS = 2
"""Of training in all, for every row alike; IMP spends the first one before it prunes."""
STRIDE = 6
"""Every so manieth sample is trained on: neighbours in a scene are alike."""
REACTIVATION_STEPS = 24
EVAL_BATCHES = 8
RECALIBRATION_BATCHES = 16
SYNFLOW_ROUNDS = 20
"""100 in its paper; each one is a pass in float64."""
LR = 1e-3
"""Of fine-tuning."""
BATCH_SIZE = 4
LOSS_WINDOW = 48
"""Last iterations, over which the training loss is averaged."""
PAPER = {
    'magnitude': ('', '', ''),
    'imp': ('59.3', '51.2', '42.7'),
    'synflow': ('63.2', '56.9', '49.3'),
    'snip': ('62.2', '56.4', '50.2'),
    'prospr': ('64.3', '61.9', '58.6'),
    'altermoma': ('67.3', '65.5', '63.5'),
}
"""Criterion -> mAP of BEVFusion (MIT) in Table 1 at 80, 85 and 90 %; 67.8 unpruned."""
TITLES = {
    'magnitude': 'magnitude, one shot',
    'imp': 'IMP',
    'synflow': 'SynFlow',
    'snip': 'SNIP',
    'prospr': 'ProsPr',
    'altermoma': 'AlterMOMA',
    'random': 'random',
}
SETTINGS: dict[str, dict[str, Any]] = {
    'imp': dict(criterion='magnitude', epochs_per_round=1, rewind='init'),
    'synflow': dict(criterion='synflow', rounds=SYNFLOW_ROUNDS),
    'snip': dict(criterion='snip', eval_batches=EVAL_BATCHES),
    'prospr': dict(criterion='prospr', lr=1e-3),
    'altermoma': dict(criterion='altermoma', reactivation_steps=REACTIVATION_STEPS, eval_batches=EVAL_BATCHES),
    'magnitude': dict(criterion='magnitude'),
    'random': dict(criterion='random'),
}
"""Row of the table -> settings of the loop."""


@dataclass(frozen=True)
class Row:
    """One training of the study.

    Attributes:
        title: For the table.
        pruning: Settings of AlterMOMALoop, or None: the control, fine-tuned unpruned.
        paper: What the paper has there (mAP).
    """

    title: str
    pruning: dict[str, Any] | None = field(hash=False)
    paper: str = ''


def _rows() -> dict[str, Row]:
    rows = {'dense': Row('unpruned, fine-tuned (control)', None, '67.8')}
    for place, sparsity in enumerate(SPARSITIES):
        for name, settings in SETTINGS.items():
            paper = PAPER.get(name, ('', '', ''))[place]
            rows[f'{name}-{sparsity}'] = Row(
                f'{TITLES[name]}, {sparsity} %', {'sparsity': sparsity / 100, **settings}, paper
            )
        for beta in (0.0, 0.5, 1.5, 2.0):
            settings = {'sparsity': sparsity / 100, **SETTINGS['altermoma'], 'beta': beta}
            rows[f'altermoma-{sparsity}-beta{beta:g}'] = Row(f'AlterMOMA, {sparsity} %, beta = {beta:g}', settings)
        hidden = {'sparsity': sparsity / 100, **SETTINGS['altermoma'], 'mask_cross_modal_inputs': True}
        rows[f'altermoma-{sparsity}-hidden'] = Row(f'AlterMOMA, {sparsity} %, depth image masked with LiDAR', hidden)
    return rows


RUNS = _rows()
"""Name -> training."""


def plan_of(sparsity: float) -> AlterMOMAPlan:
    """The plan of AlterMOMA's rows."""
    return AlterMOMAPlan.from_dict({'sparsity': sparsity, **SETTINGS['altermoma']})


def training_config(base: Config, row: Row, checkpoint: Path, seed: int, work_dir: Path) -> Config:
    """The config of a training.

    Args:
        base: Of the fusion detector.
        row: Which.
        checkpoint: The converged detector.
        seed: Of data order, augmentation and the batches that score.
        work_dir: Its folder; a training goes on there.
    """
    config = copy.deepcopy(base)
    indices = list(range(0, dataset_length(base), STRIDE))
    config.train_dataloader.dataset.indices = indices
    config.train_dataloader.batch_size = BATCH_SIZE
    config.optim_wrapper.optimizer.lr = LR
    steps = len(indices) // BATCH_SIZE
    rewinds = 'rewind' in (row.pruning or {})
    config.param_scheduler = _cycles(steps, EPOCHS) if rewinds else _cycles(EPOCHS * steps, 1)
    config.train_cfg = dict(by_epoch=True, max_epochs=EPOCHS, val_begin=EPOCHS + 1)  # tested apart from it
    if row.pruning is not None:
        config.runner_type = 'AlterMOMARunner'
        config.pruning = {**row.pruning, 'recalibrate': RECALIBRATION_BATCHES, 'seed': seed}
    config.randomness = dict(seed=seed)
    config.default_hooks.checkpoint.max_keep_ckpts = 1
    go_on(config, work_dir, checkpoint)
    return config


def _cycles(steps: int, count: int) -> list[dict[str, Any]]:
    """Learning rate schedules: a cosine over `steps` iterations, `count` times, for IMP starts anew."""
    low = LR / 100
    if count > 1:
        periods = dict(periods=[steps] * count, restart_weights=[1] * count)
        return [dict(type='CosineRestartLR', **periods, eta_min=low, by_epoch=False)]
    warm = dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=max(1, steps // 20))
    return [warm, dict(type='CosineAnnealingLR', T_max=steps, eta_min=low, by_epoch=False, begin=0, end=steps)]


def check_name(name: str) -> None:
    """Refuses what is not in `RUNS`.

    Raises:
        ValueError: The message lists what is.
    """
    if name not in RUNS:
        raise ValueError(f'no training {name!r}; valid are {", ".join(RUNS)}')


def run_training(base: Config, checkpoint: Path, name: str, seed: int, out: Path) -> dict[str, Any]:
    """Prunes, fine-tunes and tests, unless that was done.

    Returns:
        What ``result.json`` holds: settings and figures.

    Raises:
        ValueError: If the name is unknown, accuracy cannot be measured, or `out` has rows of another config or other
            weights.
    """
    check_name(name)
    row, where = RUNS[name], out / f'{name}-seed{seed}'
    data = begun.beginning(base, checkpoint)
    if (where / 'result.json').is_file():
        begun.note(out, data)
        return files.read_json(where / 'result.json')
    require_accuracy_of(base, 'the study')
    begun.note(out, data)
    config = training_config(base, row, checkpoint, seed, where)
    start = time.monotonic()
    runner = (Runner if row.pruning is None else AlterMOMARunner).from_cfg(config)
    runner.train()
    seconds = time.monotonic() - start
    weights = torch.load(newest_whole_checkpoint(where), map_location='cpu', weights_only=True)
    final = where / 'final.pth'
    files.save_checkpoint({'state_dict': weights['state_dict'], 'meta': {}}, final)
    figures = tested(base, final, seed, name)
    loss = runner.message_hub.get_scalar('train/loss').mean(LOSS_WINDOW)
    result = {'name': name, 'seed': seed, 'seconds': seconds, 'iterations': runner.max_iters, 'loss': loss, **figures}
    if row.pruning is not None:
        result['keep'] = keep_by_group(where / REPORT)
    files.write_json(where / 'result.json', result)
    for path in where.glob('epoch_*.pth'):
        path.unlink()
    return result


def tested(base: Config, weights: Path, seed: int, name: str) -> dict[str, float]:
    """Accuracy, after batch norm was estimated anew: running averages lag behind a short fine-tuning."""
    runner = Runner.from_cfg(prepare(base, weights, weights.parent / 'test'))
    runner.load_or_resume()
    loader = Runner.build_dataloader(base.train_dataloader, seed=seed)
    batches = draw(loader, RECALIBRATION_BATCHES, seed)
    recalibrate(runner.model, CachedBatches(batches, runner.model.data_preprocessor, seed))
    return figures_of_row(runner, name)


def keep_by_group(path: Path) -> dict[str, float]:
    """Group -> share of its weights that stayed, and of all under ``'all'``."""
    report = files.read_json(path)
    return {'all': report['total']['rate'], **{name: row['rate'] for name, row in report['groups'].items()}}
