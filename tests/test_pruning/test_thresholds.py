"""Masks against a plain sort, boundaries, ties, and n:m blocks by brute force."""

from __future__ import annotations

import itertools

import pytest
import torch

from mmprune3d.pruning.thresholds import keep_masks, kth_smallest, num_removed, project_nm

GROUPS = {'b.weight': 'camera', 'a.weight': 'lidar', 'c': 'fusion'}


def some_scores(seed: int = 0, levels: int | None = None) -> dict[str, torch.Tensor]:
    """Three tensors, not in the order of their names; with `levels`, many ties."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {'b.weight': (4, 3, 2), 'a.weight': (5, 4), 'c': (7,)}
    if levels is None:
        return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return {name: torch.randint(levels, shape, generator=generator).float() for name, shape in shapes.items()}


def plainly(scores: dict[str, torch.Tensor], keep: int, forced: set[tuple[str, int]] = frozenset()) -> dict:
    """A sort of everything, written plainly: forced first, then higher scores, names, positions."""
    entries = [
        ((name, i) not in forced, -value, name, i)
        for name, score in scores.items()
        for i, value in enumerate(score.flatten().tolist())
    ]
    kept = {(name, i) for _, _, name, i in sorted(entries)[:keep]}
    return {
        name: torch.tensor([(name, i) in kept for i in range(score.numel())]).view(score.shape)
        for name, score in scores.items()
    }


def assert_same(masks, expected):
    assert list(masks) == list(expected)
    for name in expected:
        assert masks[name].dtype == torch.bool
        assert torch.equal(masks[name], expected[name]), name


def count(masks) -> int:
    return sum(int(mask.sum()) for mask in masks.values())


@pytest.mark.parametrize('removed', [0, 1, 2, 25, 49, 50, 51])
@pytest.mark.parametrize('levels', [None, 1, 2, 5])
def test_equals_a_plain_sort(removed, levels):
    scores = some_scores(removed, levels)
    assert_same(keep_masks(scores, removed / 51), plainly(scores, 51 - removed))


def test_ties_do_not_depend_on_the_order_of_the_mapping_or_on_threads():
    scores = some_scores(1, 3) | {'big': torch.zeros(20_001)}
    scores['big'][::3] = 1
    turned = dict(reversed(scores.items()))
    before, masks = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            masks += [keep_masks(scores, 0.4), keep_masks(turned, 0.4)]
    finally:
        torch.set_num_threads(before)
    assert masks[1].keys() == scores.keys() and list(masks[1]) == list(turned)
    for other in masks[1:]:
        assert all(torch.equal(other[name], masks[0][name]) for name in scores)
    assert count(masks[0]) == 20_052 - round(20_052 * 0.4)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_any_float_and_infinities(dtype):
    scores = {'a': torch.tensor([1.0, -torch.inf, 2.0, -torch.inf], dtype=dtype), 'b': torch.tensor([torch.inf, -3.0])}
    assert keep_masks(scores, 2 / 6)['a'].tolist() == [True, False, True, False]
    masks = keep_masks(scores, 1 / 6)  # one of two lowest: the first stays
    assert masks['a'].tolist() == [True, True, True, False] and masks['b'].all()


def test_scopes():
    scores = some_scores(2)
    layers = keep_masks(scores, 0.5, scope='per_layer')
    assert {name: int(mask.sum()) for name, mask in layers.items()} == {'b.weight': 12, 'a.weight': 10, 'c': 3}
    for name, mask in layers.items():
        assert scores[name][mask].min() > scores[name][~mask].max()
    groups = GROUPS | {'c': 'lidar'}
    by_group = keep_masks(scores, 0.4, scope='per_group', groups=groups)
    assert_same({'b.weight': by_group['b.weight']}, plainly({'b.weight': scores['b.weight']}, 24 - 10))
    lidar = {name: scores[name] for name in ('a.weight', 'c')}
    assert_same({name: by_group[name] for name in lidar}, plainly(lidar, 27 - 11))


def test_what_must_stay_stays_and_counts_are_exact():
    scores = some_scores(3)
    scores['c'] -= 100
    masks = keep_masks(scores, 30 / 51, min_keep=3)
    best = scores['c'].topk(3).indices.tolist()
    assert_same(masks, plainly(scores, 21, {('c', i) for i in best}))
    whole = {('c', i) for i in range(7)}
    assert_same(keep_masks(scores, 30 / 51, protected=('c',)), plainly(scores, 21, whole))
    assert_same(keep_masks(scores, 44 / 51, protected=('c',)), plainly(scores, 7, whole))
    assert keep_masks(scores, 30 / 51, protected=('a',))['a.weight'].all()  # everything below `a`
    shares = keep_masks(scores, 0.9, scope='per_layer', min_keep=0.25)
    assert {name: int(mask.sum()) for name, mask in shares.items()} == {'b.weight': 6, 'a.weight': 5, 'c': 2}
    assert keep_masks(scores, 30 / 51, min_keep=7)['c'].all()
    layers = keep_masks(scores, 0.5, scope='per_layer', protected=('b',))
    assert {name: int(mask.sum()) for name, mask in layers.items()} == {'b.weight': 24, 'a.weight': 10, 'c': 3}


def test_vectors_of_channels():
    masks = keep_masks({'x': torch.tensor([0.1, -2.0, 3.0]), 'y': torch.tensor([-1.0])}, 0.5, min_keep=1)
    assert masks['x'].tolist() == [False, False, True] and masks['y'].tolist() == [True]


def test_synaptic_flow_convention():
    scores = {'a': torch.tensor([0.0, 0.0, 0.0, 1.0, 2.0])}
    assert keep_masks(scores, 0.4, rounding='down')['a'].tolist() == [True, False, False, True, True]
    assert keep_masks(scores, 0.4, rounding='down', ties='drop')['a'].tolist() == [False, False, False, True, True]
    assert (num_removed(7, 0.5), num_removed(7, 0.5, 'down'), num_removed(100, 0.29)) == (4, 3, 29)


@pytest.mark.parametrize(
    'settings, message',
    [
        (dict(sparsity=1.5), 'sparsity=1.5 must lie between 0 and 1'),
        (dict(scope='local'), "scope='local'; valid are global, per_group, per_layer"),
        (dict(ties='last'), "ties='last'; valid are first, drop"),
        (dict(rounding='up'), "rounding='up'; valid are nearest, down"),
        (dict(scope='per_group'), 'no group is given for b.weight, a.weight, c'),
        (dict(protected=('d',)), "'d' matches no scores; there are a.weight, b.weight, c"),
        (dict(min_keep=-1), 'min_keep=-1'),
        (dict(min_keep=1.0), 'min_keep=1.0'),
        (dict(sparsity=0.9, protected=('b',)), 'removes 46 of 51 weights .global., but 24 must stay'),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        keep_masks(some_scores(), **{'sparsity': 0.5, **settings})


def test_nan_is_named():
    scores = some_scores()
    scores['a.weight'][0, 0] = torch.nan
    with pytest.raises(ValueError, match=r'scores are nan in a\.weight$'):
        keep_masks(scores, 0.5)
    with pytest.raises(ValueError, match='no scores'):
        keep_masks({}, 0.5)


def best_block(mask: list[bool], scores: list[float], n: int) -> set[int]:
    """All subsets of at most n kept entries, the one with most entries, then with the highest scores."""
    kept = [i for i, keep in enumerate(mask) if keep]
    size = min(n, len(kept))
    return set(max(itertools.combinations(kept, size), key=lambda chosen: sum(scores[i] for i in chosen)))


@pytest.mark.parametrize(
    'shape, dim', [((3, 8, 2, 2), 1), ((5, 12), 1), ((2, 1, 3, 3, 8), -1), ((3, 6), 1), ((9, 2), 0)]
)
@pytest.mark.parametrize('n, m', [(2, 4), (1, 4), (0, 4), (4, 4), (1, 3)])
def test_n_of_m(shape, dim, n, m):
    generator = torch.Generator().manual_seed(len(shape) + n)
    scores = torch.randn(shape, generator=generator)
    mask = torch.rand(shape, generator=generator) < 0.6
    projected = project_nm(mask, scores, n, m, dim)
    assert projected.shape == mask.shape and projected.dtype == torch.bool
    rows = zip(*(x.movedim(dim, -1).flatten(0, -2).tolist() for x in (projected, mask, scores)))
    for got, kept, values in rows:
        for start in range(0, len(got), m):
            block = slice(start, start + m)
            assert {i for i, keep in enumerate(got[block]) if keep} == best_block(kept[block], values[block], n)


def test_n_of_m_prefers_kept_weights_and_the_first_of_ties():
    mask = torch.tensor([[False, True, True, True]])
    scores = torch.tensor([[5.0, -torch.inf, -torch.inf, -torch.inf]])
    assert project_nm(mask, scores).tolist() == [[False, True, True, False]]
    assert project_nm(torch.ones(1, 8, dtype=torch.bool), torch.zeros(1, 8)).tolist() == [
        [True, True, False, False] * 2
    ]
    with pytest.raises(ValueError, match='0 <= n <= m, got 5:4'):
        project_nm(mask, scores, 5, 4)
    with pytest.raises(ValueError, match='must have one shape'):
        project_nm(mask, scores[0])


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_kth_smallest(dtype):
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(500, generator=generator, dtype=dtype) * 10.0 ** torch.arange(-40, 10).repeat(10).to(dtype)
    values[::9], values[1::9], values[2::9], values[3] = 0.0, -0.0, -torch.inf, torch.inf
    values[-50:] = values[100:150]
    expected = values.sort().values
    for k in (*range(1, 500, 17), 500):
        assert kth_smallest(values, k) == expected[k - 1]


def test_many_weights_in_descending_order():
    """The order in which Tensor.kthvalue would take half a minute for as many."""
    num = 400_005
    mask = keep_masks({'a': torch.linspace(1, -1, num)}, 0.25)['a']
    assert (
        int(mask.sum()) == num - round(num / 4) and bool(mask[: -num // 4].all()) and not bool(mask[-num // 5 :].any())
    )
