from __future__ import annotations

import math

import pytest
import torch

from mmprune3d.pruning.channel_selection import Costs, select_channels
from mmprune3d.pruning.channels import ChannelGroup, Member, slice_tensors

# a -> b -> head, and b joins a flattened copy of a (two positions per channel) in front of the head
GROUPS = [
    ChannelGroup('a', 20, (Member('a', 0, 'out'), Member('b', 1, 'in'), Member('head', 1, 'in', 0, 2))),
    ChannelGroup('b', 30, (Member('b', 0, 'out'), Member('head', 1, 'in', 40))),
]
SHAPES = {'a': (20, 3, 3, 3), 'b': (30, 20), 'head': (4, 70), 'other': (11,)}
COSTS = Costs({'a': 10.0, 'b': 2.0, 'head': 7.0}, SHAPES, fixed=500.0)


def scores(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {group.name: torch.randn(group.size, generator=generator) for group in GROUPS}


def cost_of(keep, costs):
    """By slicing real tensors."""
    slim = slice_tensors({name: torch.empty(shape) for name, shape in SHAPES.items()}, GROUPS, keep)
    return costs.fixed + sum(each * slim[name].numel() for name, each in costs.per_element.items())


def test_costs_are_those_of_the_sliced_tensors():
    keep = {'a': torch.arange(20) < 13, 'b': torch.arange(30) % 3 > 0}
    assert COSTS.after(GROUPS, {'a': 13, 'b': 20}) == cost_of(keep, COSTS)
    assert COSTS.after(GROUPS, {}) == cost_of({}, COSTS) == 10 * 540 + 2 * 600 + 7 * 280 + 500


def test_channels_are_exact_and_the_lowest_of_all_groups():
    given = scores()
    chosen = select_channels(given, GROUPS, ('channels', 0.3))
    removed = torch.cat([given[name][~keep] for name, keep in chosen.keep.items()])
    kept = torch.cat([given[name][keep] for name, keep in chosen.keep.items()])
    assert len(removed) == 15
    assert removed.max() <= kept.min()
    assert chosen.reached == pytest.approx(0.3)
    assert sum(chosen.kept.values()) == 35


@pytest.mark.parametrize('kind', ['params', 'flops'])
@pytest.mark.parametrize('share', [0.0, 0.1, 0.35, 0.5])
def test_bisection_finds_what_trying_every_count_finds(kind, share):
    costs = COSTS if kind == 'flops' else Costs.of_parameters(SHAPES)
    given = scores(1)
    chosen = select_channels(given, GROUPS, (kind, share), costs, max_ratio=1.0, tolerance=0.02)
    dense = cost_of({}, costs)
    order = sorted((float(v), g, c) for g, group in enumerate(GROUPS) for c, v in enumerate(given[group.name]))
    distances = []
    for count in range(len(order) - 1):
        keep = {group.name: torch.ones(group.size, dtype=torch.bool) for group in GROUPS}
        for _, group, channel in order[:count]:
            keep[GROUPS[group].name][channel] = False
        if all(mask.any() for mask in keep.values()):
            distances.append(abs(1 - cost_of(keep, costs) / dense - share))
    assert abs(chosen.reached - share) == pytest.approx(min(distances), abs=1e-12)
    assert chosen.reached == pytest.approx(1 - cost_of(chosen.keep, costs) / dense)


def test_nothing_to_remove():
    chosen = select_channels(scores(), GROUPS, ('flops', 0.0), COSTS)
    assert chosen.reached == 0
    assert all(mask.all() for mask in chosen.keep.values())


def test_a_larger_target_removes_more_of_the_same():
    before = None
    for share in (0.1, 0.2, 0.4, 0.6):
        keep = torch.cat(list(select_channels(scores(), GROUPS, ('channels', share)).keep.values()))
        assert before is None or not bool((keep & ~before).any())
        before = keep


def test_no_group_loses_more_than_it_may():
    low = {'a': torch.full((20,), -5.0), 'b': torch.arange(30.0)}
    chosen = select_channels(low, GROUPS, ('channels', 0.6), max_ratio=0.75)
    assert chosen.kept == {'a': 5, 'b': 15}
    assert select_channels(low, GROUPS, ('channels', 0.6), max_ratio=1.0, min_keep=2).kept['a'] == 2


def test_ties_go_to_earlier_groups_and_channels():
    equal = {'a': torch.zeros(20), 'b': torch.zeros(30)}
    keep = select_channels(equal, GROUPS, ('channels', 0.1)).keep
    assert (~keep['a']).nonzero()[:, 0].tolist() == [0, 1, 2, 3, 4]
    assert keep['b'].all()


def test_dead_channels_with_minus_infinity_go_first():
    given = {'a': torch.zeros(20) - 9, 'b': torch.zeros(30)}
    given['b'][17:20] = -math.inf
    assert (~select_channels(given, GROUPS, ('channels', 0.06)).keep['b']).nonzero()[:, 0].tolist() == [17, 18, 19]


def test_widths_are_multiples():
    chosen = select_channels(scores(), GROUPS, ('channels', 0.4), round_to=8, tolerance=0.1)
    assert all(kept % 8 == 0 or kept == group.size for kept, group in zip(chosen.kept.values(), GROUPS))
    assert sum(chosen.kept.values()) < 40


def test_target_out_of_reach():
    with pytest.raises(ValueError, match=r'cannot remove 95.0% of the channels: .* \(at most 90.0% with max_ratio=0.9'):
        select_channels(scores(), GROUPS, ('channels', 0.95))
    with pytest.raises(ValueError, match=r'raise tolerance=0.001'):
        select_channels(scores(), GROUPS, ('flops', 0.333), COSTS, tolerance=0.001)


@pytest.mark.parametrize(
    ('given', 'target', 'options', 'message'),
    [
        (scores(), ('macs', 0.5), {}, "target 'macs'; valid are channels, params, flops"),
        (scores(), ('flops', 0.5), {}, 'needs costs'),
        (scores(), ('channels', 1.0), {}, '0 <= share < 1'),
        (scores(), ('channels', 0.5), {'max_ratio': 0.0}, 'max_ratio=0.0'),
        (scores(), ('channels', 0.5), {'min_keep': 0}, 'min_keep=0'),
        ({'a': torch.zeros(20)}, ('channels', 0.5), {}, 'they differ in b'),
        ({**scores(), 'b': torch.zeros(29)}, ('channels', 0.5), {}, r'b: scores must be \[30\]'),
        ({**scores(), 'b': torch.full((30,), math.nan)}, ('channels', 0.5), {}, 'without NaN'),
    ],
)
def test_bad_input(given, target, options, message):
    with pytest.raises(ValueError, match=message):
        select_channels(given, GROUPS, target, **options)
