from __future__ import annotations

from importlib import metadata
from pathlib import Path

import mmcv
import mmdet3d
import pytest

from experiments.gpq import benchmark as query_benchmark
from mmprune3d.measure.report import environment, versions_of


@pytest.fixture
def nothing_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, 'version', absent)


@pytest.mark.usefixtures('nothing_is_installed')
def test_versions_of_packages_that_are_only_on_the_path() -> None:
    found = environment(2, 'float32', 'cpu')
    assert (found['mmcv'], found['mmdet3d'], found['batch']) == (mmcv.__version__, mmdet3d.__version__, 2)
    assert set(query_benchmark.versions()) == {'onnx', 'onnxscript', 'onnxruntime'}


@pytest.mark.usefixtures('nothing_is_installed')
def test_a_version_that_nobody_knows_costs_no_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / 'silent_here.py').write_text('')
    (tmp_path / 'broken_here.py').write_text('raise RuntimeError("no")')
    monkeypatch.syspath_prepend(tmp_path)
    assert set(versions_of('silent_here', 'broken_here', 'nowhere_at_all').values()) == {'unknown'}
