"""Configs as trainings leave them in their folders, and tools that a launcher starts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner

from mmprune3d.measure.runners import prepare, read_config
from mmprune3d.pruning.gpq import GPQPlan
from mmprune3d.upgrade.finetune import PlanWithFineTuning, finetuning
from tests.toy_runner import ToyDataset, ToyModel, write_config

CONFIGS = Path(__file__).parents[2] / 'configs'


@pytest.fixture
def given(tmp_path: Path) -> tuple[Path, Path]:
    """A config that a resumed training on several processes left, and a checkpoint without its states."""
    config, checkpoint = tmp_path / 'config.py', tmp_path / 'weights.pth'
    visualizer = dict(type='Visualizer', vis_backends=[dict(type='LocalVisBackend')], name='visualizer')
    left = dict(launcher='pytorch', resume=True, load_from='gone.pth', visualizer=visualizer)
    write_config(config, tmp_path / 'work', **left)
    torch.save({'state_dict': ToyModel().state_dict()}, checkpoint)
    return config, checkpoint


def test_a_config_that_a_training_left_is_tested(given: tuple[Path, Path], tmp_path: Path) -> None:
    config = read_config(*given, {})
    assert (config.launcher, config.resume) == ('none', False)
    assert 'score' in Runner.from_cfg(prepare(config, given[1], tmp_path / 'out')).test()


def test_every_runner_writes_its_scalars_into_its_own_folder(given: tuple[Path, Path], tmp_path: Path) -> None:
    config = read_config(*given, {})
    assert 'name' not in prepare(config, given[1], tmp_path).visualizer
    assert 'name' not in finetuning(config, given[1], tmp_path / 'finetune').visualizer
    assert config.visualizer.name == 'visualizer'  # as the user wrote it


def test_several_processes_are_refused(given: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('WORLD_SIZE', '2')
    read_config(*given, {})  # a variable alone is no launcher
    monkeypatch.setenv('RANK', '0')
    with pytest.raises(ValueError, match=r'a launcher started 2 of it: run it without torchrun'):
        read_config(*given, {})


@pytest.mark.parametrize('name', ['petr/petr_tiny.py', 'sst/sst_tiny.py', 'bevfusion/bevfusion_tiny.py'])
def test_inferencers_find_a_visualizer(name: str) -> None:
    # those of mmdet3d (1.4) end with an AttributeError without one; a fixed name would be shared by all runners
    visualizer = Config.fromfile(CONFIGS / name).visualizer
    assert visualizer.type == 'Det3DLocalVisualizer' and 'name' not in visualizer


def test_a_training_set_without_annotations_is_named(
    given: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(self: ToyDataset, index: int) -> dict:
        return {}['instances']  # as mmdet3d reads infos that have none

    monkeypatch.setattr(ToyDataset, '__getitem__', missing)
    config = finetuning(read_config(*given, {}), given[1], tmp_path / 'finetune')
    with pytest.raises(ValueError, match='infos of the training set have no annotations'):
        PlanWithFineTuning(GPQPlan(target=1, epochs=1)).train(config)
    monkeypatch.setattr(ToyDataset, '__getitem__', lambda self, index: {}['other'])
    with pytest.raises(KeyError, match='other'):
        PlanWithFineTuning(GPQPlan(target=1, epochs=1)).train(config)
