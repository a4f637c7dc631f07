from __future__ import annotations

import json
from typing import Any

import pytest

from mmprune3d.pruning.key_plan import KeyPlan
from mmprune3d.pruning.schedules import heated, split_over_layers
from mmprune3d.pruning.tggbc import TgGBCPlan
from mmprune3d.pruning.tome import ToMePlan


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


@pytest.mark.parametrize(
    ('num_keys', 'r', 'second', 'last'),
    [
        (16896, 12000, 10896, 4896),  # PETR-r50, FocalPETR-r18, OPEN-r101
        (24000, 18000, 15000, 6000),  # PETR-vov
        (6000, 3000, 4500, 3000),  # FocalPETR-vov, 3DPPE-vov, OPEN-vov
        (4224, 2000, 3224, 2224),  # StreamPETR-r50, OPEN-r50
        (24000, 21000, 13500, 3000),  # StreamPETR-vov
        (12000, 6000, 9000, 6000),  # M-BEV-vov
        (30000, 27000, 16500, 3000),  # ToC3D
        (12000, 8000, 8000, 4000),  # PETRv2-vov, Table 8
    ],
)
def test_keys_per_layer_of_the_papers_tables(num_keys: int, r: int, second: int, last: int) -> None:
    expected = (num_keys, second, *[last] * 4)
    assert TgGBCPlan(r=r, n=2).keys_per_layer(num_keys, 6) == expected
    assert TgGBCPlan.parse(f'r={num_keys - second}+{second - last}').keys_per_layer(num_keys, 6) == expected


@pytest.mark.parametrize(
    ('settings', 'num_keys', 'removals'),
    [
        (dict(r=0.5), 6000, (1500, 1500, 0, 0)),
        (dict(r=0.5, n=1), 6000, (3000, 0, 0, 0)),
        (dict(r=0.5, n=3), 100, (16, 16, 18, 0)),
        (dict(r=0.5, n=1), 7, (3, 0, 0, 0)),
        (dict(r=0.01), 99, (0, 0, 0, 0)),
        (dict(r=[0.25, 0.25]), 6001, (1500, 1500, 0, 0)),
        (dict(r=[0.1, 0.0, 0.4]), 50, (5, 0, 20, 0)),
        (dict(r=[8, 4]), 13, (8, 4, 0, 0)),
        (dict(r=[0, 9]), 13, (0, 9, 0, 0)),
        (dict(r=5, n=0), 13, (0, 0, 0, 0)),
        (dict(r=10, t=12), 13, (4, 0, 0, 0)),
    ],
)
def test_removals(settings: dict[str, Any], num_keys: int, removals: tuple[int, ...]) -> None:
    plan = TgGBCPlan(**settings)
    assert plan.removals(4, num_keys) == removals
    left = [num_keys - sum(removals[:layer]) for layer in range(4)]
    assert list(plan.keys_per_layer(num_keys, 4)) == left


@pytest.mark.parametrize(
    ('num_keys', 'expected'),
    [
        (41, (10, 10, 10)),
        (40, (10, 10, 0)),
        (31, (10, 10, 0)),
        (30, (10, 0, 0)),
        (29, (10, 0, 0)),
        (21, (10, 0, 0)),
        (20, (0, 0, 0)),
        (5, (0, 0, 0)),
    ],
)
def test_layers_with_few_keys_are_not_pruned_after(num_keys: int, expected: tuple[int, ...]) -> None:
    """The threshold counts the keys that the layer itself attended to; what it stops is no error."""
    plan = TgGBCPlan(r=[10, 10, 10], t=20)
    assert plan.removals(4, num_keys) == (*expected, 0)[:4]


def test_queries_are_split_like_keys() -> None:
    assert TgGBCPlan(r=0.5, n=2, q=7).query_removals(4) == (2, 5, 0, 0)
    assert TgGBCPlan(r=[1, 2, 3], q=300).query_removals(6) == (100, 100, 100, 0, 0, 0)
    assert TgGBCPlan(r=10).query_removals(3) == (0, 0, 0)


@pytest.mark.parametrize(
    ('plan', 'removes'),
    [
        (TgGBCPlan(r=0), False),
        (TgGBCPlan(r=0.0), False),
        (TgGBCPlan(r=[0, 0]), False),
        (TgGBCPlan(r=9, n=0), False),
        (TgGBCPlan(r=0, q=3), True),
        (TgGBCPlan(r=0, q=3, n=0), False),
        (TgGBCPlan(r=[0, 1]), True),
        (TgGBCPlan(r=0.1), True),
        (ToMePlan(r=0), False),
        (ToMePlan(r=1), True),
    ],
)
def test_whether_a_plan_removes_anything(plan: KeyPlan, removes: bool) -> None:
    assert plan.removes == removes
    if not removes:
        plan.check(1)  # fits any decoder
    else:
        with pytest.raises(ValueError, match='because keys removed after the last layer are never read again'):
            plan.check(plan.n)
        plan.check(plan.n + 1)


@pytest.mark.parametrize('r', [72, 73, [70, 2], [80]])
def test_removing_every_key_is_refused(r: int | list[int]) -> None:
    with pytest.raises(ValueError, match='of 72 keys leaves none; valid are 0 to 71, or a share below 1'):
        TgGBCPlan(r=r).keys_per_layer(72, 3)
    assert TgGBCPlan(r=71).keys_per_layer(72, 3)[-1] == 1


def test_n_and_k_that_are_left_out() -> None:
    assert (TgGBCPlan(r=5).n, TgGBCPlan(r=0.5).n, TgGBCPlan(r=[1, 2, 3]).n, ToMePlan(r=[1]).n) == (2, 2, 3, 1)
    assert (TgGBCPlan(r=5).k, TgGBCPlan(r=5, score='none').k, TgGBCPlan(r=5, score='mean', k=0).k) == (175, 0, 0)


@pytest.mark.parametrize(
    ('text', 'plan'),
    [
        ('r=12000, n=1,k=0', TgGBCPlan(r=12000, n=1, k=0)),
        ('r=0.5', TgGBCPlan(r=0.5)),
        ('r=8000+4000', TgGBCPlan(r=[8000, 4000])),
        (' r = 0.25+0.25 ,t=100,', TgGBCPlan(r=(0.25, 0.25), t=100)),
        ('r=100,score=none', TgGBCPlan(r=100, k=0, score='none')),
        ('r=.5,q=300,activation=softmax,score=mean', TgGBCPlan(0.5, q=300, activation='softmax', score='mean')),
        ('r=3000,n=2', ToMePlan(3000, 2)),
        ('r=0.25+0.25', ToMePlan((0.25, 0.25))),
    ],
)
def test_texts_and_round_trips(text: str, plan: KeyPlan) -> None:
    assert type(plan).parse(text) == plan
    data = json.loads(json.dumps(plan.to_dict()))
    again = type(plan).from_dict(data)
    assert again == plan
    assert type(again.r) is type(plan.r)
    assert again.to_dict() == data
    assert hash(again) == hash(plan)


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('', 'r, what to remove, is missing'),
        ('n=2', 'r, what to remove, is missing'),
        ('r=100,m=2', 'unknown setting m; valid are r, n, q, k, activation, score, t'),
        ('r=100,n', "cannot read 'n'; write each setting once, as r=12000,n=2,k=175"),
        ('r=100,=3', "cannot read '=3'"),
        ('r=100,n=', "cannot read 'n='"),
        ('r=100,r=200', "cannot read 'r=200'"),
        ('r=ten', "r='ten' must be a whole number"),
        ('r=-5', 'r=-5 must be a whole number'),
        ('r=-0.5', 'a share from 0.0 to below 1.0'),
        ('r=1.0', 'a share from 0.0 to below 1.0'),
        ('r=nan', 'a share from 0.0 to below 1.0'),
        ('r=1e4', 'r=10000.0 must be a whole number'),
        ('r=100+0.5', r'a list of one kind, an entry per layer'),
        ('r=100+', 'a list of one kind, an entry per layer'),
        ('r=0.6+0.4', 'shares must sum to less than 1'),
        ('r=5+5,n=3', 'r lists 2 layers, but n=3; leave n out'),
        ('r=5,n=-1', 'n=-1 must be a whole number, 0 or more'),
        ('r=5,n=1.5', 'n=1.5 must be a whole number'),
        ('r=5,k=few', "k='few' must be a whole number"),
        ('r=5,t=-3', 't=-3 must be a whole number'),
        ('r=5,q=0.5', 'q=0.5 must be a whole number'),
        ('r=5,activation=tanh', "activation='tanh'; valid are sigmoid, softmax"),
        ('r=5,score=best', "score='best'; valid are max, mean, min, none"),
        ('r=5,score=none,k=9', "score='none' has no confident queries"),
        ('r=5,score=none,q=9', "score='none' has no confident queries"),
    ],
)
def test_bad_text_says_what_is_valid(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TgGBCPlan.parse(text)


@pytest.mark.parametrize('r', [[], True, [True], None, '5', [None]])
def test_values_that_are_no_amount_are_refused(r: Any) -> None:
    with pytest.raises(ValueError, match='tgGBC: r='):
        TgGBCPlan(r=r)


def test_booleans_are_no_counts() -> None:
    with pytest.raises(ValueError, match='k=True must be a whole number'):
        TgGBCPlan(r=5, k=True)


def test_a_plan_of_another_method_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a tggbc plan, got one of 'tome'"):
        TgGBCPlan.from_dict(ToMePlan(r=3).to_dict())
    with pytest.raises(ValueError, match='ToMe: unknown setting k; valid are r, n'):
        ToMePlan.from_dict({'r': 3, 'k': 175})


@pytest.mark.parametrize(
    ('r', 'share', 'expected'),
    [
        (12000, 0.0, 0),
        (12000, 1.0, 12000),
        (7, 0.5, 3),
        (0.8, 0.25, 0.2),
        ([10, 5], 0.5, (5, 2)),
        ([0.5, 0.25], 0.5, (0.25, 0.125)),
    ],
)
def test_scaled(r: Any, share: float, expected: Any) -> None:
    plan = TgGBCPlan(r=r, k=9, t=4, score='mean')
    assert plan.scaled(share) == TgGBCPlan(r=expected, k=9, t=4, score='mean')
    assert type(plan.scaled(share).r) is type(plan.r)


@pytest.mark.parametrize(('r', 'warmup', 'heating'), [(21000, 3, 7), (9, 2, 4), (5, 0, 3), (5, 2, 0), (5, 0, 0)])
def test_heating_is_the_official_hooks(r: int, warmup: int, heating: int) -> None:
    """What the official hook sets, iteration by iteration, numbered from 1 as it does."""
    for i in range(1, warmup + heating + 4):
        if i <= warmup:
            expected = 0
        elif i <= warmup + heating:
            expected = int((i - warmup) / heating * r)
        else:
            expected = r
        assert TgGBCPlan(r=r).scaled(heated(i - 1, warmup, heating)).r == expected, i


@pytest.mark.parametrize(
    ('r', 'n', 'num_keys', 'message'),
    [
        (60, 1, 100, 'cannot merge 60 of 100 keys in one layer; at most 50'),
        ([50, 26], None, 100, 'cannot merge 26 of 50 keys in one layer; at most 25'),
        (0.6, 1, 100, 'cannot merge 60 of 100 keys'),
        (99, 2, 99, 'cannot merge 51 of 51 keys'),
    ],
)
def test_tome_merges_half_of_a_layers_keys_at_most(r: Any, n: int | None, num_keys: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ToMePlan(r=r, n=n).removals(6, num_keys)


def test_tome_may_merge_exactly_half() -> None:
    assert ToMePlan(r=[50, 25, 12]).keys_per_layer(100, 6) == (100, 50, 25, 13, 13, 13)


def test_trailing_zeros_of_a_list_mean_nothing() -> None:
    assert TgGBCPlan(r=[6, 0, 4, 0, 0, 0]) == TgGBCPlan(r=[6, 0, 4], n=3)
    assert TgGBCPlan(r=[9, 4]).scaled(0.2) == TgGBCPlan(r=[1])
    assert TgGBCPlan(r=0.29, n=1).removals(2, 100) == (29, 0)
