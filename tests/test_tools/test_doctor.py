from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mmprune3d import doctor

TOOL = Path(__file__).resolve().parents[2] / 'tools' / 'doctor.py'
COMPLETE = {
    'torch': '2.13.0+cpu',
    'mmengine': '0.10.7',
    'mmcv': '2.1.0',
    'mmdet': '3.3.0',
    'mmdet3d': '1.4.0',
    'numpy': '1.26.4',
    'opencv-python-headless': '4.11.0.86',
    **{name: '1.0' for name, _, _ in doctor.OPTIONAL},
}


def report(changes=None, importing=lambda name: None, output=lambda *command: ''):
    """Findings by name for an installation that differs from the complete one by `changes`."""
    versions = COMPLETE | (changes or {})
    findings = doctor.examine(versions.get, importing, output)
    return {finding.name: finding for finding in findings}, doctor.render(findings)


def test_complete_installation_is_clean():
    findings, text = report()
    assert all(finding.problem is None for finding in findings.values())
    assert text.endswith('mmprune3d can be used here.')


@pytest.mark.parametrize(
    ('changes', 'name', 'typed'),
    [
        ({'mmcv': '2.2.0'}, 'mmcv', 'mmcv==2.1.0'),
        ({'mmdet3d': None}, 'mmdet3d', 'pip install "mmdet3d==1.4.0"'),
        ({'mmcv': None, 'mmcv-lite': '2.1.0'}, 'mmcv-lite', 'pip uninstall -y mmcv-lite'),
        ({'numpy': None}, 'numpy', 'pip install "numpy<2"'),
        ({'opencv-python-headless': None}, 'opencv', 'opencv-python-headless'),
    ],
)
def test_what_stops_mmprune3d_is_named_with_its_command(changes, name, typed):
    findings, text = report(changes)
    assert findings[name].fatal and typed in findings[name].problem
    assert 'To repair:' in text and typed in text and 'can be used' not in text


@pytest.mark.parametrize(
    ('changes', 'name', 'typed'),
    [
        ({'opencv-python': '4.8.0'}, 'opencv', 'pip uninstall -y opencv-python opencv-python-headless'),
        ({'numpy': '2.3.0'}, 'numpy', 'pip install "numpy<2"'),
        ({'spconv': None}, 'spconv', 'pip install spconv'),
        ({'embreex': None}, 'embreex', 'pip install embreex'),
    ],
)
def test_what_does_not_stop_it_is_advice(changes, name, typed):
    findings, text = report(changes)
    assert not findings[name].fatal and typed in findings[name].problem
    assert 'Works without, but:' in text and text.endswith('mmprune3d can be used here.')


def test_mmcv_without_ops_has_to_be_built_again():
    error = "ModuleNotFoundError: No module named 'mmcv._ext'"
    findings, text = report(importing=lambda name: error if name == 'mmcv.ops' else None)
    assert findings['mmcv ops'].value == error and doctor.REBUILD_MMCV in text


@pytest.mark.parametrize(('compiler', 'clean'), [('nvcc, release 12.4', True), ('nvcc, release 11.8', False)])
def test_cuda_versions_are_compared(monkeypatch, compiler, clean):
    monkeypatch.setattr(torch.version, 'cuda', '12.1')
    findings, _ = report(output=lambda *command: compiler if command[0] == 'nvcc' else '')
    assert (findings['CUDA'].problem is None) == clean


def test_packages_on_the_path_count_and_broken_ones_are_missing(tmp_path, monkeypatch):
    (tmp_path / 'only_on_the_path.py').write_text('__version__ = "7.8"')
    (tmp_path / 'broken_here.py').write_text('raise RuntimeError("no")')
    (tmp_path / 'silent_here.py').write_text('')
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(doctor.MODULES, 'silent-dist', 'silent_here')
    versions = {name: doctor.version_of(name) for name in ('only_on_the_path', 'broken_here', 'silent-dist', 'absent')}
    assert versions == {'only_on_the_path': '7.8', 'broken_here': None, 'silent-dist': 'on the path', 'absent': None}


def test_import_errors_become_one_line(tmp_path, monkeypatch):
    (tmp_path / 'broken_here.py').write_text('raise RuntimeError("first\\nsecond")')
    monkeypatch.syspath_prepend(tmp_path)
    assert doctor.try_import('broken_here') == 'RuntimeError: first'
    assert doctor.try_import('json') is None


def test_works_without_any_package(tmp_path):
    """A Python with nothing installed (-S: no site-packages) gets a report and the commands."""
    done = subprocess.run(
        [sys.executable, '-S', '-E', str(TOOL)], capture_output=True, text=True, stdin=subprocess.DEVNULL, cwd=tmp_path
    )
    assert done.returncode == 1, done.stderr
    assert done.stderr == ''
    for name in ('torch', 'mmcv', 'mmengine', 'mmdet', 'mmdet3d', 'numpy'):
        assert f'{name}: {name} is not installed' in done.stdout


def test_exit_status_of_this_installation():
    done = subprocess.run([sys.executable, str(TOOL)], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stdout
    assert 'mmcv ops' in done.stdout and 'available' in done.stdout


def test_a_reader_that_leaves_is_no_error():
    """As in ``doctor.py | head -1``."""
    with subprocess.Popen([sys.executable, str(TOOL)], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b''
    assert process.returncode == 1
