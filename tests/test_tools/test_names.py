"""The tools that stay beside the console command, for those who know mmdet3d's."""

from __future__ import annotations

from pathlib import Path

TOOLS = Path(__file__).resolve().parents[2] / 'tools'
PROGRAMS = {'train', 'test', 'upgrade', 'doctor'}
LAUNCHERS = {'dist_train', 'dist_test', 'slurm_train', 'slurm_test'}


def test_no_other_tools_are_there():
    assert {path.stem for path in TOOLS.glob('*.py')} == PROGRAMS
    assert {path.stem for path in TOOLS.glob('*.sh')} == LAUNCHERS


def test_all_tools_end_in_one_way():
    for name in PROGRAMS - {'upgrade'}:
        assert 'run_main(' in (TOOLS / f'{name}.py').read_text(), name
