"""Where the demo finds its model, and what it upgrades."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mmprune3d.cli import demo, main
from tests.conftest import CONFIG


def installed(folder: Path, monkeypatch: pytest.MonkeyPatch, weights: bool) -> Path:
    """An installed package: its config is in ``.mim``, and its parent folder has nothing of ours."""
    config = folder / 'site-packages' / 'mmprune3d' / '.mim' / demo.CONFIG
    config.parent.mkdir(parents=True)
    config.touch()
    if weights:
        config.with_suffix('.pth').touch()
    monkeypatch.setattr(demo, 'PACKAGE', folder / 'site-packages' / 'mmprune3d')
    return config


def test_a_checkout_has_both():
    assert demo.find_model(None) == (CONFIG, CONFIG.with_suffix('.pth'))
    assert demo.find_model('other.pth') == (CONFIG, 'other.pth')


def test_an_installed_package_has_the_config_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    config = installed(tmp_path, monkeypatch, weights=False)
    assert demo.find_model('http://host/w.pth') == (config, 'http://host/w.pth')
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=r'error: the weights of the demo are not in .*--checkpoint PATH'):
        main(['demo'])
    assert not (tmp_path / 'data').exists()


def test_an_editable_install_has_both_behind_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    config = installed(tmp_path, monkeypatch, weights=True)
    assert demo.find_model(None) == (config, config.with_suffix('.pth'))


def test_nothing_of_ours_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(demo, 'PACKAGE', tmp_path / 'mmprune3d')
    with pytest.raises(FileNotFoundError, match='install again'):
        demo.find_model('w.pth')


@pytest.mark.parametrize(
    ('words', 'plan'),
    [([], (740, 1, 50)), (['r=100', 'n=2', 'k=9'], (100, 2, 9)), (['tggbc', 'r=100', 'n=2', 'k=9'], (100, 2, 9))],
)
def test_scenes_that_are_there_are_used(
    words: list[str], plan: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr('mmprune3d.upgrade.run.run_upgrade', lambda *args, **_: calls.append(args))
    monkeypatch.setattr('mmprune3d.datasets.synthetic.generate.generate', None)
    (tmp_path / 'data').mkdir()
    (tmp_path / 'data' / demo.INFOS).touch()
    assert main(['demo', *words, '--data', str(tmp_path / 'data'), '--out', str(tmp_path / 'out')]) == 0
    ((config, checkpoint, found, out, overrides),) = calls
    assert (config, checkpoint, out) == (CONFIG, CONFIG.with_suffix('.pth'), tmp_path / 'out')
    assert (found.r, found.n, found.k) == plan
    assert overrides['test_evaluator.ann_file'] == f'{tmp_path}/data/nuscenes_infos_val.pkl'


def test_missing_scenes_are_generated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    made: list[Any] = []
    monkeypatch.setattr('mmprune3d.upgrade.run.run_upgrade', lambda *args, **_: None)
    monkeypatch.setattr('mmprune3d.datasets.synthetic.generate.generate', made.append)
    monkeypatch.chdir(tmp_path)
    assert main(['demo', '--scenes', '3']) == 0
    assert made[0].out == Path('data/demo-nuscenes') and made[0].val_scenes == 3 and made[0].image_size == (352, 128)
    assert '3 validation scenes of 24 samples' in capsys.readouterr().out


def test_what_cannot_be_used_is_said_before_scenes_are_generated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr('mmprune3d.datasets.synthetic.generate.generate', None)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=r'^error: none\.pth does not exist$'):
        main(['demo', '--checkpoint', 'none.pth', '--data', 'data'])
    Path('mine').mkdir()
    Path('mine', 'photo.jpg').touch()
    with pytest.raises(SystemExit, match=r'^error: mine exists and is no generated data set .*choose another --data$'):
        main(['demo', '--data', 'mine'])
    assert [*Path('mine').iterdir()] == [Path('mine', 'photo.jpg')] and not Path('data').exists()
