"""The accuracy study of GPQ on synthetic data: trainings with many and few queries, pruning between them, ablations.

`RUNS` says which trainings there are, and what the paper reports for each.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmengine.config import Config

from experiments.study import WEIGHTS, Result, Row, Study, last_checkpoint, save_weights, tester, train
from mmprune3d import files
from mmprune3d.checkpoint.read import read_checkpoint
from mmprune3d.checkpoint.resuming import go_on
from mmprune3d.measure.accuracy import figures_of_row
from mmprune3d.upgrade.compact import compact
from mmprune3d.upgrade.finetune import LR_FACTOR, shortened

MANY, MOST, FEW, FEWER = 300, 200, 100, 50
"""Numbers of queries: N, 2 N / 3, N / 3 and N / 6."""
SCRATCH_EPOCHS, TUNED_EPOCHS = 5, 1
PRUNED = 0.7
"""Share of the fine-tuning in which queries are removed."""
PRUNED_FROM_SCRATCH = 0.5
"""Share of the training in which queries are removed, for GPQ-t."""
ONE_SHOT_INTERVAL = 48


START = 'start.pth'
"""File with the weights that a training begins with, in its folder; that of the aligned detector is in the study's."""


@dataclass(frozen=True)
class Training(Row):
    """A row of the study; `paper` is what the paper says of it.

    Attributes:
        queries: Number of queries at the start.
        start: Name of the training whose result it starts from; None for the aligned, untrained detector.
        gpq: Settings of GPQHook, or None.
        tuned: Epochs of fine-tuning, for rows that start from a result.
    """

    queries: int
    start: str | None = None
    gpq: dict[str, Any] | None = field(default=None, hash=False)
    tuned: int = TUNED_EPOCHS

    @property
    def epochs(self) -> int:
        """Epochs of the training."""
        return SCRATCH_EPOCHS if self.start is None else self.tuned

    @property
    def final(self) -> int:
        """Number of queries at the end."""
        return self.queries if self.gpq is None else self.gpq['target']


def _tuned(title: str, target: int, paper: str = '', tuned: int = TUNED_EPOCHS, **gpq: Any) -> Training:
    settings = {'target': target, **({} if 'interval' in gpq else {'epochs': PRUNED * TUNED_EPOCHS}), **gpq}
    return Training(title, MANY, 'scratch-300', settings, tuned, paper=paper)


RUNS: dict[str, Training] = {
    'scratch-300': Training('N from scratch', MANY, paper='31.74 (PETR, 900)'),
    'scratch-100': Training('N/3 from scratch', FEW, paper='below 900 and below GPQ (Table 2)'),
    'scratch-50': Training('N/6 from scratch', FEWER, paper='28.37 (PETR, 150)'),
    'tuned-300': Training('N, fine-tuned unpruned (control)', MANY, 'scratch-300', paper='not in the paper'),
    'gpq-200': _tuned('GPQ, N to 2N/3', MOST, 'not in the paper'),
    'gpq-100': _tuned('GPQ, N to N/3', FEW, '32.85 (PETR, 900 to 300)'),
    'gpq-100-long': _tuned('the same, fine-tuned for two epochs', FEW, 'not in the paper', tuned=2),
    'gpq-50': _tuned('GPQ, N to N/6', FEWER, '30.52 (PETR, 900 to 150)'),
    'gpq-t-100': Training(
        'GPQ-t, N to N/3 from scratch',
        MANY,
        gpq={'target': FEW, 'epochs': PRUNED_FROM_SCRATCH * SCRATCH_EPOCHS},
        paper='as good as GPQ (Table 7)',
    ),
    'highest-100': _tuned('highest scores first', FEW, 'noticeably worse (Table 5)', criterion='highest'),
    'cost-100': _tuned('highest costs first', FEW, 'between (Table 5)', criterion='cost'),
    'random-100': _tuned('random', FEW, 'not in the paper', criterion='random'),
    'one-shot-100': _tuned(
        'all at once', FEW, 'significantly worse (Table 5)', interval=ONE_SHOT_INTERVAL, per_step='all'
    ),
}
"""Name -> training."""


def training_config(base: Config, run: Training, seed: int, work_dir: Path) -> Config:
    """The config of a training.

    Args:
        base: Config of the detector with N queries.
        run: The training.
        seed: Seed of weights, data order and noise.
        work_dir: Folder of the training; `START` in it has the weights to begin with.
    """
    config = shortened(base, run.epochs)
    config.param_scheduler[0] = copy.deepcopy(base.param_scheduler[0])  # a warm-up of as many iterations in every row
    config.model.pts_bbox_head.num_query = run.queries
    config.train_cfg.val_interval = run.epochs + 1
    if run.start is not None:
        config.optim_wrapper.optimizer.lr *= LR_FACTOR
    hooks = [dict(type='IterationSeedHook', seed=seed)]
    hooks += [] if run.gpq is None else [dict(type='GPQHook', **run.gpq)]
    config.custom_hooks = hooks
    config.randomness = dict(seed=seed)
    go_on(config, work_dir, work_dir / START)
    return config


def write_start(run: Training, seed: int, out: Path, work_dir: Path) -> None:
    """Writes the weights that a training starts from into its folder.

    The aligned detector is untrained: its reference points are left out, so that each training draws its own.

    Args:
        run: The training.
        seed: Its seed.
        out: Folder of the study.
        work_dir: Folder of the training.

    Raises:
        FileNotFoundError: If the training that comes first was not run.
    """
    source = out / START if run.start is None else STUDY.folder(out, run.start, seed) / WEIGHTS
    if not source.is_file():
        first = run.start or 'python -m experiments.petr align'
        raise FileNotFoundError(f'{source} is missing: {first} comes first')
    weights = read_checkpoint(source)['state_dict']
    if run.start is None:
        weights = {key: value for key, value in weights.items() if 'reference_points' not in key}
    save_weights(weights, work_dir / START)


def run_training(base: Config, name: str, seed: int, out: Path) -> Result:
    """Trains, compacts and tests a row, see `Study.run_training`; the weights of the study are its ``start.pth``.

    Raises:
        FileNotFoundError: If the training that comes first was not run.
    """
    return STUDY.run_training(base, out / START, name, seed, out)


def trained_and_tested(base: Config, start: Path, name: str, seed: int, where: Path) -> Result:
    """Trains, compacts and tests a row.

    Args:
        base: Config of the detector with N queries.
        start: Weights of the aligned detector, in the folder of the study.
        name: Name of the row.
        seed: Seed of the training.
        where: Folder of the row.

    Returns:
        Numbers of queries and iterations, settings of GPQ, accuracy.
    """
    run = STUDY.rows[name]
    write_start(run, seed, start.parent, where)
    config = training_config(base, run, seed, where)
    iterations = train(config)[1]['iterations']
    last = last_checkpoint(where)
    if run.gpq is not None:
        small = compact(config, last, (run.final,))[0]
        config, last = small.config, small.checkpoint
    files.dump_config(config, where / 'final.py')
    save_weights(last['state_dict'], where / WEIGHTS)
    figures = figures_of_row(tester(config, where / WEIGHTS), name)
    return {'queries': run.final, 'iterations': iterations, 'gpq': run.gpq, **figures}


STUDY = Study(RUNS, trained_and_tested)
