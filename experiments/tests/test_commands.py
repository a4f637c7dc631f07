"""The command lines of the experiments: their help, what they take, and how they end."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from experiments.__main__ import overview
from experiments.command import ROOT, Commands, experiments

ADDRESS = 'http://host/a/w.pth'
LINES, COLUMNS = 40, 100
"""A screen."""
ALL = {made.name: made for made in experiments()}
COMMANDS = [(name, command) for name, made in ALL.items() for command in made.help]
# Inputs that do not exist: the place of the results is looked at first.
WRITING = {
    ('altermoma', 'benchmark'): ['--json', '{file}/out.json'],
    ('altermoma', 'train'): ['dense', '--out', '{file}/out'],
    ('gpq', 'benchmark'): ['--json', '{file}/out.json'],
    ('gpq', 'train'): ['scratch-300', '--out', '{file}/out'],
    ('halting', 'benchmark'): ['--json', '{file}/out.json'],
    ('halting', 'train'): ['sst', '--out', '{file}/out'],
    ('petr', 'align'): ['none.py', '{file}/out.pth'],
    ('tggbc', 'benchmark'): ['--json', '{file}/out.json'],
    ('tggbc', 'study'): ['none.py', 'none.pth', '--out', '{file}/out'],
    ('tggbc', 'sweep'): ['--plots', '{file}/plots'],
}


def test_all_commands_are_listed() -> None:
    text = overview()
    assert [(made.name, command) for made in experiments() for command in made.help] == COMMANDS
    assert set(ALL) == {'tggbc', 'gpq', 'altermoma', 'halting', 'petr'}
    assert set(ALL['altermoma'].help) == {
        'train', 'table', 'redundancy', 'features', 'statistics', 'cost', 'benchmark'
    }  # fmt: skip
    for name, command in COMMANDS:
        assert f'python -m experiments.{name} ' in text and re.search(rf'^  {command} ', text, re.MULTILINE)


@pytest.mark.parametrize(('name', 'command'), COMMANDS)
def test_help_fits_a_screen_and_its_example_is_valid(
    name: str, command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv('COLUMNS', str(COLUMNS))
    with pytest.raises(SystemExit):
        ALL[name].main([command, '--help'])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= LINES and max(map(len, lines)) <= 1.3 * COLUMNS
    (start,) = [number for number, line in enumerate(lines) if line == 'example:']
    words = lines[start + 1].split()
    assert words[:4] == ['python', '-m', f'experiments.{name}', command]
    ALL[name].parser.parse_args(words[3:])


@pytest.mark.parametrize(
    'words',
    [
        ['altermoma', 'train', 'dense', '--checkpoint', ADDRESS],
        ['halting', 'train', 'sst', '--checkpoint', ADDRESS],
        ['petr', 'align', 'config.py', 'out.pth', '--checkpoint', ADDRESS],
        ['tggbc', 'overfit', 'config.py', 'frame', '--checkpoint', ADDRESS],
        ['tggbc', 'study', 'config.py', ADDRESS],
    ],
    ids=lambda words: ' '.join(words[:2]),
)
def test_an_address_stays_one(words: list[str]) -> None:
    assert ALL[words[0]].parser.parse_args(words[1:]).checkpoint == ADDRESS


@pytest.mark.parametrize(('name', 'command'), WRITING)
def test_folders_that_cannot_be_written_are_refused_first(
    name: str, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / 'file'
    file.touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr('torch.set_num_threads', lambda count: None)
    words = [word.format(file=file) for word in WRITING[name, command]]
    with pytest.raises(SystemExit, match=rf'^error: {re.escape(str(file))}\S*: .*results cannot be written there'):
        ALL[name].main([command, *words])
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize('words', [['table'], ['train', 'nothing']], ids=['table', 'train'])
@pytest.mark.parametrize('name', ['altermoma', 'gpq', 'halting'])
def test_studies_say_what_is_missing(name: str, words: list[str], tmp_path: Path) -> None:
    message = 'has no results; train first' if words == ['table'] else "no training 'nothing'; valid are "
    with pytest.raises(SystemExit, match=f'^error: .*{message}'):
        ALL[name].main([*words, '--out', str(tmp_path)])


@pytest.mark.parametrize(('name', 'command'), [pair for pair in COMMANDS if pair[1] in ('benchmark', 'sweep')])
def test_unknown_rows_list_the_valid_ones(name: str, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr('torch.set_num_threads', lambda count: None)
    with pytest.raises(SystemExit, match=r'^error: no row here, there; valid are \w+'):
        ALL[name].main([command, '--rows', 'there', 'here'])


def test_a_checkpoint_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    bad = tmp_path / 'bad.pth'
    bad.write_text('<html><title>Not here</title></html>')
    config, out = ROOT / 'configs' / 'petr' / 'petr_tiny.py', tmp_path / 'out.pth'
    with pytest.raises(SystemExit, match=r"^error: .*bad.pth \(36 bytes\).* a web page \('Not here'\)"):
        ALL['petr'].main(['align', str(config), str(out), '--checkpoint', str(bad)])
    assert not out.exists()


def test_a_command_that_fails_ends_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def fail(args: object) -> None:
        raise KeyboardInterrupt

    made = Commands('toy', 'A toy.')
    made.add('run', fail, 'nothing', after_interrupt='all is kept')
    with pytest.raises(SystemExit):
        made.main(['run'])
    assert capsys.readouterr().err == 'interrupted: all is kept\n'
