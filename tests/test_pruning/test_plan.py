from __future__ import annotations

import json

import pytest

from mmprune3d.pruning.plan import TgGBCPlan
from mmprune3d.pruning.schedules import split_over_layers


@pytest.mark.parametrize(
    ('r', 'n', 'layers', 'expected'),
    [
        (12000, 2, 6, (6000, 6000, 0, 0, 0, 0)),
        (10000, 3, 6, (3332, 3332, 3336, 0, 0, 0)),
        (7, 2, 6, (2, 5, 0, 0, 0, 0)),
        (10, 1, 3, (10, 0, 0)),
        (0, 2, 3, (0, 0, 0)),
        (9, 0, 3, (0, 0, 0)),
    ],
)
def test_split(r: int, n: int, layers: int, expected: tuple[int, ...]) -> None:
    assert split_over_layers(r, n, layers) == expected


@pytest.mark.parametrize('n', [6, 7])
def test_pruning_after_the_last_layer_is_refused(n: int) -> None:
    with pytest.raises(ValueError, match='valid are 1 to 5'):
        split_over_layers(100, n, 6)


def test_negative_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match='must not be negative'):
        split_over_layers(-1, 1, 6)


def test_keys_per_layer_of_the_papers_table_1() -> None:
    assert TgGBCPlan(r=12000, n=2).keys_per_layer(16896, 6) == (16896, 10896, 4896, 4896, 4896, 4896)


@pytest.mark.parametrize('r', [72, 73])
def test_removing_every_key_is_refused(r: int) -> None:
    with pytest.raises(ValueError, match='valid are 0 to 71'):
        TgGBCPlan(r=r, n=1).keys_per_layer(72, 3)


def test_parse_and_json_round_trip() -> None:
    plan = TgGBCPlan.parse('r=12000, n=1,k=0')
    assert plan == TgGBCPlan(r=12000, n=1, k=0)
    assert TgGBCPlan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('n=2', 'r, what to remove, is missing'),
        ('r=100,m=2', 'unknown setting m; valid are r, n, k, activation, score, t, q'),
        ('r=100,n', "cannot read 'n'"),
        ('r=100,r=200', "cannot read 'r=200'"),
        ('r=ten', "r='ten' must be a whole number"),
        ('r=-5', 'r=-5 must be a whole number'),
        ('r=5,activation=tanh', 'valid are sigmoid, softmax'),
    ],
)
def test_bad_text_says_what_is_valid(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TgGBCPlan.parse(text)


def test_a_plan_of_another_method_is_refused() -> None:
    with pytest.raises(ValueError, match="got one of 'gpq'"):
        TgGBCPlan.from_dict({'method': 'gpq', 'r': 3})
