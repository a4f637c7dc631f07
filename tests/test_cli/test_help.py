"""The help of every command: it fits a screen, shows an example that can be parsed, and imports nothing heavy."""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from mmprune3d.checkpoint.convert import ALL_SOURCES
from mmprune3d.cli import COMMANDS, common, main, parser, synth, upgrade
from mmprune3d.datasets.synthetic.config import MODALITIES
from mmprune3d.upgrade import methods
from mmprune3d.version import __version__

from .commands import all_commands

EVERY = dict(all_commands(groups=True))
LINES, COLUMNS = 30, 80


@pytest.fixture(autouse=True)
def screen(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv('COLUMNS', str(COLUMNS))


def help_of(name: str, capsys: pytest.CaptureFixture) -> str:
    with pytest.raises(SystemExit) as stopped:
        main([*name.split(), '--help'])
    assert stopped.value.code == 0
    return capsys.readouterr().out


def examples(text: str) -> list[str]:
    return re.findall(r'^ +mmprune3d (.+)$', text, re.MULTILINE)


@pytest.mark.parametrize('name', EVERY)
def test_help_fits_a_screen_and_shows_an_example(name: str, capsys: pytest.CaptureFixture):
    text = help_of(name, capsys)
    assert len(text.splitlines()) <= LINES
    assert max(map(len, text.splitlines())) <= 120
    assert text.startswith(f'usage: {f"mmprune3d {name}".strip()} ')
    shown = [line for line in examples(text) if line.startswith(name)]
    assert shown
    for line in shown:
        parsed = common.parse(parser(), shlex.split(line))
        assert callable(parsed.run)


@pytest.mark.parametrize('name', EVERY)
def test_options_have_a_line_of_help(name: str):
    actions = [action for action in EVERY[name]._actions if not isinstance(action, argparse._SubParsersAction)]
    assert all(action.help for action in actions)


def test_names_that_are_known_without_imports_are_the_right_ones(capsys: pytest.CaptureFixture):
    assert synth.SENSORS == MODALITIES
    assert upgrade.GROUP == methods.GROUP and list(upgrade.METHODS) == [
        name for name, method in methods.known().items() if method.plan_type.__module__.startswith('mmprune3d.')
    ]
    text = help_of('checkpoint convert', capsys)
    assert [line.split()[0] for line in re.findall(r'^  ([a-z]\S+-\S+ .*)$', text, re.MULTILINE)] == [*ALL_SOURCES]


@pytest.mark.parametrize('name', [name for name, made in EVERY.items() if dict(all_commands()).get(name) is None])
def test_a_command_without_its_subcommand_prints_its_help(name: str, capsys: pytest.CaptureFixture):
    assert main(name.split()) == 2
    assert capsys.readouterr().err == help_of(name, capsys)


def test_version(capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit, match='0'):
        main(['--version'])
    assert capsys.readouterr().out == f'mmprune3d {__version__}\n'


def test_every_command_is_in_the_help(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv('COLUMNS', '120')  # a line each
    text = help_of('', capsys)
    for name, command in COMMANDS.items():
        assert re.search(rf'^ +{name} +{re.escape(command.HELP)}$', text, re.MULTILINE)


def test_help_imports_neither_torch_nor_mmengine(tmp_path: Path):
    code = (
        'import sys\nfrom mmprune3d.cli import parser\n'
        'for name in sys.argv[1:]:\n'
        '    try:\n        parser().parse_args([*name.split(), "--help"])\n    except SystemExit:\n        pass\n'
        '    heavy = {"torch", "mmengine", "mmcv", "mmdet3d", "numpy", "cv2"} & set(sys.modules)\n'
        '    assert not heavy, (name, heavy)'
    )
    done = subprocess.run([sys.executable, '-c', code, *EVERY], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('usage: ') == len(EVERY)


def test_the_module_is_the_command(tmp_path: Path):
    command = [sys.executable, '-m', 'mmprune3d', 'checkpoint', 'info', 'none.pth']
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (1, '', 'error: none.pth does not exist\n')
