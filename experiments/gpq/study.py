"""The evidence for GPQ on synthetic data: trainings with many and few queries, pruning between them, ablations.

Every training is a command of its own and goes on where it stopped; the table is made of what is there. Which trainings
there are, and what the paper says of each, is `RUNS`.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.runner import Runner

from mmprune3d import files
from mmprune3d.checkpoint import begun
from mmprune3d.checkpoint.read import read_checkpoint
from mmprune3d.checkpoint.resuming import go_on, newest_whole_checkpoint
from mmprune3d.measure.accuracy import figures_of_row
from mmprune3d.measure.annotations import require_accuracy_of
from mmprune3d.measure.runners import prepare
from mmprune3d.upgrade.compact import compact
from mmprune3d.upgrade.finetune import LR_FACTOR, shortened

MANY, MOST, FEW, FEWER = 300, 200, 100, 50
"""N, 2 N / 3, N / 3 and N / 6."""
SCRATCH_EPOCHS, TUNED_EPOCHS = 5, 1
PRUNED = 0.7
"""Share of fine-tuning in which queries go."""
PRUNED_FROM_SCRATCH = 0.5
"""The same for GPQ-t."""
ONE_SHOT_INTERVAL = 48


@dataclass(frozen=True)
class Training:
    """One training of the study.

    Attributes:
        title: For the table.
        queries: At its start.
        start: The training whose result it starts from; None for the aligned, untrained head.
        gpq: Settings of GPQHook, or None.
        paper: What the paper says of this row.
        tuned: Epochs of fine-tuning, if it starts from a result.
    """

    title: str
    queries: int
    start: str | None = None
    gpq: dict[str, Any] | None = field(default=None, hash=False)
    paper: str = ''
    tuned: int = TUNED_EPOCHS

    @property
    def epochs(self) -> int:
        """Length of the training."""
        return SCRATCH_EPOCHS if self.start is None else self.tuned

    @property
    def final(self) -> int:
        """Queries at its end."""
        return self.queries if self.gpq is None else self.gpq['target']


def _tuned(title: str, target: int, paper: str = '', tuned: int = TUNED_EPOCHS, **gpq: Any) -> Training:
    settings = {'target': target, **({} if 'interval' in gpq else {'epochs': PRUNED * TUNED_EPOCHS}), **gpq}
    return Training(title, MANY, 'scratch-300', settings, paper, tuned)


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


def training_config(base: Config, run: Training, name: str, seed: int, out: Path) -> Config:
    """The config of a training.

    Args:
        base: Of the detector with N queries.
        run: Which.
        name: Its name in `RUNS`.
        seed: Of weights, data order and noise.
        out: Folder of the study; ``start.pth`` in it is the aligned, untrained detector.
    """
    config = shortened(base, run.epochs)
    config.param_scheduler[0] = copy.deepcopy(base.param_scheduler[0])  # a warm-up of as many iterations in every row
    work_dir = folder(out, name, seed)
    config.model.pts_bbox_head.num_query = run.queries
    config.train_cfg.val_interval = run.epochs + 1
    if run.start is not None:
        config.optim_wrapper.optimizer.lr *= LR_FACTOR
    hooks = [dict(type='IterationSeedHook', seed=seed)]
    hooks += [] if run.gpq is None else [dict(type='GPQHook', **run.gpq)]
    config.custom_hooks = hooks
    config.randomness = dict(seed=seed)
    go_on(config, work_dir, work_dir / 'start.pth')
    return config


def write_start(run: Training, name: str, seed: int, out: Path) -> None:
    """Writes the weights that a training starts from into its folder.

    The aligned detector is untrained: its reference points are left out, so that each training draws its own.

    Raises:
        FileNotFoundError: If they are not there yet.
    """
    source = out / 'start.pth' if run.start is None else folder(out, run.start, seed) / 'final.pth'
    if not source.is_file():
        raise FileNotFoundError(f'{source} is missing: {run.start or "tools/align_positions.py"} comes first')
    weights = read_checkpoint(source)['state_dict']
    if run.start is None:
        weights = {key: value for key, value in weights.items() if 'reference_points' not in key}
    target = folder(out, name, seed) / 'start.pth'
    files.save_checkpoint({'state_dict': weights, 'meta': {}}, target)


def folder(out: Path, name: str, seed: int) -> Path:
    """Where a training keeps its files."""
    return out / f'{name}-seed{seed}'


def check_name(name: str) -> None:
    """Refuses what is not in `RUNS`.

    Raises:
        ValueError: The message lists what is.
    """
    if name not in RUNS:
        raise ValueError(f'no training {name!r}; valid are {", ".join(RUNS)}')


def run_training(base: Config, name: str, seed: int, out: Path) -> dict[str, Any]:
    """Trains, compacts and tests, unless that was done.

    Returns:
        What ``result.json`` holds: settings and figures.

    Raises:
        FileNotFoundError: If what it starts from is not there.
        ValueError: If the name is unknown, accuracy cannot be measured, or `out` has rows of another config or other
            weights.
    """
    check_name(name)
    run, where = RUNS[name], folder(out, name, seed)
    data = begun.beginning(base, out / 'start.pth')
    if (where / 'result.json').is_file():
        begun.note(out, data)
        return files.read_json(where / 'result.json')
    require_accuracy_of(base, 'the study')
    begun.note(out, data)
    write_start(run, name, seed, out)
    config = training_config(base, run, name, seed, out)
    runner = Runner.from_cfg(config)
    runner.train()
    last = torch.load(newest_whole_checkpoint(where), map_location='cpu', weights_only=True)
    if run.gpq is not None:
        small = compact(config, last, (run.final,))[0]
        config, last = small.config, small.checkpoint
    files.dump_config(config, where / 'final.py')
    files.save_checkpoint({'state_dict': last['state_dict'], 'meta': {}}, where / 'final.pth')
    tested = Runner.from_cfg(prepare(config, where / 'final.pth', where / 'test'))
    result = {
        'name': name,
        'seed': seed,
        'queries': run.final,
        'iterations': runner.max_iters,
        'gpq': run.gpq,
        **figures_of_row(tested, name),
    }
    files.write_json(where / 'result.json', result)
    return result
