"""The config with which a detector is fine-tuned: its length, its rates, and that something is saved at the end."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mmdet3d
import pytest
import torch
from mmengine.config import Config
from mmengine.optim.scheduler import ConstantLR, LinearLR, LinearMomentum
from mmengine.runner import EpochBasedTrainLoop

from mmprune3d.pruning.gpq import GPQPlan
from mmprune3d.upgrade.finetune import WarmUpCheckHook, check_device, finetuning, shortened, slowed
from mmprune3d.upgrade.gpq import QueryPruning
from tests.test_upgrade.test_schedules import assert_stretched, curve

ROOT = Path(__file__).parents[2]
SHIPPED = Path(mmdet3d.__file__).parent / '.mim' / 'configs' / '_base_' / 'schedules'
OURS = sorted(path for path in (ROOT / 'configs').glob('*/*.py') if 'study' not in path.name)


def small(**changes: Any) -> Config:
    config = dict(
        train_dataloader=dict(batch_size=1),
        train_cfg=dict(by_epoch=True, max_epochs=12, val_interval=4),
        optim_wrapper=dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.02)),
        param_scheduler=dict(type='MultiStepLR', milestones=[8, 12]),
    )
    return Config({**config, **changes})


@pytest.mark.parametrize('path', [*sorted(SHIPPED.glob('*.py')), *OURS], ids=lambda path: path.stem)
def test_schedules_of_mmdet3d_and_ours_go_through(path: Path, tmp_path: Path) -> None:
    config = Config.fromfile(path, import_custom_modules=False)
    config.setdefault('train_dataloader', dict(batch_size=1))
    whole = config.train_cfg.get('max_epochs')
    if whole is None:
        pytest.skip('trains by iterations')
    assert finetuning(config, Path('x.pth'), tmp_path, None, 1.0).get('param_scheduler') == config.get(
        'param_scheduler'
    )
    for epochs in (1, 6, 60):
        tuned = finetuning(config, Path('x.pth'), tmp_path, epochs, 0.5)
        assert tuned.train_cfg.max_epochs == epochs
        assert tuned.optim_wrapper.optimizer.lr == 0.5 * config.optim_wrapper.optimizer.lr


@pytest.mark.parametrize('epochs', [1, 6, 60])
@pytest.mark.parametrize('name', ['cyclic-20e', 'cosine', 'mmdet-schedule-1x', 'sst_kitti', 'sst_waymoD5_centerhead'])
def test_the_curve_of_a_fine_tuning(name: str, epochs: int, tmp_path: Path) -> None:
    path = next(path for path in (*SHIPPED.glob('*.py'), *OURS) if path.stem == name)
    config = Config.fromfile(path, import_custom_modules=False)
    config.setdefault('train_dataloader', dict(batch_size=1))
    tuned, rate = finetuning(config, Path('x.pth'), tmp_path, epochs, 0.5), config.optim_wrapper.optimizer.lr
    whole = config.train_cfg.max_epochs
    old = curve(config.to_dict()['param_scheduler'], whole, rate)['lr']
    new = curve(tuned.to_dict()['param_scheduler'], epochs, 0.5 * rate)['lr']
    assert_stretched(old, new, epochs / whole, 42 + 42 * whole / epochs, 0.5, 0.01)
    assert float(new.max()) == pytest.approx(0.5 * float(old.max()), rel=0.05)


def test_validation_keeps_its_rhythm_and_its_place() -> None:
    loop = dict(
        type=EpochBasedTrainLoop, max_epochs=12, val_interval=8, val_begin=6, dynamic_intervals=[(9, 2), (11, 1)]
    )
    train = shortened(small(train_cfg=loop), 4).train_cfg
    assert (train.max_epochs, train.val_interval, train.val_begin) == (4, 4, 2)
    assert [tuple(one) for one in train.dynamic_intervals] == [(3, 2), (4, 1)]
    assert shortened(small(train_cfg=dict(max_epochs=12, val_begin=13)), 24).train_cfg.val_begin == 25  # never


def test_a_training_by_iterations_can_be_slowed_but_not_shortened(tmp_path: Path) -> None:
    config = small(train_cfg=dict(type='IterBasedTrainLoop', max_iters=100))
    with pytest.raises(ValueError, match=r'--epochs cannot shorten it; set train_cfg\.max_iters'):
        finetuning(config, Path('x.pth'), tmp_path, 3, 0.5)
    assert finetuning(config, Path('x.pth'), tmp_path, None, 0.5).optim_wrapper.optimizer.lr == 0.01


def test_several_optimizers() -> None:
    wrapper = dict(
        constructor='SomeConstructor',
        one=dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.4)),
        other=dict(optimizer=dict(type='AdamW', lr=0.2)),
    )
    schedulers = dict(one=dict(type='PolyLR', eta_min=0.2), other=[dict(type='StepLR', step_size=6)])
    slow = slowed(small(optim_wrapper=wrapper, param_scheduler=schedulers), 0.5)
    assert (slow.optim_wrapper.one.optimizer.lr, slow.optim_wrapper.other.optimizer.lr) == (0.2, 0.1)
    assert slow.param_scheduler.one[0].eta_min == 0.1 and slow.param_scheduler.other[0].step_size == 6


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(optim_wrapper=None), 'has no optim_wrapper with an optimizer'),
        (dict(optim_wrapper=dict(type='OptimWrapper')), r"optim_wrapper has \['type'\]"),
        (dict(optim_wrapper=dict(optimizer=dict(type=torch.optim.AdamW))), r'AdamW has lr=None: give a number'),
        (dict(param_scheduler=[dict(type='MyLR')]), 'MyLR mean'),
        (dict(train_cfg=None), 'nothing to fine-tune with'),
    ],
)
def test_what_cannot_be_changed_is_said(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        finetuning(small(**changes), Path('x.pth'), tmp_path, None, 0.5)


def test_amp_on_a_cpu_is_refused_before_anything_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    wrapper = dict(type='AmpOptimWrapper', optimizer=dict(type='SGD', lr=0.1))
    for config in (small(optim_wrapper=wrapper), small(optim_wrapper=dict(one=wrapper, constructor='Some'))):
        monkeypatch.setattr('mmprune3d.upgrade.finetune.get_device', lambda: 'cpu')
        with pytest.raises(ValueError, match=r'AmpOptimWrapper works on a GPU only; .*BFloat16OptimWrapper'):
            QueryPruning(GPQPlan(target=5, epochs=1)).train(config)
        monkeypatch.setattr('mmprune3d.upgrade.finetune.get_device', lambda: 'cuda')
        check_device(config)


def test_sections_that_are_none(tmp_path: Path) -> None:
    config = small(param_scheduler=None, custom_hooks=None, default_hooks=None)
    tuned = QueryPruning(GPQPlan(target=5, epochs=1), epochs=3).config(config, Path('x.pth'), tmp_path)
    assert tuned.param_scheduler is None and [hook.type for hook in tuned.custom_hooks] == ['GPQHook']


@pytest.mark.parametrize(
    'saver', [None, dict(type='CheckpointHook', interval=50, save_last=False)], ids=['none', 'save_last=False']
)
def test_the_last_epoch_is_always_saved(saver: dict | None, tmp_path: Path) -> None:
    hooks = finetuning(small(default_hooks=dict(checkpoint=saver)), Path('x.pth'), tmp_path).default_hooks
    assert hooks.checkpoint.type == 'CheckpointHook' and hooks.checkpoint.save_last


@pytest.mark.parametrize(
    ('entry', 'named'),
    [
        ((LinearLR, dict(start_factor=0.001, end=1)), 'LinearLR has a single step .* leave the lr at 0.001'),
        ((LinearMomentum, dict(start_factor=0.5, begin=3, end=4)), 'LinearMomentum .* leave the momentum at 0.5'),
        ((ConstantLR, dict(factor=0.25, end=1)), 'ConstantLR .* lr at 0.25'),
        ((LinearLR, dict(start_factor=0.001, end=2)), None),
    ],
)
def test_a_warm_up_of_one_step_is_refused(entry: tuple[type, dict], named: str | None) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0, momentum=0.9)
    scheduler = entry[0](optimizer, by_epoch=False, **entry[1])
    for _ in range(6):
        optimizer.step()
        scheduler.step()
    group = optimizer.param_groups[0]
    assert (group['lr'] == pytest.approx(1.0) and group['momentum'] == pytest.approx(0.9)) == (named is None)
    for found in ([scheduler], dict(one=[scheduler])):
        runner = SimpleNamespace(param_schedulers=found, max_iters=9)
        if named is None:
            WarmUpCheckHook().before_train(runner)
        else:
            with pytest.raises(ValueError, match=named):
                WarmUpCheckHook().before_train(runner)
