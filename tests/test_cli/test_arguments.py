"""One parser for config, checkpoint, ``--out``, ``--cfg-options`` and for methods with their settings."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from mmprune3d.cli import common, main, parser
from mmprune3d.cli.inspect import read_plan
from mmprune3d.cli.prune import read_settings
from mmprune3d.pruning.tggbc import TgGBCPlan
from mmprune3d.pruning.tome import ToMePlan


def parse(line: str):
    return common.parse(parser(), line.split())


def test_words_may_stand_before_and_after_options():
    args = parse('prune a.py b.pth altermoma sparsity=0.8 --out here criterion=snip --cfg-options x.y=3 z=[1,2]')
    assert (args.config, args.checkpoint, args.out) == (Path('a.py'), 'b.pth', Path('here'))
    assert args.words == ['altermoma', 'sparsity=0.8', 'criterion=snip']
    assert args.cfg_options == {'x.y': 3, 'z': [1, 2]}
    assert parse('prune a.py b.pth').words == [] and parse('prune a.py b.pth --out x r=1').words == ['r=1']
    assert parse('prune --out x a.py b.pth r=1').words == ['r=1']
    assert parse('prune a.py b.pth').cfg_options == {}


def test_options_given_twice_add_up():
    assert parse('compact a.py b.pth --cfg-options a=1 b=2 --cfg-options b=3 c="x"').cfg_options == {
        'a': 1, 'b': 3, 'c': 'x',
    }  # fmt: skip


@pytest.mark.parametrize(
    ('line', 'message'),
    [
        ('prune a.py b.pth --sparsity 0.8', 'usage: mmprune3d prune CONFIG .*unrecognized arguments: --sparsity'),
        ('compact a.py b.pth more', 'usage: mmprune3d compact CONFIG .*unrecognized arguments: more'),
        ('prune a.py b.pth --cfg-options a=1 tggbc', "--cfg-options: 'tggbc' is not KEY=VALUE"),
        ('prune a.py b.pth --cfg-options =1', "--cfg-options: '=1' is not KEY=VALUE"),
        ('prune a.py', 'the following arguments are required: CHECKPOINT'),
        ('no-such-command', 'invalid choice'),
        ('checkpoint convert a b', '--from'),
    ],
)
def test_a_wrong_command_line_shows_the_usage_of_the_command(line: str, message: str, capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit) as stopped:
        main(line.split())
    assert stopped.value.code == 2
    assert re.search(message, capsys.readouterr().err, re.DOTALL)


def test_methods_with_settings_are_taken_apart():
    known = ('tggbc', 'gpq')
    words = ['gpq', 'target=300', 'epochs=6', 'tggbc', 'auto', 'k=175']
    found = common.methods(words, known)
    assert found == {'gpq': ['target=300', 'epochs=6'], 'tggbc': ['auto', 'k=175']} and list(found) == ['gpq', 'tggbc']
    assert common.methods([], known) == {}
    for wrong, message in (
        (['r=3'], 'name the method before its settings, such as "tggbc r=3"'),
        (['tome', 'r=3'], "'tome' is not a method for this command; valid are tggbc, gpq"),
        (['gpq', 'target=3', 'gpq'], 'gpq is given twice'),
    ):
        with pytest.raises(ValueError, match=message):
            common.methods(wrong, known)


def test_settings_are_read_as_config_options_are():
    words = ['a=1', 'b=0.5', 'c=[x,y]', 'd=(1,2)', 'e=True', 'f=a=b', 'g=None']
    assert common.settings(words) == {
        'a': 1, 'b': 0.5, 'c': ['x', 'y'], 'd': (1, 2), 'e': True, 'f': 'a=b', 'g': None,
    }  # fmt: skip
    for wrong, message in (
        (['a'], "cannot read 'a'"), (['=1'], "cannot read '=1'"), (['a=1', 'a=2'], 'a is given twice')
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            common.settings(wrong)


def test_prune_takes_its_method_and_one_target():
    assert read_settings(['altermoma', 'flops=0.5']) == read_settings(['flops=0.5']) == {'flops': 0.5}
    with pytest.raises(ValueError, match='other methods are applied by "mmprune3d upgrade"'):
        read_settings(['tggbc', 'r=3'])
    with pytest.raises(ValueError, match='channels and flops: give one target'):
        read_settings(['channels=0.5', 'flops=0.5'])


def test_plans_of_keys():
    assert read_plan(['tggbc', 'r=30', 'k=5']) == TgGBCPlan(r=30, k=5)
    assert read_plan(['tome', 'r=8+4']) == ToMePlan(r=(8, 4))
    assert read_plan([]) == TgGBCPlan(r=0.5, n=2)
    with pytest.raises(ValueError, match='tggbc and tome: give one method'):
        read_plan(['tggbc', 'r=3', 'tome', 'r=3'])
    with pytest.raises(ValueError, match=r"'gpq' is not a method for this command; valid are tggbc, tome$"):
        read_plan(['gpq', 'target=3'])


def test_keys_are_inspected_for_every_registered_method_that_prunes_keys(monkeypatch: pytest.MonkeyPatch):
    from mmprune3d.upgrade import methods

    class OtherPlan(ToMePlan):
        method = 'other'

    other = replace(methods.get('tome'), name='other', plan=OtherPlan)
    monkeypatch.setattr(methods, 'METHODS', {**methods.known(), 'other': other})
    assert read_plan(['other', 'r=3']) == OtherPlan(r=3)


def test_tables_are_aligned_on_the_screen():
    text = 'A\n\n| a | bb |\n|---|---:|\n| longer | 1 |\n| c | 100 |\n\nB | C'
    assert common.aligned(text) == ('A\n\n  a        bb\n  ------  ---\n  longer    1\n  c       100\n\nB | C')
    assert common.aligned('no table') == 'no table'


@pytest.mark.parametrize(
    ('command', 'option'),
    [
        ('upgrade c.py w.pth tggbc r=3', '--samples 0'),
        ('upgrade c.py w.pth tggbc r=3', '--timed -1'),
        ('upgrade c.py w.pth tggbc r=3', '--repeats 0'),
        ('upgrade c.py w.pth tggbc r=3', '--pictures -1'),
        ('inspect keys c.py w.pth', '--samples 1.5'),
        ('inspect keys c.py w.pth', '--pictures nan'),
        ('inspect queries c.py w.pth', '--samples 0'),
        ('inspect halting c.py w.pth', '--draw -1'),
        ('inspect layers c.py w.pth', '--rows -1'),
        ('export onnx c.py w.pth', '--cameras 0'),
        ('export onnx c.py w.pth', '--batch 0'),
        ('export onnx c.py w.pth', '--image-size 0'),
        ('synth show data --out s.jpg', '--samples 0'),
        ('synth show data --out s.jpg', '--camera-width 0'),
        ('demo', '--scenes 0'),
    ],
)
def test_numbers_are_checked_before_any_work(command: str, option: str, capsys: pytest.CaptureFixture):
    name, number = option.split()
    with pytest.raises(SystemExit) as stopped:
        main([*command.split(), name, number, *[number] * (name == '--image-size')])
    assert stopped.value.code == 2
    least = int(not {'--pictures', '--draw', '--rows'} & {name})
    assert f"argument {name}: '{number}' must be a whole number, {least} or more" in capsys.readouterr().err


def test_brackets_that_are_not_closed():
    with pytest.raises(ValueError, match=r"cannot read 'a=\[1,2': brackets are not closed"):
        common.settings(['a=[1,2'])
