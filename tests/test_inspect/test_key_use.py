"""Which keys a plan keeps, on the samples of the tiny data set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from mmprune3d import adapters
from mmprune3d.cli import main
from mmprune3d.inspect.key_use import KeyUse, SampleKeys, run_keys
from mmprune3d.measure.runners import loaded_runner, prepare, read_config
from mmprune3d.pruning.tggbc import TgGBCPlan
from mmprune3d.pruning.tome import ToMePlan
from tests.conftest import CONFIG

CAMERAS, CELLS = 6, (4, 10)
KEYS = CAMERAS * CELLS[0] * CELLS[1]
LAYERS = 6
PLAN = TgGBCPlan(r=150, n=2, k=20)


@pytest.fixture(scope='module')
def out(tmp_path_factory: pytest.TempPathFactory, overrides: dict[str, Any], petr_checkpoint: Path) -> Path:
    out = tmp_path_factory.mktemp('keys')
    text = run_keys(CONFIG, petr_checkpoint, PLAN, out, overrides, samples=2, pictures=1)
    assert text == (out / 'report.md').read_text()
    return out


@pytest.fixture(scope='module')
def report(out: Path) -> dict[str, Any]:
    return json.loads((out / 'report.json').read_text())


def test_keys_and_shares_per_camera_are_those_of_an_obvious_count(
    report: dict[str, Any], overrides: dict[str, Any], petr_checkpoint: Path, tmp_path: Path
) -> None:
    runner = loaded_runner(prepare(read_config(CONFIG, petr_checkpoint, overrides), petr_checkpoint, tmp_path))
    adapters.attach(runner.model, PLAN)
    loader, expected = runner.test_dataloader, []
    for index in (0, 2):  # evenly spaced among three
        batch = loader.collate_fn([loader.dataset[index]])
        with torch.no_grad():
            kept = adapters.kept_keys(runner.model, lambda batch=batch: runner.model.test_step(batch))
        counts = [np.bincount(ids[0].numpy() // (CELLS[0] * CELLS[1]), minlength=CAMERAS) for ids in kept]
        expected.append(np.array(counts) / (CELLS[0] * CELLS[1]))
    shares = np.array(expected)  # sample, layer, camera
    assert (
        report['keys_per_layer'] == [*PLAN.keys_per_layer(KEYS, LAYERS)] and report['keys_per_layer'][-1] == KEYS - 150
    )
    assert report['samples'] == 2 and report['plan']['r'] == 150
    names = list(report['cameras'])
    assert len(names) == CAMERAS and names[0] == 'CAM_FRONT'
    for place, name in enumerate(names):
        row = report['cameras'][name]
        np.testing.assert_allclose(row['kept_per_layer'], shares[:, :, place].mean(0))
        np.testing.assert_allclose(row['kept_by_last_layer'], shares[:, -1, place])


def test_attention_on_kept_keys(report: dict[str, Any]) -> None:
    on_kept = report['attention_on_kept_keys']
    assert len(on_kept) == LAYERS - 1 and on_kept[0] == pytest.approx(1)
    assert all(0 < value < 1 for value in on_kept[1:])
    table = report['attention_kept_by_layer']
    assert len(table) == LAYERS - 1 and all(0 < value < 1 for row in table for value in row)


def test_report_and_pictures_for_people(out: Path, report: dict[str, Any]) -> None:
    text = (out / 'report.md').read_text()
    assert '| 1 | 240 | 100.0 | 100.0 |' in text and '| 6 | 90 | 37.5 | - |' in text
    assert '| CAM_BACK_LEFT | 100 |' in text and 'k = 20, 37.5 % stay' in text
    assert report['pictures'] == ['pictures/keys_0000.jpg'] and '(pictures/keys_0000.jpg)' in text
    image = cv2.imread(str(out / 'pictures' / 'keys_0000.jpg'))
    assert min(image.shape[:2]) > 200 and image.std() > 20


def test_the_command(tmp_path: Path, overrides: dict[str, Any], petr_checkpoint: Path, capsys: pytest.CaptureFixture):
    words = [f'{name}={value}'.replace(' ', '') for name, value in overrides.items()]
    command = ['inspect', 'keys', str(CONFIG), str(petr_checkpoint), 'tome', 'r=60', 'n=1', '--samples', '1']
    assert main([*command, '--pictures', '0', '--out', str(tmp_path / 'out'), '--cfg-options', *words]) == 0
    printed = capsys.readouterr().out
    assert '# Keys of petr_tiny' in printed and f'wrote {tmp_path / "out"}' in printed
    found = json.loads((tmp_path / 'out' / 'report.json').read_text())
    assert found['keys_per_layer'] == [240, *[180] * 5] and found['plan']['method'] == 'tome'
    with pytest.raises(SystemExit, match=r'error: .*r=240 of 240 keys leaves none'):
        main([*command[:4], 'tggbc', 'r=240', '--out', str(tmp_path / 'no'), '--cfg-options', *words])
    assert not (tmp_path / 'no' / 'report.json').exists()


def test_a_detector_without_a_known_decoder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match=r'error: .*none\.pth does not exist'):
        main(['inspect', 'keys', str(CONFIG), str(tmp_path / 'none.pth'), '--out', str(tmp_path / 'out')])


def test_keys_that_are_no_cells_of_images_have_no_cameras() -> None:
    sample = SampleKeys([np.arange(7), np.array([1, 3])], ['a', 'b'], (32, 32))
    with pytest.raises(ValueError, match='7 keys do not cover 2 images'):
        sample.camera_shares()
    keys = torch.tensor([[7, 2]])
    use = KeyUse(ToMePlan(r=3), keys, {}, '7 keys do not cover 2 images', None, None, {'device': 'x'})
    text = use.markdown('detr')
    assert 'Shares per camera are not known: 7 keys do not cover 2 images.' in text
    assert '| 2 | 2 | 28.6 | - |' in text and 'only PETR3D of mmprune3d tells its attention' in text
    assert use.to_dict()['attention_on_kept_keys'] is None
