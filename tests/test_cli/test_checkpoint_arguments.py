"""Every command line takes checkpoints as files and as addresses, and reads them safely."""

from __future__ import annotations

import ast
import importlib.util
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
ADDRESS = 'http://host/a/w.pth'
TOOLS = {
    'analyze_queries': [],
    'compact': [],
    'export_onnx': [],
    'prune': [],
    'show_halting': ['--count', '1'],
    'study_keys': [],
    'upgrade': [],
}


def tool(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / 'tools' / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize('name', TOOLS)
def test_an_address_stays_one(name, monkeypatch):
    monkeypatch.setattr(sys, 'argv', [name, 'config.py', ADDRESS, *TOOLS[name]])
    assert tool(name).parse_args().checkpoint == ADDRESS


@pytest.mark.parametrize('name', ['study_fusion', 'study_halting'])
def test_an_address_stays_one_in_a_study(name, monkeypatch):
    monkeypatch.setattr(sys, 'argv', [name, 'train', 'dense', '--checkpoint', ADDRESS])
    assert tool(name).parse_args().checkpoint == ADDRESS


def test_addresses_are_compared_too():
    from mmprune3d.inspect.gpq import Candidate

    assert Candidate.parse(f'pruned=a/config.py:{ADDRESS}') == Candidate('pruned', Path('a/config.py'), ADDRESS)


@pytest.mark.parametrize('name', ['publish_checkpoint', 'fuse_checkpoints', 'convert_checkpoint', 'align_positions'])
def test_what_cannot_be_read_is_one_line(name, tmp_path, monkeypatch, capsys):
    bad, good = tmp_path / 'bad.pth', tmp_path / 'good.pth'
    bad.write_text('<html><title>Not here</title></html>')
    torch.save({'state_dict': {'a': torch.ones(1)}}, good)
    arguments = {
        'publish_checkpoint': [bad, tmp_path / 'out.pth'],
        'fuse_checkpoints': [good, bad, tmp_path / 'out.pth'],
        'convert_checkpoint': [bad, tmp_path / 'out.pth', '--from', 'petr-official'],
        'align_positions': [ROOT / 'configs/petr/petr_tiny.py', tmp_path / 'out.pth', '--checkpoint', bad],
    }[name]
    monkeypatch.setattr(sys, 'argv', [name, *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        tool(name).main()
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
        for folder in ('mmprune3d', 'tools')
        for path in (ROOT / folder).rglob('*.py')
        for call in calls_of_load(path)
    ]
    assert found and all(call.get('weights_only') == 'True' for call in found)
