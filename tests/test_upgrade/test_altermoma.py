"""Fusion detectors pruned, fine-tuned, measured and drawn in one command; interrupted and gone on with."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS, MODELS
from mmengine.runner import Runner

from mmprune3d.adapters.fusion import prunable
from mmprune3d.checkpoint.masks import load_masks
from mmprune3d.pruning.altermoma import AlterMOMAPlan
from mmprune3d.upgrade.altermoma import FusionComparison, FusionPruning, timed_modules
from mmprune3d.upgrade.run import run_upgrade
from mmprune3d.visualization.bev_boxes import draw_bev_boxes
from tests.kills import assert_same
from tests.test_coupling.channel_nets import ROOT
from tests.test_engine.small_fusion import GROUPS, INTERFACES, fusion_config, write_config

from .small_bevfusion import save_random, small_config

PARTS = {'camera', 'lidar', 'fusion', 'rest', 'total'}
QUICK = dict(timed=1, repeats=1, pictures=0)
MAP = dict(groups=GROUPS, interfaces=INTERFACES, head='bbox_head')
TEXTS = dict(
    weights='sparsity=0.6,eval_batches=2,reactivation_steps=2',
    channels='sparsity=0.375,mode=channels,eval_batches=2,reactivation_steps=2',
)


def pruning_of(text: str, epochs: int | None = None) -> FusionPruning:
    return FusionPruning(AlterMOMAPlan.parse(text), epochs)


@pytest.fixture(scope='module', autouse=True)
def quick() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Runner, '_log_env', lambda *_: None)
        yield


@pytest.fixture(scope='module')
def bevfusion(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Half of the FLOPs of a BEVFusion3D removed."""
    out = tmp_path_factory.mktemp('upgrade')
    config = small_config(tiny.root, out / 'work')
    save_random(config, out / 'dense.pth')
    config.dump(out / 'dense.py')
    pruning = pruning_of('flops=0.5,eval_batches=1,reactivation_steps=1')
    run_upgrade(out / 'dense.py', out / 'dense.pth', pruning, out / 'report', {}, 1, 1, pictures=2)
    return out / 'report'


def test_the_report_has_both_models(bevfusion: Path) -> None:
    report = json.loads((bevfusion / 'report.json').read_text())
    baseline, upgraded = report['baseline'], report['upgraded']
    assert upgraded['gflops'] / baseline['gflops'] == pytest.approx(0.5, abs=0.05)  # another sample than was scored on
    assert upgraded['nonzero']['params'] <= upgraded['params'] < baseline['params']
    for result in (baseline, upgraded):
        assert {'mAP', 'NDS', 'mATE', 'gflops', 'peak_mib', 'params'} < set(result)
        assert set(result['ms']) == PARTS and result['ms']['total'] > result['ms']['camera'] > 0
        assert sum(result['gflops_by_stage'].values()) == pytest.approx(result['gflops'])
        assert set(result['gflops_by_stage']) == PARTS - {'total'}
    assert report['plan']['flops'] == 0.5 and report['plan']['finetune_epochs'] is None
    assert report['title'] == 'dense: altermoma, 50% of the FLOPs'
    assert report['samples'] == {'evaluated': 3, 'timed': 1}
    text = (bevfusion / 'report.md').read_text()
    for line in ('camera (ms)', 'lidar (GFLOPs)', 'parameters (millions)', '**fusion**'):
        assert f'| {line} |' in text


def test_the_upgraded_files_stand_alone(bevfusion: Path) -> None:
    from mmdet3d.apis import init_model

    model = init_model(str(bevfusion / 'upgraded.py'), str(bevfusion / 'upgraded.pth'), device='cpu')
    stored = torch.load(bevfusion / 'upgraded.pth', weights_only=True)
    assert sum(p.numel() for p in model.parameters()) == json.loads((bevfusion / 'report.json').read_text())[
        'upgraded'
    ]['params']  # fmt: skip
    assert set(stored) & {'optimizer', 'param_schedulers'} == set()
    assert stored['meta']['mmprune3d']['altermoma']['flops'] == 0.5
    before = torch.load(bevfusion / 'pruned' / 'slim.pth', weights_only=True)['state_dict']
    name = 'fusion_layer.0.weight'
    assert not torch.equal(before[name], stored['state_dict'][name])  # it was fine-tuned
    config = Config.fromfile(bevfusion / 'upgraded.py')
    assert config.model.structure == str(bevfusion / 'structure.json')
    assert config.load_from == str(bevfusion / 'upgraded.pth')


def test_the_upgraded_files_can_be_moved(bevfusion: Path, tmp_path: Path) -> None:
    for name in ('upgraded.py', 'structure.json'):
        (tmp_path / name).write_bytes((bevfusion / name).read_bytes())
    config = Config.fromfile(tmp_path / 'upgraded.py')
    assert config.model.structure == str(tmp_path / 'structure.json')
    assert config.load_from == str(tmp_path / 'upgraded.pth')


def test_pictures_are_drawn(bevfusion: Path) -> None:
    drawn = sorted(path.name for path in (bevfusion / 'pictures').iterdir())
    assert drawn == ['keep_rates.png', 'sample_0000.png', 'sample_0002.png']


@HOOKS.register_module()
class StopHook(Hook):
    """Ends a training in its second epoch."""

    active = True

    def after_train_iter(self, runner: Runner, batch_idx: int, *_: Any, **__: Any) -> None:
        if self.active and runner.epoch == 1 and batch_idx == 1:
            raise KeyboardInterrupt


@pytest.fixture
def small(tmp_path: Path) -> tuple[Path, Path]:
    """Config and checkpoint of a detector that runs in a blink."""
    torch.manual_seed(0)
    torch.save({'state_dict': MODELS.build(dict(type='SmallFusion')).state_dict(), 'meta': {}}, tmp_path / 'dense.pth')
    config = write_config(
        tmp_path / 'config.py', tmp_path / 'work', pruning=MAP, train_cfg=dict(by_epoch=True, max_epochs=3)
    )
    return config, tmp_path / 'dense.pth'


@pytest.mark.parametrize('kind', TEXTS)
def test_an_interrupted_upgrade_goes_on(
    small: tuple[Path, Path], tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pruning, (config, checkpoint) = pruning_of(TEXTS[kind], epochs=2), small
    whole = run_upgrade(config, checkpoint, pruning, tmp_path / 'whole', {}, **QUICK)
    hooks = Config.fromfile(config).custom_hooks
    overrides = dict(custom_hooks=[*hooks, dict(type='StopHook')])
    with pytest.raises(KeyboardInterrupt):
        run_upgrade(config, checkpoint, pruning, tmp_path / 'parts', overrides, **QUICK)
    assert not (tmp_path / 'parts' / 'upgraded.pth').exists()
    monkeypatch.setattr(StopHook, 'active', False)
    again = run_upgrade(config, checkpoint, pruning, tmp_path / 'parts', overrides, **QUICK)
    weights = [torch.load(tmp_path / out / 'upgraded.pth', weights_only=True) for out in ('whole', 'parts')]
    assert_same(weights[1]['state_dict'], weights[0]['state_dict'], 'weights')
    assert again['keep'] == whole['keep'] and again['upgraded']['mean'] == whole['upgraded']['mean']


def test_masked_weights_are_zero_and_counted(small: tuple[Path, Path], tmp_path: Path) -> None:
    config, checkpoint = small
    report = run_upgrade(config, checkpoint, pruning_of(TEXTS['weights']), tmp_path, {}, **QUICK)
    stored = torch.load(tmp_path / 'upgraded.pth', weights_only=True)
    model = MODELS.build(dict(type='SmallFusion'))
    model.load_state_dict(stored['state_dict'])
    total, kept = (sum(int(f(p)) for p in prunable(model).values()) for f in (torch.numel, torch.count_nonzero))
    assert kept == total - round(0.6 * total) == report['keep']['total']['kept']
    baseline, upgraded = report['baseline'], report['upgraded']
    assert upgraded['params'] == baseline['params'] > baseline['nonzero']['params']  # biases of norms were 0
    assert upgraded['nonzero']['params'] == baseline['params'] - (total - kept)
    assert upgraded['gflops'] == baseline['gflops'] > upgraded['nonzero']['gflops']
    assert {name: int(mask.sum()) for name, mask in load_masks(tmp_path / 'upgraded.pth').items()} == {
        name: row['kept'] for name, row in report['keep']['layers'].items()
    }
    made = Config.fromfile(tmp_path / 'upgraded.py')
    assert 'pruning' not in made and made.custom_hooks[-1] == dict(type='MaskHook')
    assert (tmp_path / 'pictures' / 'keep_rates.png').is_file()


def test_another_plan_in_the_same_folder_is_an_error(small: tuple[Path, Path], tmp_path: Path) -> None:
    run_upgrade(*small, pruning_of(TEXTS['channels']), tmp_path / 'out', {}, **QUICK)
    report = (tmp_path / 'out' / 'report.json').read_bytes()
    other = r'out/pruned has results of a run with other settings \(pruning.seed was 0, is 1\): choose another folder'
    with pytest.raises(ValueError, match=other):
        run_upgrade(*small, pruning_of(TEXTS['channels'] + ',seed=1'), tmp_path / 'out', {}, **QUICK)
    with pytest.raises(ValueError, match=r'out/finetune has results .* \(optim_wrapper.optimizer.lr was'):
        slower = FusionPruning(pruning_of(TEXTS['channels']).plan, None, 0.125)
        run_upgrade(*small, slower, tmp_path / 'out', {}, **QUICK)
    data = torch.load(small[1], weights_only=True)
    data['state_dict']['bbox_head.weight'] += 1
    torch.save(data, tmp_path / 'other.pth')
    with pytest.raises(ValueError, match=r'out/pruned has results .* \(other initial weights\)'):
        run_upgrade(small[0], tmp_path / 'other.pth', pruning_of(TEXTS['channels']), tmp_path / 'out', {}, **QUICK)
    assert (tmp_path / 'out' / 'report.json').read_bytes() == report  # refused: what was there stays
    with pytest.raises(ValueError, match='epochs=0 must be a whole number, 1 or more'):
        pruning_of(TEXTS['weights'], epochs=0)


def test_a_detector_without_a_map_is_refused_at_once(small: tuple[Path, Path], tmp_path: Path) -> None:
    config = fusion_config(tmp_path / 'work')
    config.custom_imports = dict(imports=['tests.test_engine.small_fusion'])
    config.dump(tmp_path / 'plain.py')
    with pytest.raises(ValueError, match=r'SmallFusion .*has no fusion map'):
        run_upgrade(tmp_path / 'plain.py', small[1], pruning_of('sparsity=0.5'), tmp_path / 'out', {}, **QUICK)
    assert not (tmp_path / 'out' / 'finetune').exists()


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--altermoma', 'flops=0.5', '--tggbc', 'r=5'], 'error: tggbc and altermoma cannot be combined'),
        (['--altermoma', 'flops=0.5', '--gpq', 'target=5'], 'error: gpq and altermoma cannot be combined'),
        (['--altermoma', 'flops=2'], 'error: Weight pruning: flops=2 must be a share'),
        (['--altermoma', 'sparsity=0.5,criterion=best'], "criterion='best'; valid are altermoma, prospr"),
    ],
)
def test_the_command_line_says_what_is_wrong(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, 'argv', ['upgrade.py', 'config.py', 'weights.pth', *arguments])
    with pytest.raises(SystemExit, match=message.replace('(', r'\(')):
        runpy.run_path(str(ROOT / 'tools' / 'upgrade.py'), run_name='__main__')


def test_modules_inside_others_are_timed_once(small: tuple[Path, Path]) -> None:
    from mmprune3d.adapters.fusion import FusionMap

    model = MODELS.build(dict(type='SmallFusion'))
    groups = dict(camera=('img_backbone',), fusion=('img_backbone.0', 'bbox_head', 'radar_encoder'))
    assert list(timed_modules(model, FusionMap(groups))) == ['img_backbone', 'bbox_head']


def test_rows_show_the_change() -> None:
    costs = dict(gflops_by_stage=dict(rest=1.0), gflops=4.0, peak_mib=1.0, params=2000000)
    figures = dict(mAP=0.5, ms=dict(total=2.0), **costs)
    before = figures | dict(nonzero=dict(params=2000000, gflops=4.0))
    after = figures | dict(gflops=2.0, nonzero=dict(params=500000, gflops=1.0))
    lines = list(FusionComparison.rows(before, after))
    assert '| total (GFLOPs) | 4.000 | 2.000 | -50.0 % |' in lines
    assert '| parameters that are not 0 (millions) | 2.000 | 0.500 | -75.0 % |' in lines


def test_boxes_are_where_they_should_be(tmp_path: Path) -> None:
    square = np.array([[(1, 1), (-1, 1), (-1, -1), (1, -1)]], float)
    ahead, left = square * 3 + (30, 0), square * 3 + (0, 30)
    draw_bev_boxes(tmp_path / 'a.png', np.zeros((1, 3)), ahead, {'found': left}, reach=50.0)
    image = cv2.imread(str(tmp_path / 'a.png')).astype(int)
    grey = np.argwhere(np.abs(image - 191).max(-1) < 3)
    blue = np.argwhere(np.abs(image - (0xB2, 0x72, 0x00)).max(-1) < 40)
    height, width = image.shape[:2]
    assert len(grey) > 100 and grey.mean(0)[0] < 0.45 * height and abs(grey.mean(0)[1] / width - 0.5) < 0.05
    assert len(blue) > 50 and blue.mean(0)[1] < 0.35 * width
    with pytest.raises(ValueError, match='no boxes of any detector'):
        draw_bev_boxes(tmp_path / 'b.png', np.zeros((1, 3)), None, {})
