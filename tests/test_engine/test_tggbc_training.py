"""A tiny PETR trained by mmengine's Runner while tgGBC heats up: schedule, resuming, validation in between, AMP."""

from __future__ import annotations

import copy
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor

from mmprune3d import adapters

from .blink import training_config

KEYS, QUERIES, GROUPS = 24, 12, 2
ITERATIONS, WARMUP, HEATING, R = 7, 2, 3, 14
SCHEDULE = [0, 0, 4, 9, 14, 14, 14]  # int(step / 3 * 14)
SPLIT = {0: (24, 24, 24), 4: (24, 22, 20), 9: (24, 20, 15), 14: (24, 18, 10)}  # even on the first layer


@dataclass
class Diary:
    """What happened in a run, by iteration; `stop` is the iteration after which the power fails."""

    stop: int | None = None
    kept: dict[int, list[Tensor]] = field(default_factory=dict)
    votes: dict[int, list[int]] = field(default_factory=dict)
    losses: dict[int, float] = field(default_factory=dict)
    validated: dict[int, list[int]] = field(default_factory=dict)

    def sizes(self) -> dict[int, tuple[int, ...]]:
        return {iteration: tuple(ids.shape[1] for ids in kept) for iteration, kept in self.kept.items()}


DIARY = Diary()


@HOOKS.register_module()
class DiaryHook(Hook):
    """Runs after the pruning hook, both before and after an iteration; its own priority is lower."""

    priority = 'VERY_LOW'

    def _watch(self, runner: Runner) -> None:
        self.pruner = runner.model.pts_bbox_head.transformer.decoder.key_pruner
        if self.pruner is not None:
            self.pruner.record = True
            self.votes, confidence = [], self.pruner._confidence

            def counted(layer: int, query: Tensor, score_fn: object) -> Tensor:
                self.votes.append(query.shape[1])
                return confidence(layer, query, score_fn)

            self.pruner._confidence = counted

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        for seed in (random.seed, np.random.seed, torch.manual_seed):  # dropout and noise are not part of a checkpoint
            seed(runner.iter)
        self._watch(runner)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        assert not adapters.is_attached(runner.model)
        unpruned = [torch.arange(KEYS).expand(2, -1)] * 3
        DIARY.kept[runner.iter] = unpruned if self.pruner is None else self.pruner.kept
        DIARY.votes[runner.iter] = [] if self.pruner is None else self.votes
        DIARY.losses[runner.iter] = float(outputs['loss'].detach())

    def after_val_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        DIARY.validated[runner.iter] = [ids.shape[1] for ids in self.pruner.kept]

    def before_val_epoch(self, runner: Runner) -> None:
        self._watch(runner)

    def after_val_epoch(self, runner: Runner, metrics: Any = None) -> None:
        assert not adapters.is_attached(runner.model)


@HOOKS.register_module()
class PowerCutHook(Hook):
    """Raises after the checkpoint of an iteration was written."""

    priority = 100

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        if runner.iter + 1 == DIARY.stop:
            raise KeyboardInterrupt


def config(work_dir: Path, samples: int = 2 * ITERATIONS, **changes: Any) -> Config:
    pruning = dict(type='TgGBCHook', r=R, n=2, k=5, train=dict(warmup=WARMUP, heating=HEATING, by_epoch=False))
    hooks = [pruning, dict(type='DiaryHook'), dict(type='PowerCutHook')]
    return training_config(work_dir, ITERATIONS, samples, GROUPS, **{'custom_hooks': hooks, **changes})


def train(work_dir: Path, stop: int | None = None, **changes: Any) -> Diary:
    """A run from start to end, or to the iteration after which it is cut off."""
    global DIARY
    DIARY = Diary(stop)
    name = f'{work_dir.name}-{len(list(work_dir.iterdir()))}'
    runner = Runner.from_cfg(config(work_dir, experiment_name=name, **changes))
    if stop is None:
        runner.train()
    else:
        with pytest.raises(KeyboardInterrupt):
            runner.train()
    return copy.copy(DIARY)


@pytest.fixture(scope='module')
def uninterrupted(quick: None, tmp_path_factory: pytest.TempPathFactory) -> Diary:
    loop = dict(type='IterBasedTrainLoop', max_iters=ITERATIONS, val_interval=3)
    return train(tmp_path_factory.mktemp('whole'), train_cfg=loop)


def test_amounts_are_those_of_the_official_hook(uninterrupted: Diary) -> None:
    for iteration, removed in enumerate(SCHEDULE):
        i = iteration + 1
        official = 0 if i <= WARMUP else int((i - WARMUP) / HEATING * R) if i <= WARMUP + HEATING else R
        assert removed == official
        assert uninterrupted.sizes()[iteration] == SPLIT[removed], iteration


def test_only_learned_queries_vote(uninterrupted: Diary) -> None:
    for iteration, removed in enumerate(SCHEDULE):
        assert uninterrupted.votes[iteration] == ([QUERIES] * 2 if removed else [])


def test_training_goes_well(uninterrupted: Diary) -> None:
    losses = [uninterrupted.losses[iteration] for iteration in range(ITERATIONS)]
    assert np.isfinite(losses).all()
    assert len(set(losses)) == ITERATIONS


def test_validation_in_between_prunes_by_the_full_plan(uninterrupted: Diary) -> None:
    """After iterations 3, where training prunes a third, 6 and 7."""
    assert uninterrupted.validated == {count: list(SPLIT[R]) for count in (3, 6, 7)}


@pytest.mark.parametrize('stop', range(1, ITERATIONS))
def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(uninterrupted: Diary, tmp_path: Path, stop: int) -> None:
    """Cut off during warm-up, during heating or afterwards: the same keys stay, not only as many."""
    before = train(tmp_path, stop=stop)
    assert sorted(before.kept) == list(range(stop))
    after = train(tmp_path, resume=True)
    assert sorted(after.kept) == list(range(stop, ITERATIONS))
    for diary in (before, after):
        for iteration, kept in diary.kept.items():
            assert all(map(torch.equal, kept, uninterrupted.kept[iteration])), iteration
            assert diary.losses[iteration] == pytest.approx(uninterrupted.losses[iteration], rel=1e-6)


def test_bfloat16(tmp_path: Path) -> None:
    wrapper = dict(type='BFloat16OptimWrapper', optimizer=dict(type='AdamW', lr=1e-3))
    diary = train(tmp_path, optim_wrapper=wrapper)
    assert diary.sizes() == {iteration: SPLIT[removed] for iteration, removed in enumerate(SCHEDULE)}
    assert np.isfinite(list(diary.losses.values())).all()


def test_epochs_are_counted_in_iterations_of_the_loader(tmp_path: Path) -> None:
    """Two iterations per epoch; warm-up for half an epoch, heating for one."""
    pruning = dict(type='TgGBCHook', r=R, n=2, train=dict(warmup=0.5, heating=1))
    diary = train(
        tmp_path,
        samples=4,
        train_cfg=dict(type='EpochBasedTrainLoop', max_epochs=2, val_interval=100),
        custom_hooks=[pruning, dict(type='DiaryHook')],
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=1)),
    )
    assert diary.sizes() == {0: SPLIT[0], 1: (24, 22, 17), 2: SPLIT[R], 3: SPLIT[R]}
    saved = torch.load(tmp_path / 'epoch_2.pth', weights_only=True)['meta']['mmprune3d']['tggbc']
    assert (saved['r'], saved['n'], saved['k']) == (R, 2, 175)


@pytest.mark.parametrize(
    ('pruning', 'message'),
    [
        (dict(type='TgGBCHook', r=KEYS), f'r={KEYS} of {KEYS} keys leaves none'),
        (dict(type='TgGBCHook', r=KEYS, train=dict(warmup=5, by_epoch=False)), f'r={KEYS} of {KEYS} keys leaves none'),
        (dict(type='ToMeHook', r=KEYS // 2 + 1, n=1), f'cannot merge {KEYS // 2 + 1} of {KEYS} keys'),
        (dict(type='TgGBCHook', r=1, n=3), 'n=3 pruning layers in a decoder of 3'),
    ],
    ids=str,
)
def test_more_than_there_is_stops_the_run_in_its_first_iteration(tmp_path: Path, pruning: dict, message: str) -> None:
    """It came with the first validation, or when warm-up was over."""
    with pytest.raises(ValueError, match=message):
        train(tmp_path, custom_hooks=[pruning, dict(type='DiaryHook')])
    assert DIARY.kept == {}


def test_a_schedule_that_never_begins_stops_the_run_before_training(tmp_path: Path) -> None:
    pruning = dict(type='TgGBCHook', r=R, n=2, train=dict(warmup=ITERATIONS, by_epoch=False))
    with pytest.raises(ValueError, match=f'{ITERATIONS} iterations of training end before'):
        train(tmp_path, custom_hooks=[pruning, dict(type='DiaryHook')])
    assert DIARY.kept == {}
