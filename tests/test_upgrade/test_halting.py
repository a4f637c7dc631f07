"""An SST whose tokens learn to halt, measured and drawn in one command; interrupted and gone on with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner

from mmprune3d.pruning.halting import HaltingPlan
from mmprune3d.upgrade.halting import HaltingUpgrade
from mmprune3d.upgrade.run import run_upgrade

from .small_bevfusion import save_random
from .small_sst_config import BLOCKS, WIDTH, small_sst_config

PLAN = f'sparsity=0.6,in_channels={WIDTH}'


@pytest.fixture(scope='module', autouse=True)
def quick() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Runner, '_log_env', lambda *_: None)
        yield


@pytest.fixture(scope='module')
def plain(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a plain SST: `plain.py`, `plain.pth`."""
    out = tmp_path_factory.mktemp('halting')
    config = small_sst_config(tiny.root, out / 'work')
    config.model.test_cfg.score_threshold = config.model.bbox_head.bbox_coder.score_threshold = 0.0
    save_random(config, out / 'plain.pth')
    config.dump(out / 'plain.py')
    return out


def upgrade(plain: Path, out: Path, **kwargs: Any) -> dict[str, Any]:
    settings = dict(overrides={}, timed=1, repeats=1, pictures=0) | kwargs
    halting = HaltingUpgrade(HaltingPlan.parse(PLAN))
    return run_upgrade(plain / 'plain.py', plain / 'plain.pth', halting, out, **settings)


@pytest.fixture(scope='module')
def report(plain: Path) -> Path:
    upgrade(plain, plain / 'report', pictures=1)
    return plain / 'report'


def test_the_report_has_both_sides(report: Path) -> None:
    data = json.loads((report / 'report.json').read_text())
    assert data['baseline']['sparsity'] == [0.0] * 2 * BLOCKS
    assert np.mean(data['upgraded']['sparsity']) == pytest.approx(0.6, abs=0.02)
    assert data['upgraded']['params'] > data['baseline']['params']
    assert {'voxel encoder', 'backbone', 'neck', 'head', 'rest', 'total'} == set(data['baseline']['ms'])
    assert data['plan']['sparsity'] == 0.6
    text = (report / 'report.md').read_text()
    assert '| mean sparsity of tokens | 0.0% | ' in text


def test_pictures_show_tokens_and_boxes(report: Path) -> None:
    names = sorted(path.name for path in (report / 'pictures').iterdir())
    assert names == ['sample_0000.png', 'tokens_0000.png']
    assert all(cv2.imread(str(report / 'pictures' / name)).std() > 5 for name in names)


def test_the_upgraded_model_runs_with_plain_tools(report: Path) -> None:
    data = json.loads((report / 'report.json').read_text())
    config = Config.fromfile(report / 'upgraded.py')
    config.work_dir = str(report / 'again')
    metrics = Runner.from_cfg(config).test()
    assert metrics['NuScenes metric/pred_instances_3d_NuScenes/NDS'] == pytest.approx(data['upgraded']['NDS'], abs=1e-6)


def test_an_interrupted_upgrade_goes_on(plain: Path, report: Path) -> None:
    before = torch.load(report / 'upgraded.pth', weights_only=True)
    upgrade(plain, report)  # the training is finished: nothing is trained again
    after = torch.load(report / 'upgraded.pth', weights_only=True)
    assert all(torch.equal(value, after['state_dict'][name]) for name, value in before['state_dict'].items())
    assert after['meta']['mmprune3d']['halting']['sparsity'] == 0.6


def test_what_is_no_sst_is_refused(plain: Path) -> None:
    overrides = {'model.type': 'VoxelNet'}
    with pytest.raises(ValueError, match='SSTDetector with SSTBackbone, not into VoxelNet'):
        upgrade(plain, plain / 'refused', overrides=overrides)


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('sparsity=1', 'from 0 to below 1'),
        ('sparsity=0.5,loss=focal', 'valid are nonuniform, uniform'),
        ('sparsity=0.5,speed=2', 'unknown setting speed'),
        ('threshold=0.5', 'sparsity, the mean share of halted tokens, is missing'),
    ],
)
def test_bad_plans(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HaltingPlan.parse(text)


@pytest.mark.parametrize('blocks', [2, 4, 6])
@pytest.mark.parametrize('sparsity', [0.0, 0.1, 0.4, 0.75, 0.82, 0.89, 0.99])
def test_bounds_have_the_mean_that_is_asked_for(sparsity: float, blocks: int) -> None:
    (first, _), (second, _) = HaltingPlan(sparsity).bounds(blocks)
    assert 0 <= first <= second <= 1
    assert (2 * first + 2 * (blocks - 1) * second) / (2 * blocks) == pytest.approx(sparsity)


def test_gates_want_enough_features_and_blocks() -> None:
    assert HaltingPlan(0.89).gates(128, 4)[0]['bounds'] == (0.8, 0.8)
    with pytest.raises(ValueError, match='in_channels=32, but tokens have 16'):
        HaltingPlan(0.5).gates(16, 4)
    with pytest.raises(ValueError, match='1 block'):
        HaltingPlan(0.5).gates(64, 1)


@pytest.mark.parametrize(
    ('text', 'settings', 'named'),
    [
        (PLAN.replace('0.6', '0.7'), {}, r'model\.backbone\.halting'),
        (PLAN, dict(lr_factor=0.25), r'optim_wrapper\.optimizer\.lr'),
        (PLAN, dict(epochs=9), r'train_cfg\.max_epochs'),
    ],
)
def test_the_fine_tuning_of_another_plan_is_refused(
    plain: Path, report: Path, text: str, settings: dict[str, Any], named: str
) -> None:
    before = (report / 'report.json').read_bytes(), (report / 'upgraded.pth').read_bytes()
    halting = HaltingUpgrade(HaltingPlan.parse(text), **settings)
    with pytest.raises(ValueError, match=rf'finetune has results of a run with other settings \(.*{named}'):
        run_upgrade(plain / 'plain.py', plain / 'plain.pth', halting, report, {}, 1, 1, 0)
    assert ((report / 'report.json').read_bytes(), (report / 'upgraded.pth').read_bytes()) == before
