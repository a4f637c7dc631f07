"""``mmprune3d upgrade``: from words to what `run_upgrade` gets, and what is said about words that are wrong."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest

from mmprune3d.cli import common, upgrade
from mmprune3d.command import GOES_ON
from mmprune3d.pruning.gpq import GPQPlan
from mmprune3d.pruning.tggbc import TgGBCPlan
from mmprune3d.upgrade import run


def parse(words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser('mmprune3d')
    common.add_commands(parser, {'upgrade': upgrade})
    return common.parse(parser, ['upgrade', 'a.py', 'a.pth', *words.split()])


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[tuple, dict[str, Any]]]:
    found: list[tuple[tuple, dict[str, Any]]] = []
    monkeypatch.setattr(run, 'run_upgrade', lambda *args, **kwargs: found.append((args, kwargs)))
    return found


def test_several_methods_and_options_reach_the_upgrade(calls: list, tmp_path: Path) -> None:
    words = f'tggbc r=8000+4000 gpq target=300 epochs=6 --out {tmp_path} --epochs 12 --lr-factor 0.1 --samples 60'
    args = parse(f'{words} --timed 4 --repeats 2 --pictures 1 --cfg-options model.a=1 b=[2,3]')
    args.run(args)
    (((config, checkpoint, (queries, keys), out, overrides), others),) = calls
    assert (config, checkpoint, out) == (Path('a.py'), 'a.pth', tmp_path)
    assert keys.plan == TgGBCPlan(r=(8000, 4000)) and queries.plan == GPQPlan(target=300, epochs=6)
    assert (queries.epochs, queries.lr_factor) == (12, 0.1)
    assert overrides == {'model.a': 1, 'b': [2, 3]}
    assert others == dict(timed=4, repeats=2, pictures=1, samples=60)


@pytest.mark.parametrize('words', ['tggbc auto k=50', 'tggbc k=50 auto', 'tggbc auto,k=50'])
def test_a_search_is_asked_for_by_a_word(calls: list, tmp_path: Path, words: str) -> None:
    args = parse(f'{words} --max-drop 0.02 --calibrate 9 --out {tmp_path}')
    args.run(args)
    (step,) = calls[0][0][2]
    assert (step.request.template.k, step.request.max_drop, step.request.calibrate) == (50, 0.02, 9)


def test_methods_may_follow_options(calls: list, tmp_path: Path) -> None:
    args = parse(f'--out {tmp_path} --timed 2 tggbc r=5')
    args.run(args)
    assert calls[0][0][2][0].plan == TgGBCPlan(r=5) and args.after_interrupt == GOES_ON


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        ('tgbc r=5', "'tgbc' is not a method for this command; valid are tggbc, tome, gpq, altermoma, halting"),
        ('r=5', 'name the method before its settings'),
        ('tggbc r=5 gqp target=3', r"'gqp' is neither a method \(tggbc, .*halting\) nor a setting of tggbc"),
        ('tggbc r=5 tggbc n=1', 'tggbc is given twice'),
        ('tggbc r=5 m=2', 'unknown setting m; valid are r, n, q, k, activation, score, t'),
        ('tggbc r=5 halting sparsity=0.5', 'tggbc and halting cannot be combined in one upgrade'),
        ('gpq', 'target, how many queries stay, is missing'),
        ('gpq auto', "cannot read 'auto'"),
        ('tggbc r=5 --epochs 2', '--epochs is an option of gpq, altermoma, halting'),
    ],
)
def test_wrong_words_are_named_before_any_work(calls: list, tmp_path: Path, words: str, message: str) -> None:
    args = parse(f'{words} --out {tmp_path / "out"}')
    with pytest.raises(ValueError, match=message):
        args.run(args)
    assert not calls and not (tmp_path / 'out').exists()


def test_the_help_fits_a_screen_and_names_every_method(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv('COLUMNS', '100')
    with pytest.raises(SystemExit):
        parse('--help')
    text = capsys.readouterr().out
    assert len(text.splitlines()) <= 30
    for line in ('tggbc, tome, gpq, altermoma, halting and settings', 'CONFIG CHECKPOINT tggbc r=12000 n=2 k=175'):
        assert line in text


def test_a_method_is_described(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stopped:
        parse('--describe gpq')
    assert not stopped.value.code and 'ueries that are left in the end' in capsys.readouterr().out
    with pytest.raises(SystemExit):
        parse('--describe')
    assert 'halting    lets LiDAR tokens with low scores' in capsys.readouterr().out
    with pytest.raises(SystemExit) as stopped:
        parse('--describe gqp')
    assert stopped.value.code == 2 and "'gqp' is not a method; valid are tggbc" in capsys.readouterr().err
