"""Every training method, killed by SIGKILL at random moments and resumed: the end is that of a run left alone."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.runner import Runner

from mmprune3d.checkpoint.resuming import go_on
from tests.kills import assert_same, counted_moments, drawn, in_process, killed_at

from . import test_altermoma_training as altermoma
from . import test_gpq_training as gpq
from . import test_halting_training as halting
from . import test_tggbc_training as tggbc
from .blink import training_config
from .small_fusion import fusion_config, write_config

KILLS = 20
SEEDED = dict(type='IterationSeedHook')
AVERAGED = dict(type='EMAHook', momentum=0.1)
PARTS = ('state_dict', 'ema_state_dict', 'optimizer', 'param_schedulers', 'gpq', 'mmprune3d')


@dataclass(frozen=True)
class Method:
    """A training that goes on in its folder, or begins there.

    Attributes:
        train: From start, or from where it was killed, to the end.
        last: Name of its last checkpoint.
        files: Others that must be the same in the end.
    """

    train: Callable[[Path], Any]
    last: str
    files: tuple[str, ...] = ()

    def result(self, work_dir: Path) -> dict[str, Any]:
        """What the training left."""
        data = torch.load(work_dir / self.last, weights_only=True)
        texts = {name: (work_dir / name).read_text() for name in self.files}
        return {**{part: data.get(part) for part in PARTS}, 'plan': data['meta'].get('mmprune3d'), 'files': texts}


def train_tggbc(work_dir: Path) -> None:
    """While keys go more and more, with validation in between."""
    pruning = dict(type='TgGBCHook', r=14, n=2, k=5, train=dict(warmup=1, heating=3, by_epoch=False))
    loop = dict(type='IterBasedTrainLoop', max_iters=6, val_interval=3)
    changes = dict(custom_hooks=[pruning, SEEDED, AVERAGED], train_cfg=loop, resume=True)
    Runner.from_cfg(training_config(work_dir, 6, 12, tggbc.GROUPS, **changes)).train()


def train_gpq(work_dir: Path) -> None:
    """Queries go until iteration 10 of 13."""
    loop = dict(type='IterBasedTrainLoop', max_iters=gpq.ITERATIONS, val_interval=5)
    Runner.from_cfg(gpq.config(work_dir, train_cfg=loop, resume=True)).train()


def train_gpq_in_epochs(work_dir: Path) -> None:
    """Four shuffled epochs of four iterations; only two checkpoints are kept."""
    settings = gpq.config(work_dir, gpq=dict(type='GPQHook', target=7, epochs=3.5), resume=True)
    settings.train_dataloader.update(sampler=dict(type='DefaultSampler', shuffle=True))
    settings.train_dataloader.dataset.update(num=8)
    settings.train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=4, val_interval=2)
    settings.default_hooks = dict(checkpoint=dict(type='CheckpointHook', interval=1, max_keep_ckpts=2))
    Runner.from_cfg(settings).train()


def halting_method(start: Path) -> Callable[[Path], None]:
    """Fine-tuning as in an upgrade; tokens are dropped at random and dropout is on."""

    def train(work_dir: Path) -> None:
        loop = dict(type='IterBasedTrainLoop', max_iters=halting.ITERATIONS, val_interval=2)
        settings = halting.config(work_dir, AVERAGED, model=halting.random_model(), train_cfg=loop)
        go_on(settings, work_dir, start)
        Runner.from_cfg(settings).train()

    return train


def fusion_method(name: str, dense: Path) -> Callable[[Path], None]:
    """As ``tools/train.py CONFIG --resume``, always."""

    def train(work_dir: Path) -> None:
        file = work_dir.with_suffix('.config') / 'config.py'
        altermoma.train(write_config(file, work_dir, load_from=str(dense), **altermoma.changes_of(name)), resume=True)

    return train


@pytest.fixture(scope='module')
def methods(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Method]:
    folder = tmp_path_factory.mktemp('dense')
    one = dict(type='EpochBasedTrainLoop', max_epochs=1)
    assert in_process(lambda: Runner.from_cfg(fusion_config(folder, train_cfg=one)).train()) == 0
    loop = dict(type='IterBasedTrainLoop', max_iters=1, val_interval=9)
    assert in_process(lambda: halting.train(folder, model=halting.random_model(), train_cfg=loop)) == 0
    dense, last = folder / 'epoch_1.pth', f'epoch_{altermoma.EPOCHS}.pth'
    return {
        'tggbc': Method(train_tggbc, 'iter_6.pth'),
        'gpq': Method(train_gpq, f'iter_{gpq.ITERATIONS}.pth', ('gpq_history.jsonl',)),
        'gpq in epochs': Method(train_gpq_in_epochs, 'epoch_4.pth', ('gpq_history.jsonl',)),
        'altermoma': Method(fusion_method('altermoma', dense), last, ('keep_rates.json',)),
        'imp': Method(fusion_method('imp', dense), last, ('keep_rates.json',)),
        'halting': Method(halting_method(folder / 'iter_1.pth'), f'iter_{halting.ITERATIONS}.pth'),
    }


NAMES = ('tggbc', 'gpq', 'gpq in epochs', 'altermoma', 'imp', 'halting')


def check(method: Method, folder: Path, seed: int, number: int) -> None:
    """Kills and resumes `number` trainings; every third of them is killed again while it goes on."""
    whole = folder / 'whole'
    whole.mkdir()
    seen = counted_moments(method.train, whole)
    expected = method.result(whole)
    for place, (moment, emptied) in enumerate(drawn(seen, seed, number)):
        work_dir = folder / f'killed-{place}'
        work_dir.mkdir()
        what = f'{place}: moment {moment} of {len(seen)}, {seen[moment]}{", emptied" if emptied else ""}'
        assert killed_at(method.train, work_dir, moment, emptied) == -signal.SIGKILL, what
        if place % 3 == 2:
            killed_at(method.train, work_dir, moment // 3, not emptied)  # in the end it may have nothing left to do
        assert in_process(method.train, work_dir) == 0, what
        assert_same(method.result(work_dir), expected, what)


@pytest.mark.parametrize('name', NAMES)
def test_a_kill_at_a_random_moment_changes_nothing(methods, tmp_path, name):
    check(methods[name], tmp_path, seed=len(name), number=1)


@pytest.mark.slow
@pytest.mark.parametrize('name', NAMES)
def test_twenty_kills_at_random_moments_change_nothing(methods, tmp_path, name):
    check(methods[name], tmp_path, seed=20, number=KILLS)
