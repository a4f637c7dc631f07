"""Configs with every mistake that users make: one line that names the file and says what is valid."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mmprune3d import config_files
from mmprune3d.cli import main

MODEL = "model = dict(type='PETR3D')\n"
WRONG = {
    'syntax.py': ('a = 1\nmodel = dict(\n', r"syntax\.py cannot be read as a config: line 2: '\(' was never closed"),
    'raises.py': (f'{MODEL}a = 1 / 0\n', r'raises\.py cannot be read as a config: line 2: ZeroDivisionError: division'),
    'unknown.py': (
        f'{MODEL}\n\na = b\n',
        r"unknown\.py cannot be read as a config: line 4: NameError: name 'b'",
    ),
    'empty.py': ('', r'empty\.py has no model \(it has nothing\): give the config of a detector'),
    'other.py': ('data_root = 3\n', r'other\.py has no model \(it has data_root\)'),
    'number.py': ('model = 3\n', r'number\.py: model must be a dict with the type of a detector'),
    'no_type.py': ('model = dict(a=1)\n', r'no_type\.py: model must be a dict with the type of a detector'),
    'loader.py': (f'{MODEL}test_dataloader = 3\n', r'loader\.py: test_dataloader=3 must be a dict'),
    'hooks.py': (f'{MODEL}custom_hooks = 5\n', r'hooks\.py: custom_hooks=5 must be a list or a tuple'),
    'text.txt': (MODEL, r'text\.txt is not a config: valid are files that end with \.py, \.json'),
    'cut.json': ('{"model": ', r'cut\.json cannot be read as a config: JSONDecodeError: '),
}
COMMANDS = {
    'upgrade': ['tggbc', 'r=3'],
    'prune': ['sparsity=0.5'],
    'compact': [],
    'export onnx': [],
    'inspect halting': ['--samples', '1'],
    'inspect keys': [],
    'inspect layers': [],
    'inspect queries': [],
}


@pytest.mark.parametrize('name', WRONG)
def test_the_file_and_the_mistake_are_named(name: str, tmp_path: Path) -> None:
    text, message = WRONG[name]
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=f'^{re.escape(str(tmp_path))}/{message}'):
        config_files.read(tmp_path / name)


def test_a_mistake_in_a_base_is_found_there(tmp_path: Path) -> None:
    (tmp_path / 'base.py').write_text(f'{MODEL}a = 1 / 0\n')
    (tmp_path / 'config.py').write_text("_base_ = 'base.py'\n")
    with pytest.raises(ValueError, match=r'config\.py cannot be read as a config: line 2 of \S+base\.py: ZeroDivision'):
        config_files.read(tmp_path / 'config.py')
    (tmp_path / 'base.py').unlink()
    with pytest.raises(FileNotFoundError, match=r'base\.py'):
        config_files.read(tmp_path / 'config.py')


def test_what_is_not_a_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match='is a folder: give a config file'):
        config_files.read(tmp_path)
    with pytest.raises(FileNotFoundError, match=r'none\.py does not exist'):
        config_files.read(tmp_path / 'none.py')


@pytest.mark.parametrize('key', ['model.type.x', 'a.9.x', 'b.x'])
def test_overrides_that_do_not_fit(key: str, tmp_path: Path) -> None:
    (tmp_path / 'config.py').write_text(f'{MODEL}a = [dict(x=1)]\nb = 3\n')
    assert config_files.read(tmp_path / 'config.py', {'model.n': 2, 'a.0.x': 4}).a[0].x == 4
    with pytest.raises(ValueError, match=rf'^--cfg-options {re.escape(key)}=3 do not fit \S+config\.py: '):
        config_files.read(tmp_path / 'config.py', {key: 3})


@pytest.mark.parametrize('command', COMMANDS)
def test_every_command_says_it_in_one_line(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path('config.py').write_text('model = dict(\n')
    with pytest.raises(SystemExit, match=r"^error: config\.py cannot be read as a config: line 1: '\(' was .*closed$"):
        main([*command.split(), 'config.py', 'none.pth', *COMMANDS[command], '--out', 'out/x'])
    Path('config.py').write_text('a = 1\n')
    with pytest.raises(SystemExit, match=r'^error: config\.py has no model \(it has a\): [^\n]*$'):
        main([*command.split(), 'config.py', 'none.pth', *COMMANDS[command], '--out', 'out/x'])
