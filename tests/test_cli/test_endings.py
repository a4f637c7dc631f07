"""What commands say when results cannot be written: one line, before their work."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mmprune3d.cli import main

from .commands import all_commands

# Inputs that do not exist: the place of the results is looked at first.
COMMANDS = {
    'checkpoint convert': ['none.pth', '{file}/out.pth', '--from', 'petr-official'],
    'checkpoint fuse': ['none.pth', 'none.pth', '{file}/out.pth'],
    'checkpoint publish': ['none.pth', '{file}/out.pth'],
    'compact': ['none.py', 'none.pth', '--out', '{file}'],
    'demo': ['--data', '{file}/data', '--out', '{file}/out'],
    'export onnx': ['none.py', 'none.pth', '--out', '{file}/head.onnx'],
    'inspect halting': ['none.py', 'none.pth', '--samples', '1', '--out', '{file}/out'],
    'inspect keys': ['none.py', 'none.pth', '--out', '{file}/out'],
    'inspect layers': ['none.py', 'none.pth', '--out', '{file}/out'],
    'inspect queries': ['none.py', 'none.pth', '--out', '{file}/out'],
    'prune': ['none.py', 'none.pth', '--out', '{file}/out'],
    'synth make': ['{file}/data'],
    'synth show': ['none', '--out', '{file}/sheet.jpg'],
}
WRITES_NOTHING = {'doctor', 'checkpoint info'}
ELSEWHERE = {'upgrade'}
"""Tested in tests/test_upgrade."""


@pytest.mark.parametrize('name', COMMANDS)
def test_folders_that_cannot_be_written_are_refused_first(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / 'file'
    file.touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=rf'^error: {re.escape(str(file))}\S*: .*results cannot be written there'):
        main([*name.split(), *(word.format(file=file) for word in COMMANDS[name])])
    assert list(tmp_path.iterdir()) == [file]


def test_every_command_that_writes_is_tested_here():
    assert {name for name, _ in all_commands()} == COMMANDS.keys() | WRITES_NOTHING | ELSEWHERE


@pytest.mark.parametrize(
    'line',
    [
        'checkpoint publish a.pth a.pth',
        'checkpoint fuse a.pth b.pth ./a.pth',
        'checkpoint fuse b.pth a.pth a.pth',
        'export onnx c.py a.pth --out a.pth',
        'export onnx a.pth b.pth --out a.pth',
        'prune out/slim.py a.pth flops=0.5 --out out',
        'prune c.py out/slim.pth sparsity=0.5 --out out',
    ],
)
def test_what_is_read_is_not_replaced(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path('a.pth').write_text('the only copy')
    with pytest.raises(SystemExit, match=r'^error: \S+ is what is read, and would be replaced: choose another name$'):
        main(line.split())
    assert Path('a.pth').read_text() == 'the only copy' and [*tmp_path.iterdir()] == [tmp_path / 'a.pth']


@pytest.mark.parametrize(
    'line',
    [
        'checkpoint publish none.pth folder',
        'checkpoint fuse none.pth none.pth folder',
        'checkpoint convert none.pth folder --from petr-official',
        'export onnx none.py none.pth --out folder',
        'synth show none --out folder',
    ],
)
def test_a_folder_is_no_file_to_write(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path('folder').mkdir()
    with pytest.raises(
        SystemExit, match=r'^error: folder (is a folder: give the name of the file to write|exists; .*)$'
    ):
        main(line.split())


@pytest.mark.parametrize('line', ['checkpoint publish none.pth a.pth', 'checkpoint fuse none.pth none.pth a.pth'])
def test_checkpoints_are_not_replaced(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path('a.pth').write_text('the only copy')
    with pytest.raises(SystemExit, match=r'^error: a\.pth exists; choose another name$'):
        main(line.split())
    assert Path('a.pth').read_text() == 'the only copy'
