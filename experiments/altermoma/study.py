"""The accuracy study of AlterMOMA on synthetic data: one detector, pruned by every criterion, fine-tuned equally long.

`RUNS` says which trainings there are, and what the paper reports for each.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.runner import Runner

from experiments.study import (
    WEIGHTS,
    Result,
    Row,
    Study,
    dataset_length,
    estimate_norms,
    last_checkpoint,
    save_weights,
    tester,
    train,
)
from mmprune3d import files
from mmprune3d.checkpoint.resuming import go_on
from mmprune3d.engine.loops.altermoma_loop import REPORT
from mmprune3d.measure.accuracy import figures_of_row
from mmprune3d.pruning.altermoma import AlterMOMAPlan

SPARSITIES = (80, 85, 90)
"""Percent of the weights, as in Table 1."""
EPOCHS = 2
"""Epochs of training, the same for every row; IMP trains for the first one before it prunes."""
STRIDE = 6
"""One of so many consecutive samples is trained on: neighbours in a scene are alike."""
REACTIVATION_STEPS = 24
EVAL_BATCHES = 8
RECALIBRATION_BATCHES = 16
SYNFLOW_ROUNDS = 20
"""100 in its paper; each one is a pass in float64."""
LR = 1e-3
"""Learning rate of fine-tuning."""
BATCH_SIZE = 4
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
"""Criterion -> settings of the pruning loop."""


@dataclass(frozen=True)
class PrunedRow(Row):
    """A row whose detector is pruned, then fine-tuned; `paper` is its mAP in the paper.

    Attributes:
        pruning: Settings of the pruning loop, or None for the control, which is fine-tuned unpruned.
    """

    pruning: dict[str, Any] | None = field(default=None, hash=False)


def _rows() -> dict[str, PrunedRow]:
    rows = {'dense': PrunedRow('unpruned, fine-tuned (control)', paper='67.8')}
    for place, sparsity in enumerate(SPARSITIES):
        for name, settings in SETTINGS.items():
            paper = PAPER.get(name, ('', '', ''))[place]
            pruning = {'sparsity': sparsity / 100, **settings}
            rows[f'{name}-{sparsity}'] = PrunedRow(f'{TITLES[name]}, {sparsity} %', pruning, paper=paper)
        for beta in (0.0, 0.5, 1.5, 2.0):
            settings = {'sparsity': sparsity / 100, **SETTINGS['altermoma'], 'beta': beta}
            rows[f'altermoma-{sparsity}-beta{beta:g}'] = PrunedRow(
                f'AlterMOMA, {sparsity} %, beta = {beta:g}', settings
            )
        hidden = {'sparsity': sparsity / 100, **SETTINGS['altermoma'], 'mask_cross_modal_inputs': True}
        rows[f'altermoma-{sparsity}-hidden'] = PrunedRow(
            f'AlterMOMA, {sparsity} %, depth image masked with LiDAR', hidden
        )
    return rows


RUNS = _rows()
"""Name -> training."""


def plan_of(sparsity: float) -> AlterMOMAPlan:
    """The plan of AlterMOMA's rows."""
    return AlterMOMAPlan.from_dict({'sparsity': sparsity, **SETTINGS['altermoma']})


def training_config(base: Config, row: PrunedRow, checkpoint: Path, seed: int, work_dir: Path) -> Config:
    """The config of a training.

    Args:
        base: Config of the fusion detector.
        row: The training.
        checkpoint: The converged detector.
        seed: Seed of data order, augmentation and the batches that score.
        work_dir: Folder of the training; an interrupted one goes on there.
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
    """Learning rate schedule: `count` times a cosine over `steps` iterations; IMP starts anew and needs two."""
    low = LR / 100
    if count > 1:
        periods = dict(periods=[steps] * count, restart_weights=[1] * count)
        return [dict(type='CosineRestartLR', **periods, eta_min=low, by_epoch=False)]
    warm = dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=max(1, steps // 20))
    return [warm, dict(type='CosineAnnealingLR', T_max=steps, eta_min=low, by_epoch=False, begin=0, end=steps)]


def run_training(base: Config, checkpoint: Path, name: str, seed: int, out: Path) -> Result:
    """Prunes, fine-tunes and tests a row, see `Study.run_training`."""
    return STUDY.run_training(base, checkpoint, name, seed, out)


def pruned_and_tuned(base: Config, checkpoint: Path, name: str, seed: int, where: Path) -> Result:
    """Prunes, fine-tunes and tests a row.

    Args:
        base: Config of the fusion detector.
        checkpoint: The converged detector.
        name: Name of the row.
        seed: Seed of the training.
        where: Folder of the row.

    Returns:
        What `train` measures, accuracy, and ``keep`` of rows that are pruned, see `keep_by_group`.
    """
    row = STUDY.rows[name]
    _, found = train(training_config(base, row, checkpoint, seed, where))
    save_weights(last_checkpoint(where)['state_dict'], where / WEIGHTS)
    found |= tested(base, where / WEIGHTS, seed, name)
    if row.pruning is not None:
        found['keep'] = keep_by_group(where / REPORT)
    return found


def tested(base: Config, weights: Path, seed: int, name: str) -> dict[str, float]:
    """Accuracy of the fine-tuned weights, with the statistics of batch norm estimated anew."""
    runner = tester(base, weights)
    runner.load_or_resume()
    loader = Runner.build_dataloader(base.train_dataloader, seed=seed)
    estimate_norms(runner.model, loader, RECALIBRATION_BATCHES, seed)
    return figures_of_row(runner, name)


def keep_by_group(path: Path) -> dict[str, float]:
    """Group -> share of its weights that were kept, and of all weights under ``'all'``.

    Args:
        path: Report of the pruning.
    """
    report = files.read_json(path)
    return {'all': report['total']['rate'], **{name: row['rate'] for name, row in report['groups'].items()}}


STUDY = Study(RUNS, pruned_and_tuned, leftovers='epoch_*.pth')
