"""What the documentation tells people to type exists, its links lead somewhere, and its figures are shown and drawn."""

from __future__ import annotations

import importlib
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from mmengine.registry import HOOKS
from PIL import Image

import mmprune3d  # noqa: F401

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    page
    for folder, pattern in (('.', '*.md'), ('docs', '**/*.md'), ('configs', '*/README.md'), ('experiments', '**/*.md'))
    for page in (ROOT / folder).glob(pattern)
    if '_build' not in page.parts
)
HISTORY = ('CHANGELOG.md', 'UPGRADING.md')
"""Pages that name commands which are gone."""
TYPED = [page for page in PAGES if page.name not in HISTORY]

COMMANDS = {
    'upgrade': (),
    'prune': (),
    'compact': (),
    'inspect': ('keys', 'queries', 'halting', 'layers'),
    'export': ('onnx',),
    'checkpoint': ('convert', 'fuse', 'publish', 'info'),
    'synth': ('make', 'show'),
    'demo': (),
    'doctor': (),
}
"""Commands of `mmprune3d` -> what may come next, where only some words may."""
EXPERIMENTS = {
    'tggbc': {'study', 'benchmark', 'sweep', 'overfit'},
    'gpq': {'train', 'table', 'benchmark'},
    'altermoma': {'train', 'table', 'redundancy', 'features', 'statistics', 'cost', 'benchmark'},
    'halting': {'train', 'table', 'speed', 'benchmark'},
    'petr': {'align'},
}
"""Commands of ``python -m experiments.<stem>``."""


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf'^```{language}\n(.*?)^```', page.read_text(), re.MULTILINE | re.DOTALL)


def shell_lines(page: Path) -> list[str]:
    """Every line of a shell block."""
    shell = [block.replace('\\\n', ' ') for block in blocks(page, 'bash')]
    lines = [line.split('#')[0].strip() for block in shell for line in block.splitlines()]
    return [line for line in lines if line]


def commands(page: Path) -> list[str]:
    """Every line of a shell block, and every command that the text names."""
    named = re.findall(
        r'`((?:make|python (?:tools|scripts)/|python -m experiments\.[a-z]|mmprune3d )[^`\n]*)`', page.read_text()
    )
    return shell_lines(page) + named


def make_targets() -> set[str]:
    return set(re.findall(r'^([a-z]+):', (ROOT / 'Makefile').read_text(), re.MULTILINE))


def check_command(command: str) -> None:
    """Fails for a command that does not exist."""
    words = shlex.split(command)
    if words[0] == 'make':
        assert {word for word in words[1:] if '=' not in word} <= make_targets(), command
    elif words[0] == 'mmprune3d':
        assert words[1] in COMMANDS, command
        assert not COMMANDS[words[1]] or len(words) == 2 or words[2] in COMMANDS[words[1]], command
    elif words[:2] == ['python', '-m'] and words[2].startswith('experiments.'):
        stem = words[2].removeprefix('experiments.')
        assert (ROOT / 'experiments' / stem).is_dir() and stem in EXPERIMENTS, command
        assert len(words) == 3 or words[3] in EXPERIMENTS[stem], command
    elif words[0] == 'python':
        assert words[1] == '-m' or (ROOT / words[1]).is_file(), command
    else:
        assert words[0] in ('pip', 'mim', 'git', 'cd', 'sudo', 'docker', 'pre-commit'), (
            f'{command}: no test knows this command'
        )


@pytest.mark.parametrize('page', ['README.md', 'README_zh-CN.md', 'docs/get_started.md', 'docs/zh_cn/get_started.md'])
def test_the_two_ways_are_described(page: str):
    typed = commands(ROOT / page)
    assert {'make demo', 'make test', 'pip install -e .', 'python tools/doctor.py'} <= set(typed)


@pytest.mark.parametrize('page', TYPED, ids=name_of)
def test_commands_exist(page: Path):
    for command in commands(page):
        check_command(command)


@pytest.mark.parametrize(
    'command',
    [
        'make nothing',
        'python tools/nothing.py CONFIG',
        'python -m experiments.tggbc dance',
        'python -m experiments.nobody study',
        'mmprune3d polish CONFIG',
        'mmprune3d inspect tokens CONFIG',
        'rm -r work_dirs',
    ],
)
def test_commands_that_do_not_exist_are_found(command: str):
    with pytest.raises(AssertionError):
        check_command(command)


@pytest.mark.parametrize('page', TYPED, ids=name_of)
def test_options_of_commands_exist(page: Path):
    """The parsers of the console command and of the experiments take every line of the shell blocks."""
    cli = pytest.importorskip('mmprune3d.cli')
    if not hasattr(cli, 'common'):
        pytest.skip('the console command has no parser yet')
    for line in shell_lines(page):
        words = shlex.split(line)
        try:
            if words[0] == 'mmprune3d':
                cli.common.parse(cli.parser(), words[1:])
            elif words[:2] == ['python', '-m'] and words[2].startswith('experiments.'):
                importlib.import_module(f'{words[2]}.__main__').commands().parser.parse_args(words[3:])
        except SystemExit as stop:
            assert stop.code == 0, f'{line}: refused'  # 0: --help


@pytest.mark.parametrize('page', TYPED, ids=name_of)
def test_examples_are_valid_and_name_registered_hooks(page: Path):
    for block in blocks(page, 'python'):
        compile(block, str(page), 'exec')
        for hooks in re.findall(r'^custom_hooks = \[(.*)\]', block, re.MULTILINE):
            for name in re.findall(r"type='(\w+)'", hooks):
                assert HOOKS.get(name) is not None, name


def text_of(page: Path) -> str:
    """The text of a page without its code; of a page that includes another one, the text of that one."""
    text = page.read_text()
    included = re.match(r'```\{include\} (\S+)\n', text)
    if included:
        return text_of(page.parent / included[1])
    text = re.sub(r'^```\{image\} (\S+)$', r'![](\1)\n```', text, flags=re.MULTILINE)
    return re.sub(r'^```.*?^```', '', text, flags=re.MULTILINE | re.DOTALL)


def targets(page: Path) -> Iterator[str]:
    """What the links and pictures of a page point to, where it is no web address."""
    text = page.read_text() if page.read_text().startswith('```{include}') else text_of(page)
    found = re.findall(r'\]\(([^)\s]+)\)', text) + re.findall(r'\{include\} (\S+)', text)
    yield from (target for target in found if not re.match(r'https?:|mailto:', target))


def anchors(page: Path) -> set[str]:
    """The names that GitHub and Sphinx give to the headings of a page."""
    headings = re.findall(r'^#+ (.+)$', text_of(page), re.MULTILINE)
    plain = [re.sub(r'\[([^]]*)\]\([^)]*\)|[`*]', r'\1', heading) for heading in headings]
    return {re.sub(r'[^\w\- ]', '', heading.strip().lower()).replace(' ', '-') for heading in plain}


def dead_links(page: Path) -> list[str]:
    """Links to files or headings that do not exist, and to places outside of the project."""
    dead = []
    for target in targets(page):
        path, _, anchor = target.partition('#')
        file = (page.parent / path).resolve() if path else page
        inside = file.exists() and file.is_relative_to(ROOT)
        if not inside or (anchor and anchor not in anchors(file)):
            dead.append(target)
    return dead


@pytest.mark.parametrize('page', PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path):
    assert dead_links(page) == []


def test_dead_links_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(f'{__name__}.ROOT', tmp_path)
    page = tmp_path / 'page.md'
    page.write_text(
        '# A `title`, 标题\n[a](#a-title-标题) [b](page.md#nothing) ![c](gone.png)\n```{image} lost.jpg\n```\n[d](..)\n'
        '```bash\n# [e](in_code.md)\n```\n[f](https://example.org/gone)\n'
    )
    assert dead_links(page) == ['page.md#nothing', 'gone.png', 'lost.jpg', '..']


def test_every_figure_is_shown():
    shown = {(page.parent / target).resolve() for page in PAGES for target in targets(page)}
    figures = {path for path in (ROOT / 'docs' / 'images').iterdir() if path.is_file()}
    assert len(figures) > 10
    assert sorted(path.name for path in figures - shown) == []


@pytest.fixture
def concepts(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(ROOT / 'scripts')
    import draw_concepts

    return draw_concepts


def test_concept_figures_are_drawn(concepts, tmp_path: Path):
    for name, draw in concepts.FIGURES.items():
        path = tmp_path / f'{name}.png'
        draw(path)
        committed = ROOT / 'docs' / 'images' / f'concept_{name}.png'
        with Image.open(path) as drawn, Image.open(committed) as shown:
            assert drawn.width == shown.width and len(drawn.convert('RGB').getcolors(1 << 16)) > 10, name
        assert committed.stat().st_size < 150_000, name


def test_concept_figures_show_the_committed_times(concepts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    concepts.FIGURES['tggbc'](tmp_path / 'a.png')
    data = json.loads((ROOT / 'docs' / 'data' / 'decoder_cpu_fp32.json').read_text())
    for row in data['rows']:
        row['ms']['ours'] *= 2
    (tmp_path / 'decoder_cpu_fp32.json').write_text(json.dumps(data))
    monkeypatch.setattr(concepts.style, 'DATA', tmp_path)
    concepts.FIGURES['tggbc'](tmp_path / 'b.png')
    assert (tmp_path / 'a.png').read_bytes() != (tmp_path / 'b.png').read_bytes()


@pytest.mark.parametrize('page', ['README.md', 'README_zh-CN.md'])
def test_the_front_page_fits_a_screen_and_quotes_the_committed_times(page: str):
    text = (ROOT / page).read_text()
    assert len(text.splitlines()) <= 80
    rows = json.loads((ROOT / 'docs' / 'data' / 'decoder_cpu_fp32.json').read_text())['rows']
    ms = next(row['ms'] for row in rows if row['row'] == 'streampetr_vov_1600x640')
    assert f'{ms["stock_fused"]:.0f} → {ms["ours"]:.0f} ms' in text
    ms = json.loads((ROOT / 'docs' / 'data' / 'query_cpu_fp32.json').read_text())['rows'][0]['ms']['plain']
    assert f'{ms["900"]:.0f} → {ms["300"]:.0f} ms' in text
    halted = json.loads((ROOT / 'docs' / 'data' / 'backbone_cpu_fp32.json').read_text())['rows']
    row = next(row for row in halted if row['sparsity'] == 0.82)
    assert f'{row["unhalted_ms"]["backbone"]:.0f} → {row["ms"]["backbone"]:.0f} ms' in text


def test_every_make_target_is_explained():
    help_text = (ROOT / 'Makefile').read_text()
    for target in make_targets() - {'help'}:
        assert f"@echo 'make {target} " in help_text


def test_scripts_of_the_makefile_exist():
    for script in re.findall(r'(?:tools|scripts)/[\w/]+\.py', (ROOT / 'Makefile').read_text()):
        assert (ROOT / script).is_file(), script


def test_the_table_of_methods_is_that_of_the_registry():
    from mmprune3d.upgrade.describe import table

    page = (ROOT / 'docs' / 'user_guides' / 'upgrade.md').read_text()
    found = re.search(r'<!-- methods: [^>]*-->\n(.*?)\n<!-- /methods -->', page, re.DOTALL)
    assert found is not None and found[1] == table().strip()
