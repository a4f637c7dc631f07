"""``mmprune3d doctor`` where nothing but Python is installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from mmprune3d import doctor
from mmprune3d.cli import main

ROOT = Path(__file__).resolve().parents[2]


def test_works_without_any_package(tmp_path: Path):
    """As with ``python -S``: no site-packages, so that neither torch nor mmengine is there."""
    code = f'import sys; sys.path.insert(0, {str(ROOT)!r}); from mmprune3d.cli import main; sys.exit(main(["doctor"]))'
    done = subprocess.run([sys.executable, '-S', '-E', '-c', code], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (1, '')
    for name in ('torch', 'mmcv', 'mmengine', 'mmdet', 'mmdet3d', 'numpy'):
        assert f'{name}: {name} is not installed' in done.stdout


def test_the_status_is_that_of_the_examination(monkeypatch, capsys):
    broken = [doctor.Finding('torch', '0.1', 'too old')]
    monkeypatch.setattr(doctor, 'examine', lambda: broken)
    assert main(['doctor']) == 1 and 'torch: too old' in capsys.readouterr().out
    monkeypatch.setattr(doctor, 'examine', lambda: [doctor.Finding('torch', '2.0')])
    assert main(['doctor']) == 0
