from __future__ import annotations

import io
import sys
import warnings
from pathlib import Path

import pytest
from mmengine.logging import MMLogger
from tqdm import tqdm

from mmprune3d import screen


def test_a_bar_in_a_file_is_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, 'stderr', stream)
    monkeypatch.setattr(screen, 'LINE_SECONDS', 0.0)
    assert list(screen.bar(range(3), desc='samples', unit='batch')) == [0, 1, 2]
    lines = stream.getvalue().splitlines()
    assert '\r' not in stream.getvalue() and lines[0].startswith('samples: 0 of 3 [')
    assert lines[-1].startswith('samples: 3 of 3 [') and len(lines) == len(set(lines))


@pytest.mark.parametrize('leave', [True, False])
def test_a_long_run_writes_few_lines(monkeypatch: pytest.MonkeyPatch, leave: bool) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, 'stderr', stream)
    for _ in screen.bar(range(10_000), desc='x', leave=leave):
        pass
    assert 1 <= len(stream.getvalue().splitlines()) <= 3


def test_a_terminal_gets_the_bar_of_tqdm(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, 'stderr', Terminal())
    list(screen.bar(range(3), desc='samples', mininterval=0))
    assert '\r' in sys.stderr.getvalue()


def test_chatter_is_in_the_log_and_what_matters_on_the_screen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / 'logs' / 'output.log'
    with screen.chatter_to(log):
        print('Loading NuScenes tables')
        logger = MMLogger('chatter', logger_name='chatter')
        logger.info('Config:\nmodel = 1')
        logger.warning('a weight is missing')
        screen.say('mAP', 0.5)
        with screen.chatter_to(tmp_path / 'other.log'):
            print('inner')
    print('after')
    logger.info('heard again')
    out = capsys.readouterr().out
    assert [line.split(' - ')[-1] for line in out.splitlines()] == [
        'a weight is missing',
        'mAP 0.5',
        'after',
        'heard again',
    ]
    text = log.read_text()
    for part in ('Loading NuScenes tables', 'model = 1', 'a weight is missing', 'mAP 0.5', 'inner'):
        assert part in text
    assert 'after' not in text and not (tmp_path / 'other.log').exists()


def test_bars_of_others_are_not_shown_and_errors_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, 'stderr', stream)
    with screen.chatter_to(tmp_path / 'log'):
        for _ in screen.bar(range(2), desc='baseline'):
            for _ in tqdm(range(3), desc='loading', leave=False, mininterval=0):
                pass
            list(tqdm(range(3), desc='loading', mininterval=0))
        print('one line\r\n\nanother', file=sys.stderr)
    assert sys.stderr is stream
    bars, errors = stream.getvalue().split('one line')
    assert (
        'loading' not in bars
        and '\x1b' not in bars
        and [line[:14] for line in bars.splitlines()]
        == [
            'baseline: 0 of',
            'baseline: 2 of',
        ]
    )
    assert errors == '\r\n\nanother\n'


def test_warnings_of_this_package_are_shown_and_of_others_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter('always')
        monkeypatch.setattr(warnings, 'showwarning', lambda message, *_, **__: shown.append(str(message)))
        with screen.chatter_to(tmp_path / 'log'):
            warnings.warn_explicit('of others', UserWarning, '/site-packages/torch/functional.py', 1)
            warnings.warn_explicit('of ours', UserWarning, str(screen.PACKAGE / 'files.py'), 1)
    assert shown == ['of ours']
    assert 'of others' in (tmp_path / 'log').read_text() and 'of ours' in (tmp_path / 'log').read_text()


def test_an_error_gives_the_screen_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sys.stdout, sys.stderr, warnings.showwarning
    with pytest.raises(ZeroDivisionError), screen.chatter_to(tmp_path / 'log'):
        raise ZeroDivisionError
    assert (sys.stdout, sys.stderr, warnings.showwarning) == before
    screen.say('heard')
    assert capsys.readouterr().out == 'heard\n'
