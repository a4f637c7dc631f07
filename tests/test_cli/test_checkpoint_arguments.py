"""Every command line takes checkpoints as files and as addresses, and reads them safely."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch

from mmprune3d.cli import common, main, parser

from .commands import all_commands

ROOT = Path(__file__).parents[2]
ADDRESS = 'http://host/a/w.pth'
COMMANDS = {
    'compact': [],
    'export onnx': [],
    'inspect halting': ['--samples', '1'],
    'inspect keys': [],
    'inspect layers': [],
    'inspect queries': [],
    'prune': [],
    'upgrade': ['tggbc', 'r=3'],
}


@pytest.mark.parametrize('name', COMMANDS)
def test_an_address_stays_one(name):
    words = [*name.split(), 'config.py', ADDRESS, *COMMANDS[name]]
    assert common.parse(parser(), words).checkpoint == ADDRESS


def test_every_command_with_a_model_is_tested_here():
    with_model = {name for name, made in all_commands() if {'config', 'checkpoint'} <= {a.dest for a in made._actions}}
    assert with_model == COMMANDS.keys()


def test_addresses_are_compared_too():
    from mmprune3d.inspect.gpq import Candidate

    assert Candidate.parse(f'pruned=a/config.py:{ADDRESS}') == Candidate('pruned', Path('a/config.py'), ADDRESS)


@pytest.mark.parametrize('name', ['publish', 'fuse', 'convert', 'info'])
def test_what_cannot_be_read_is_one_line(name, tmp_path, capsys):
    bad, good = tmp_path / 'bad.pth', tmp_path / 'good.pth'
    bad.write_text('<html><title>Not here</title></html>')
    torch.save({'state_dict': {'a': torch.ones(1)}}, good)
    arguments = {
        'publish': [bad, tmp_path / 'out.pth'],
        'fuse': [good, bad, tmp_path / 'out.pth'],
        'convert': [bad, tmp_path / 'out.pth', '--from', 'petr-official'],
        'info': [bad],
    }[name]
    with pytest.raises(SystemExit) as stopped:
        main(['checkpoint', name, *map(str, arguments)])
    said = f'{stopped.value.code} {capsys.readouterr().err}'
    assert f'error: {bad} ({bad.stat().st_size} bytes)' in said and "a web page ('Not here')" in said
    assert not (tmp_path / 'out.pth').exists()


def calls_of_load(path):
    """The keywords of every ``torch.load(...)`` in a file."""
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == 'torch.load':
            yield {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}


def test_no_checkpoint_is_a_program():
    found = [
        call
        for folder in ('mmprune3d', 'tools', 'experiments')
        for path in (ROOT / folder).rglob('*.py')
        for call in calls_of_load(path)
    ]
    assert found and all(call.get('weights_only') == 'True' for call in found)
