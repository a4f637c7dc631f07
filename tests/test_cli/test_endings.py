"""What tools say when results cannot be written: one line, before their work."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parents[2] / 'tools'
# Inputs that do not exist: the place of the results is looked at first.
COMMANDS = {
    'align_positions': ['none.py', '{file}/out.pth'],
    'analyze_queries': ['none.py', 'none.pth', '--out', '{file}/out'],
    'benchmark': ['queries', '--json', '{file}/out.json'],
    'compact': ['none.py', 'none.pth', '--out', '{file}'],
    'convert_checkpoint': ['none.pth', '{file}/out.pth', '--from', 'petr-official'],
    'demo': ['--data', '{file}/data', '--out', '{file}/out'],
    'export_onnx': ['none.py', 'none.pth', '--out', '{file}/head.onnx'],
    'fuse_checkpoints': ['none.pth', 'none.pth', '{file}/out.pth'],
    'prune': ['none.py', 'none.pth', '--out', '{file}/out'],
    'publish_checkpoint': ['none.pth', '{file}/out.pth'],
    'show_halting': ['none.py', 'none.pth', '--count', '1', '--out', '{file}/out'],
    'study_fusion': ['train', 'dense', '--out', '{file}/out'],
    'study_halting': ['train', 'sst', '--out', '{file}/out'],
    'study_keys': ['none.py', 'none.pth', '--out', '{file}/out'],
    'study_queries': ['train', 'scratch-300', '--out', '{file}/out'],
    'synthesize_nuscenes': ['{file}/data'],
    'visualize_dataset': ['none', '--out', '{file}/sheet.jpg'],
}
WRITES_NOTHING = {'doctor', 'overfit_frame'}
OF_OTHERS = {'train', 'test'}
"""mmdet3d's, which make their work folder first."""


@pytest.mark.parametrize('name', COMMANDS)
def test_folders_that_cannot_be_written_are_refused_first(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / 'file'
    file.touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'argv', [f'{name}.py', *(word.format(file=file) for word in COMMANDS[name])])
    with pytest.raises(SystemExit, match=rf'^error: {re.escape(str(file))}\S*: .*results cannot be written there'):
        runpy.run_path(str(TOOLS / f'{name}.py'), run_name='__main__')
    assert list(tmp_path.iterdir()) == [file]


def test_all_tools_end_in_one_way():
    names = {path.stem for path in TOOLS.glob('*.py')}
    assert names == COMMANDS.keys() | WRITES_NOTHING | OF_OTHERS | {'upgrade'}
    for name in names - {'doctor', 'upgrade'}:
        assert 'run_main(' in (TOOLS / f'{name}.py').read_text(), name
