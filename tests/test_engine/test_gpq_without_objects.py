"""GPQ by the cost of matching, where some or all frames have no objects: it waits, and says so."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.registry import DATASETS, HOOKS
from mmengine.runner import Runner

from .blink import BlinkDataset
from .test_gpq_training import (
    FORK,
    GPQ,
    ITERATIONS,
    LOG,
    assert_same,
    checkpoint,
    config,
    in_process,
    train,
)

COST = {**GPQ, 'criterion': 'cost'}
"""Removals are due after 2, 4, 6, 8 and 10 of 13 iterations of two samples each."""


@DATASETS.register_module()
class SometimesEmptyDataset(BlinkDataset):
    """`BlinkDataset` whose samples have objects only in the iterations that are named."""

    def __init__(self, num: int, full: Sequence[int], batch_size: int = 2) -> None:
        super().__init__(num)
        self.full, self.batch_size = set(full), batch_size

    def __getitem__(self, index: int) -> dict:
        item = super().__getitem__(index)
        if index // self.batch_size not in self.full:
            sample = item['data_samples']
            sample.gt_instances_3d = sample.gt_instances_3d[:0]
        return item


def loader_of(work_dir: Path, full: Sequence[int], **changes: Any) -> dict:
    loader = config(work_dir).train_dataloader
    return {**loader, 'dataset': dict(type='SometimesEmptyDataset', num=2 * ITERATIONS, full=full, **changes)}


def run(work_dir: Path, full: Sequence[int], *hooks: dict, **changes: Any) -> list[int]:
    """Queries that are left after each iteration."""
    work_dir.mkdir(exist_ok=True)
    train(work_dir, *hooks, gpq=COST, train_dataloader=loader_of(work_dir, full), log_level='WARNING', **changes)
    return [len(kept) for kept in LOG.kept.values()]


def log_of(work_dir: Path) -> str:
    return ''.join(path.read_text() for path in sorted(work_dir.rglob('*.log')))


@pytest.mark.parametrize(
    'full, left, warnings',
    [
        (range(5, ITERATIONS), [12] * 5 + [9, 9, 8, 8, 7, 7, 7, 7], 1),  # three at once, then on time
        ([0, 3, 5, 6, 9], [12, 11, 11, 10, 10, 9, 9, 8, 8, 7, 7, 7, 7], 0),  # one sample per interval is enough
        ([0, 1, ITERATIONS - 1], [12] + [11] * 11 + [7], 1),  # long after the last removal was due
        ([0, 5, ITERATIONS - 1], [12] + [11] * 4 + [9] * 7 + [7], 2),
    ],
    ids=str,
)
def test_what_is_due_waits_for_the_first_object(tmp_path, full, left, warnings):
    assert run(tmp_path, full) == left
    found = [line for line in log_of(tmp_path).splitlines() if 'no sample since the last removal had an object' in line]
    assert len(found) == warnings
    assert all('WARNING' in line and 'they go as soon as there are scores' in line for line in found)


@pytest.mark.parametrize('iteration', [3, 8, 11])
def test_a_run_that_is_killed_while_it_waits_goes_on_the_same(tmp_path, iteration):
    full = [0, 5, ITERATIONS - 1]
    left = run(tmp_path / 'whole', full)
    kept = dict(LOG.kept)
    killer = dict(type='SigKillHook', point='after', iteration=iteration, priority=95)
    assert in_process(run, tmp_path / 'killed', full, killer) == -signal.SIGKILL
    assert run(tmp_path / 'killed', full, resume=True) == left[iteration + 1 :]
    assert LOG.kept == {i: ids for i, ids in kept.items() if i > iteration}
    for part in ('state_dict', 'ema_state_dict', 'optimizer', 'gpq'):
        assert_same(checkpoint(tmp_path / 'killed')[part], checkpoint(tmp_path / 'whole')[part], part)


def test_a_training_that_stays_above_the_target_ends_with_the_truth(tmp_path):
    assert run(tmp_path, range(4)) == [12, 11, 11] + [10] * 10
    (line,) = [line for line in log_of(tmp_path).splitlines() if 'ERROR' in line]
    assert '10 queries are left, not 7: no sample since the last removal had an object' in line
    assert len(checkpoint(tmp_path)['gpq']['sums']) == 11  # saved before the message


def test_a_training_that_removes_nothing_is_an_error_and_keeps_its_checkpoints(tmp_path):
    message = '12 queries are left, not 7: no sample since the last removal had an object .* nothing was pruned'
    with pytest.raises(RuntimeError, match=message):
        run(tmp_path, [])
    assert checkpoint(tmp_path)['meta']['iter'] == ITERATIONS


@HOOKS.register_module()
class NotANumberHook(Hook):
    """Spoils the class logits, as a diverged training does."""

    def before_train(self, runner: Runner) -> None:
        runner.model.pts_bbox_head.cls_branches[-1][-1].bias.data.fill_(float('nan'))


def test_logits_that_are_never_finite_are_named(tmp_path):
    gpq = dict(GPQ, interval=1)
    reason = 'no sample since the last removal had logits that are all finite'
    with pytest.raises(RuntimeError, match=f'12 queries are left, not 7: {reason}. The checkpoints'):
        train(tmp_path, dict(type='NotANumberHook'), gpq=gpq, log_level='WARNING')
    found = [line for line in log_of(tmp_path).splitlines() if reason in line]
    assert len(found) == 1 and 'WARNING' in found[0]


@HOOKS.register_module()
class EndEarlyHook(Hook):
    """Ends the training as EarlyStoppingHook does."""

    def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        runner.train_loop.stop_training = runner.iter == 4


def test_a_training_that_is_stopped_early_says_that(tmp_path):
    run(tmp_path, range(ITERATIONS), dict(type='EndEarlyHook'))
    assert [len(kept) for kept in LOG.kept.values()] == [12, 11, 11, 10, 10]
    assert 'the last 3 of 5 would have gone after 10 iterations, training ended after 5' in log_of(tmp_path)


def rank_main(rank: int, work_dir: Path, results: Any) -> None:
    """One of two processes; the second never sees an object."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE='2', MASTER_ADDR='127.0.0.1')
    torch.distributed.init_process_group('gloo', f'file://{work_dir}/rendezvous', rank=rank, world_size=2)
    wrapper = dict(type='MMDistributedDataParallel', device_ids=None, broadcast_buffers=False)
    settings = config(work_dir, launcher='pytorch', model_wrapper_cfg=wrapper, experiment_name='two', gpq=COST)
    full = [] if rank else [2, 3, *range(6, ITERATIONS)]
    settings.train_dataloader = loader_of(work_dir, full, batch_size=4)
    settings.train_dataloader['dataset']['num'] = 4 * ITERATIONS
    Runner.from_cfg(settings).train()
    results.put((rank, dict(LOG.kept)))
    torch.distributed.destroy_process_group()


def test_a_process_without_objects_follows_the_others(tmp_path):
    results = FORK.Queue()
    processes = [FORK.Process(target=rank_main, args=(rank, tmp_path, results)) for rank in range(2)]
    for process in processes:
        process.start()
    found = dict(results.get(timeout=300) for _ in processes)
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert found[0] == found[1]
    assert [len(kept) for kept in found[0].values()] == [12, 12, 11, 10, 10, 10, 9, 8, 8, 7, 7, 7, 7]
