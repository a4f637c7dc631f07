from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import mmdet3d
import pytest
import torch
from mmengine.config import Config

from mmprune3d.analysis import upgrade
from mmprune3d.analysis.accuracy import summarize
from mmprune3d.analysis.search import SearchRequest
from mmprune3d.analysis.upgrade import prepare, run_upgrade, upgraded_config
from mmprune3d.pruning.plan import TgGBCPlan, ToMePlan
from mmprune3d.visualization.upgrade import LEGEND_HEIGHT

from .conftest import CONFIG

KEYS = 6 * (64 // 16) * (160 // 16)


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory, overrides: dict[str, Any], petr_checkpoint: Path) -> Path:
    out = tmp_path_factory.mktemp('upgrade')
    shutil.copy(petr_checkpoint, out / 'petr.pth')
    plan = TgGBCPlan(r=150, n=2, k=40)
    run_upgrade(CONFIG, out / 'petr.pth', plan, out / 'report', overrides, timed=2, repeats=1, pictures=2)
    return out


def test_report_has_both_models_and_where_it_was_measured(folder: Path) -> None:
    report = json.loads((folder / 'report' / 'report.json').read_text())
    baseline, upgraded = report['baseline'], report['upgraded']
    assert baseline['keys'] == [KEYS] * 6
    assert upgraded['keys'] == [KEYS, KEYS - 74, KEYS - 150, KEYS - 150, KEYS - 150, KEYS - 150]
    for result in (baseline, upgraded):
        assert {'mAP', 'NDS', 'mATE', 'mASE', 'mAOE', 'mAVE', 'mAAE', 'gflops', 'peak_mib'} < set(result)
        assert set(result['ms']) == {'backbone', 'neck', 'decoder', 'rest', 'total'}
        assert min(result['ms'].values()) > 0
    assert upgraded['gflops'] < baseline['gflops']
    assert upgraded['gflops_by_stage']['backbone'] == baseline['gflops_by_stage']['backbone']
    assert TgGBCPlan.from_dict(report['plan']) == TgGBCPlan(r=150, n=2, k=40)
    assert 'search' not in report
    assert {'device', 'dtype', 'batch', 'threads', 'torch', 'mmdet3d'} <= set(report['env'])
    assert report['samples'] == {'evaluated': 3, 'timed': 2}


def test_table_names_every_figure(folder: Path) -> None:
    table = (folder / 'report' / 'report.md').read_text()
    for name in ('mAP', 'NDS', 'mATE (m) ↓', 'decoder (ms)', 'decoder (GFLOPs)', 'peak memory (MiB)', 'keys per layer'):
        assert f'| {name} |' in table


def test_pictures_are_drawn(folder: Path) -> None:
    pictures = sorted((folder / 'report' / 'pictures').iterdir())
    assert len(pictures) == 2
    image = cv2.imread(str(pictures[0]))
    # 2 x 3 cameras, 640 pixels wide, over a legend, and a square view from above beside them
    height = 2 * 256 + LEGEND_HEIGHT
    assert image.shape == (height, 3 * 640 + height, 3)


def test_upgraded_files_run_in_mmdet3ds_own_test_tool(folder: Path) -> None:
    tool = Path(mmdet3d.__file__).parent / '.mim' / 'tools' / 'test.py'
    report = folder / 'report'
    command = [sys.executable, tool, report / 'upgraded.py', report / 'upgraded.pth', '--work-dir', folder / 'test']
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    metrics = json.loads(next((folder / 'test').glob('*/*.json')).read_text())
    expected = json.loads((report / 'report.json').read_text())['upgraded']
    found = summarize(metrics)
    assert found['NDS'] == pytest.approx(expected['NDS'], abs=1e-4)


def test_plan_travels_with_the_checkpoint(folder: Path) -> None:
    data = torch.load(folder / 'report' / 'upgraded.pth', weights_only=True)
    assert TgGBCPlan.from_dict(data['meta']['mmprune3d']['tggbc']) == TgGBCPlan(r=150, n=2, k=40)


def test_a_config_that_prunes_already_is_refused(folder: Path) -> None:
    pruned = upgraded_config(Config.fromfile(CONFIG), TgGBCPlan(r=5))
    with pytest.raises(ValueError, match='prunes already'):
        prepare(pruned, folder / 'petr.pth', folder)


def test_token_merging_gets_its_own_hook() -> None:
    config = upgraded_config(Config.fromfile(CONFIG), ToMePlan(r=20, n=1))
    assert config.custom_hooks[-1] == {'type': 'ToMeHook', 'r': 20, 'n': 1}


def test_a_search_comes_before_the_upgrade_and_is_reported(
    folder: Path, overrides: dict[str, Any], tmp_path: Path
) -> None:
    # an untrained model loses nothing, so that the end of the grid is reached at once
    request = SearchRequest(TgGBCPlan(r=1, k=40), max_drop=0.5, calibrate=2)
    run_upgrade(CONFIG, folder / 'petr.pth', request, tmp_path, overrides, timed=1, repeats=1, pictures=0)
    report = json.loads((tmp_path / 'report.json').read_text())
    assert TgGBCPlan.from_dict(report['plan']) == TgGBCPlan(r=KEYS * 15 // 16, n=1, k=40)
    assert report['search']['found'] == report['plan'] and report['search']['samples'] == 2
    assert '## Search' in (tmp_path / 'report.md').read_text()
    assert report['samples']['evaluated'] == 3


def test_a_search_without_result_writes_the_search_alone(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Collapsing:
        keys, indices, baseline = [64] * 3, range(5), {'mAP': 0.5, 'NDS': 0.4}

        def __init__(self, runner: object, samples: int | None) -> None:
            assert samples == 5

        def __enter__(self) -> Collapsing:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def evaluate(self, plan: TgGBCPlan) -> dict[str, float]:
            return {'mAP': 0.1, 'NDS': 0.4}

    monkeypatch.setattr(upgrade, 'CachedTest', Collapsing)
    with pytest.raises(ValueError, match=r'no plan keeps mAP and NDS within 0\.01'):
        upgrade.find_plan(None, SearchRequest(TgGBCPlan(r=1), calibrate=5), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['search.json', 'search.md']
    trials = json.loads((tmp_path / 'search.json').read_text())['trials']
    assert [(trial['plan']['r'], trial['plan']['n']) for trial in trials][-2:] == [(4, 1), (4, 2)]


def test_a_config_without_a_test_set_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match='no test_dataloader'):
        prepare(Config(dict(model=dict(type='PETR3D'))), folder / 'petr.pth', folder)


@pytest.mark.parametrize('missing', ['config', 'checkpoint'])
def test_missing_files_are_named(tmp_path: Path, missing: str) -> None:
    config = CONFIG if missing == 'checkpoint' else tmp_path / 'none.py'
    with pytest.raises(FileNotFoundError, match=r'none\.p'):
        run_upgrade(config, tmp_path / 'none.pth', TgGBCPlan(r=5), tmp_path, {}, timed=1, repeats=1, pictures=1)


def test_the_command_line_says_what_is_valid(folder: Path) -> None:
    tool = CONFIG.parents[2] / 'tools' / 'upgrade.py'
    command = [sys.executable, tool, CONFIG, folder / 'petr.pth', '--tggbc', 'r=5,m=2']
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr.strip().endswith('error: tgGBC: unknown setting m; valid are r, n, q, k, activation, score, t')


def test_a_plan_that_leaves_no_key_fails_before_anything_is_evaluated(
    folder: Path, overrides: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=f'valid are 0 to {KEYS - 1}'):
        run_upgrade(CONFIG, folder / 'petr.pth', TgGBCPlan(r=KEYS, n=1), tmp_path, overrides, 1, 1, 1)
    assert not (tmp_path / 'report.json').exists()
