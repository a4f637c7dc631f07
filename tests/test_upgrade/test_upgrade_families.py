"""An upgrade from the first to the last file, for every family that has an adapter; petr's is in test_upgrade.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner

from mmprune3d import adapters
from mmprune3d.pruning.tggbc import TgGBCPlan
from mmprune3d.upgrade.run import run_upgrade
from mmprune3d.upgrade.search import SearchRequest
from tests.conftest import CONFIG

from . import small_families

FAMILIES = ('HookedDETR', 'HookedConditionalDETR', 'HookedPETR')
SETTINGS = dict(r=0.5, n=1, k=4)


@pytest.fixture(scope='module', params=FAMILIES)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, overrides: dict[str, Any]) -> Path:
    """A folder with a detector of the family, and `report`."""
    folder = tmp_path_factory.mktemp('families') / request.param
    if request.param == 'HookedPETR':
        config, weights = small_families.make_projects_petr(folder, CONFIG, overrides)
    else:
        config, weights = small_families.make_detr(folder, 'Conditional' in request.param)
    activation = 'softmax' if request.param == 'HookedDETR' else 'sigmoid'
    plan = TgGBCPlan(**SETTINGS, activation=activation)
    run_upgrade(config, weights, plan, folder / 'report', {}, timed=2, repeats=1, pictures=2)
    return folder


def test_every_family_has_a_test() -> None:
    names = {getattr(family, '__name__', '').rsplit('.', 1)[-1] for family in adapters.FAMILIES}
    assert names == {*FAMILIES, 'petr'}


def test_the_report_shows_accuracy_and_fewer_keys(made: Path) -> None:
    report = json.loads((made / 'report' / 'report.json').read_text())
    metric = 'mAP' if made.name == 'HookedPETR' else 'bbox_mAP'
    assert metric in report['baseline'] and metric in report['upgraded']
    if metric == 'bbox_mAP':  # it was annotated with what the baseline finds
        assert report['baseline'][metric] == pytest.approx(1.0, abs=0.01)
        assert report['upgraded'][metric] < report['baseline'][metric]
    assert report['upgraded']['keys'][1] < report['baseline']['keys'][1]
    assert report['samples']['evaluated'] == (3 if made.name == 'HookedPETR' else 4)
    assert f'| {metric} |' in (made / 'report' / 'report.md').read_text()


def test_pictures_show_samples(made: Path) -> None:
    files = sorted((made / 'report' / 'pictures').iterdir())
    assert len(files) == 2
    assert all(cv2.imread(str(file)).std() > 10 for file in files)


def test_the_upgraded_model_is_the_one_that_was_measured(made: Path) -> None:
    config = Config.fromfile(made / 'report' / 'upgraded.py')
    config.load_from, config.work_dir = str(made / 'report' / 'upgraded.pth'), str(made / 'test')
    found = Runner.from_cfg(config).test()
    expected = json.loads((made / 'report' / 'report.json').read_text())['upgraded']
    name = 'mAP' if made.name == 'HookedPETR' else 'bbox_mAP'
    (value,) = [value for key, value in found.items() if key.rsplit('/', 1)[-1] == name]
    assert value == pytest.approx(expected[name], abs=1e-4)


def test_a_search_limits_the_drop_of_coco(tmp_path: Path) -> None:
    config, weights = small_families.make_detr(tmp_path / 'detr', False)
    request = SearchRequest(TgGBCPlan(r=1, k=4, activation='softmax'), max_drop=0.9, calibrate=2)
    out = tmp_path / 'out'
    run_upgrade(config, weights, request, out, {}, timed=1, repeats=1, pictures=0, samples=3)
    report = json.loads((out / 'report.json').read_text())
    assert report['search']['samples'] == 2 and report['search']['baseline']['bbox_mAP'] == pytest.approx(1, abs=0.01)
    assert report['samples'] == {'evaluated': 3, 'timed': 1, 'total': 4, 'chosen': 'evenly spaced'}
    # images without predictions would count as missed, were they not left out
    assert report['baseline']['bbox_mAP'] == pytest.approx(1, abs=0.01)
    assert torch.load(out / 'upgraded.pth', weights_only=True)['meta']['mmprune3d']['tggbc'] == report['plan']
    with pytest.raises(ValueError, match='CocoMetric of the config gives none of them'):
        run_upgrade(config, weights, request, out, {'test_evaluator.metric': 'proposal'}, 1, 1, 0)
