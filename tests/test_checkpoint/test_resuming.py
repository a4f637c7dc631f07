"""Trainings that were interrupted while they saved."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner

import mmprune3d  # noqa: F401
from mmprune3d.checkpoint.resuming import LAST, go_on, is_whole, newest_whole_checkpoint
from tests import toy_runner  # noqa: F401
from tests.toy_runner import write_config


def train(folder: Path, epochs: int, resume: bool = False, limit: int | None = None, **hook: Any) -> Runner:
    """Trains the toy model; with a `limit` no file may have more bytes, which stands in for a full disk."""
    path = write_config(folder.with_suffix('.py'), folder, train_cfg=dict(by_epoch=True, max_epochs=epochs))
    config = Config.fromfile(path)
    config.update(val_cfg=None, val_dataloader=None, val_evaluator=None, resume=resume, randomness=dict(seed=0))
    config.default_hooks = dict(checkpoint=dict(type='CheckpointHook', interval=1, **hook))
    runner = Runner.from_cfg(config)
    if limit is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    runner.train()
    return runner


def saved(folder: Path, epoch: int, optimizer: bool = True) -> Path:
    data = {'meta': {'epoch': epoch, 'iter': 2 * epoch}, 'state_dict': {'w': torch.rand(99, 9)}}
    torch.save(data | ({'optimizer': {}} if optimizer else {}), folder / f'epoch_{epoch}.pth')
    return folder / f'epoch_{epoch}.pth'


def cut(path: Path, size: int) -> Path:
    path.write_bytes(path.read_bytes()[:size])
    return path


def test_named_one_is_taken_also_if_it_is_not_the_newest(tmp_path: Path):
    first, _ = saved(tmp_path, 1), saved(tmp_path, 2)
    assert newest_whole_checkpoint(tmp_path) is None  # mmengine resumes nothing without it
    (tmp_path / LAST).write_text(str(first))
    assert newest_whole_checkpoint(tmp_path) == first


def test_folders_may_have_been_moved(tmp_path: Path):
    (tmp_path / LAST).write_text('/once/epoch_1.pth')
    assert newest_whole_checkpoint(tmp_path) is None
    assert newest_whole_checkpoint(str(tmp_path)) is None
    path = saved(tmp_path, 1)
    assert newest_whole_checkpoint(tmp_path) == path


@pytest.mark.parametrize('size', [0, 1, 1000, -1, -30])
def test_halves_are_not_taken_for_whole(tmp_path: Path, size: int, monkeypatch):
    told = []
    monkeypatch.setattr('mmprune3d.checkpoint.resuming.print_log', lambda text, **_: told.append(text))
    saved(tmp_path, 1)
    second, third = saved(tmp_path, 2), cut(saved(tmp_path, 3), size)
    saved(tmp_path, 7, optimizer=False)  # a published one: nothing can go on from it
    (tmp_path / LAST).write_text(str(third))
    assert not is_whole(third)
    assert newest_whole_checkpoint(tmp_path) == second
    assert 'not complete' in told[0] and str(third) in told[0] and f'resuming from {second}' in told[0]
    second.unlink()
    (tmp_path / 'epoch_1.pth').unlink()
    assert newest_whole_checkpoint(tmp_path) is None
    assert 'no other checkpoint' in told[1]


@pytest.mark.parametrize('name', ['', '\0\0\0', 'epoch_'])
def test_last_checkpoint_itself_was_cut(tmp_path: Path, name: str):
    path = saved(tmp_path, 2)
    (tmp_path / LAST).write_text(name)
    assert newest_whole_checkpoint(tmp_path) == path


def test_configs_go_on_or_begin(tmp_path: Path):
    config = Config(dict(default_hooks=dict(checkpoint=dict(type='CheckpointHook', max_keep_ckpts=1))))
    go_on(config, tmp_path, 'start.pth')
    assert (config.resume, config.load_from, config.work_dir) == (False, 'start.pth', str(tmp_path))
    # with one, mmengine deletes it before it writes the next
    assert config.default_hooks.checkpoint.max_keep_ckpts == 2
    path = saved(tmp_path, 1)
    (tmp_path / LAST).write_text(str(path))
    go_on(config, tmp_path, 'start.pth')
    assert (config.resume, config.load_from) == (True, str(path))


def in_process(**settings: Any) -> int:
    process = multiprocessing.get_context('spawn').Process(target=train, kwargs=settings)
    process.start()
    process.join()
    return process.exitcode


def test_resume_of_a_training_whose_last_checkpoint_is_half(tmp_path: Path):
    """What mmengine alone leaves, and what every later start died of."""
    folder = tmp_path / 'run'
    train(folder, 2)
    cut(folder / 'epoch_2.pth', 5000)
    first = (folder / 'epoch_1.pth').stat().st_mtime_ns
    assert train(folder, 3, resume=True).epoch == 3
    meta = [torch.load(folder / f'epoch_{epoch}.pth', weights_only=True)['meta'] for epoch in (1, 2, 3)]
    assert [one['iter'] for one in meta] == [2, 4, 6]
    assert (folder / 'epoch_1.pth').stat().st_mtime_ns == first  # it went on from there, and trained the second again


def test_resume_with_nothing_whole_does_not_begin_with_random_weights(tmp_path: Path):
    folder = tmp_path / 'run'
    train(folder, 1)
    cut(folder / 'epoch_1.pth', 5000)
    with pytest.raises(ValueError, match=r'none of the checkpoints is complete.*remove last_checkpoint'):
        train(folder, 2, resume=True)
    (folder / LAST).unlink()
    assert train(folder, 1, resume=True).epoch == 1  # as mmengine has it


def test_full_disk_while_saving_leaves_whole_checkpoints_only(tmp_path: Path):
    folder = tmp_path / 'run'
    train(folder, 1)
    size = (folder / 'epoch_1.pth').stat().st_size
    assert in_process(folder=folder, epochs=2, resume=True, limit=size // 2) == 1
    assert newest_whole_checkpoint(folder) == folder / 'epoch_1.pth'
    assert sorted(path.name for path in folder.glob('*.pth')) == ['epoch_1.pth']
    assert not list(folder.glob('.part.*'))
    assert train(folder, 2, resume=True).epoch == 2


def test_checkpoints_elsewhere_are_left_to_mmengine(monkeypatch):
    from mmprune3d.checkpoint.resuming import save_whole

    calls = []
    save = save_whole(lambda *args: calls.append(args))
    save({}, 's3://bucket/epoch_1.pth')
    save({}, 'epoch_1.pth', None, dict(backend='petrel'))
    assert [call[1] for call in calls] == ['s3://bucket/epoch_1.pth', 'epoch_1.pth']
    assert not os.path.exists('epoch_1.pth')
