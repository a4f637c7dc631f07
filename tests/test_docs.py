"""What the documentation tells people to type exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from mmengine.registry import HOOKS

import mmprune3d  # noqa: F401

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', *sorted((ROOT / 'docs').rglob('*.md'))]
PAGES = [page for page in PAGES if '_build' not in page.parts]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf'^```{language}\n(.*?)^```', page.read_text(), re.MULTILINE | re.DOTALL)


def commands(page: Path) -> list[str]:
    """Every line of a shell block, and every `make ...` or `python tools/...` in the text."""
    text = page.read_text()
    shell = [block.replace('\\\n', ' ') for block in blocks(page, 'bash')]
    lines = [line.split('#')[0].strip() for block in shell for line in block.splitlines()]
    return [line for line in lines if line] + re.findall(r'`((?:make|python tools/)[^`\n]*)`', text)


def make_targets() -> set[str]:
    return set(re.findall(r'^([a-z]+):', (ROOT / 'Makefile').read_text(), re.MULTILINE))


def test_the_two_ways_are_described():
    for page in ('README.md', 'docs/get_started.md'):
        typed = commands(ROOT / page)
        assert 'make demo' in typed and 'pip install -e .' in typed and 'python tools/doctor.py' in typed


@pytest.mark.parametrize('page', PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_exist(page):
    for command in commands(page):
        words = command.split()
        if words[0] == 'make':
            targets = [word for word in words[1:] if '=' not in word]
            assert set(targets) <= make_targets(), command
        elif words[0] == 'python':
            assert words[1] == '-m' or (ROOT / words[1]).is_file(), command
        else:
            assert words[0] in ('pip', 'mim', 'git', 'cd'), f'{command}: no test knows this command'


@pytest.mark.parametrize('page', PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_examples_are_valid_and_name_registered_hooks(page):
    for block in blocks(page, 'python'):
        compile(block, str(page), 'exec')
        for hooks in re.findall(r'^custom_hooks = \[(.*)\]', block, re.MULTILINE):
            for name in re.findall(r"type='(\w+)'", hooks):
                assert HOOKS.get(name) is not None, name


@pytest.mark.parametrize('page', PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_to_files_exist(page):
    for target in re.findall(r'\]\(([^)#\s]+)', page.read_text()):
        if not target.startswith('http'):
            assert (page.parent / target).exists(), target


def test_every_make_target_is_explained():
    help_text = (ROOT / 'Makefile').read_text()
    for target in make_targets() - {'help'}:
        assert f"@echo 'make {target} " in help_text


def test_scripts_of_the_makefile_exist():
    for script in re.findall(r'(?:tools|scripts)/[\w/]+\.py', (ROOT / 'Makefile').read_text()):
        assert (ROOT / script).is_file(), script
