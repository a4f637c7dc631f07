"""Work that goes on is the work that was begun: config, plan and weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import EMAHook

from mmprune3d.checkpoint import begun
from mmprune3d.checkpoint.resuming import LAST, go_on


def training(**changes: Any) -> Config:
    config = dict(
        model=dict(type='A', bounds=[0.5, 0.5], layers=[dict(type='B', size=1), dict(type='C')]),
        train_dataloader=dict(batch_size=2, num_workers=1, dataset=dict(type='D')),
        train_cfg=dict(max_epochs=3, val_interval=1),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
        custom_hooks=[dict(type='EMAHook')],
        work_dir='somewhere',
        visualizer=dict(type='Visualizer'),
    )
    made = Config(config)
    made.merge_from_dict(changes)
    return made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with half a training, which began with `start.pth`."""
    torch.save({'w': torch.zeros(3)}, tmp_path / 'start.pth')
    work_dir = tmp_path / 'run'
    config = training()
    go_on(config, work_dir, tmp_path / 'start.pth')
    assert not config.resume
    torch.save({'meta': {'iter': 1}, 'optimizer': {}}, work_dir / 'epoch_1.pth')
    (work_dir / LAST).write_text(str(work_dir / 'epoch_1.pth'))
    return work_dir


@pytest.mark.parametrize(
    'changes',
    [
        {},
        {'visualizer.type': 'Other', 'work_dir': 'elsewhere'},
        {'train_dataloader.num_workers': 4, 'train_cfg.val_interval': 2},
        {'sync_bn': None, 'model.bounds': (0.5, 0.5)},
    ],
)
def test_the_same_training_goes_on(folder: Path, changes: dict[str, Any]) -> None:
    config = training(**changes)
    go_on(config, folder, folder.parent / 'start.pth')
    assert config.resume and config.load_from == str(folder / 'epoch_1.pth')


@pytest.mark.parametrize(
    ('changes', 'named'),
    [
        ({'optim_wrapper.optimizer.lr': 0.05}, r'optim_wrapper\.optimizer\.lr was 0\.1, is 0\.05'),
        ({'train_cfg.max_epochs': 4}, r'train_cfg\.max_epochs was 3, is 4'),
        ({'model.bounds': [0.5, 0.75]}, r'model\.bounds was \[0\.5, 0\.5\], is \[0\.5, 0\.75\]'),
        ({'model.layers.0.size': 2}, r'model\.layers\[0\]\.size was 1, is 2'),
        ({'pruning': dict(sparsity=0.5)}, r'pruning\.sparsity was None, is 0\.5'),
        ({'custom_hooks.0.type': 'GPQHook', 'custom_hooks.0.target': 5}, r'custom_hooks\[0\]\.target was None, is 5'),
        ({'train_dataloader.dataset.type': 'E'}, r'dataset\.type was .D., is .E.'),
    ],
)
def test_another_training_is_refused(folder: Path, changes: dict[str, Any], named: str) -> None:
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(
        ValueError, match=rf'run has results of a run with other settings \(.*{named}.*choose another folder'
    ):
        go_on(training(**changes), folder, folder.parent / 'start.pth')
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_other_weights_under_the_same_name_are_refused(folder: Path) -> None:
    start = folder.parent / 'start.pth'
    start.rename(folder.parent / 'renamed.pth')
    go_on(training(), folder, folder.parent / 'renamed.pth')
    torch.save({'w': torch.ones(3)}, start)
    with pytest.raises(ValueError, match=r'\(other initial weights\)'):
        go_on(training(), folder, start)


@pytest.mark.parametrize('text', [None, '', '{"checkp', '[]'])
def test_a_folder_that_does_not_say_is_refused(folder: Path, text: str | None) -> None:
    (folder / begun.FILE).unlink() if text is None else (folder / begun.FILE).write_text(text)
    with pytest.raises(ValueError, match=r'no begun\.json with its settings: .* remove this one'):
        go_on(training(), folder, folder.parent / 'start.pth')


def test_a_training_without_checkpoint_begins_with_what_is_asked_for(folder: Path) -> None:
    (folder / LAST).unlink()
    config = training(**{'train_cfg.max_epochs': 9})
    go_on(config, folder, folder.parent / 'start.pth')
    assert not config.resume
    (folder / LAST).write_text(str(folder / 'epoch_1.pth'))
    go_on(config, folder, folder.parent / 'start.pth')
    assert config.resume


def test_classes_are_the_same_in_every_process() -> None:
    config = Config(dict(custom_hooks=[dict(type=EMAHook, momentum=0.1)]))
    found = begun.beginning(config, 'none.pth')
    assert found['custom_hooks[0].type'] == 'mmengine.hooks.ema_hook.EMAHook'
    assert found['checkpoint'] is None
