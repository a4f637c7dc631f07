"""Windows, position embeddings and layouts against loops over tokens, and what every layout must be."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mmprune3d.ops.windows import (
    CPU_SIZES,
    GPU_SIZES,
    WindowPlan,
    from_places,
    plan_windows,
    position_embedding,
    to_places,
    window_of,
)

SHAPES = [  # grid and window along x, y, z
    ((24, 24, 1), (12, 12, 1)),
    ((26, 23, 1), (7, 5, 1)),  # odd, and not a multiple
    ((12, 30, 1), (6, 10, 1)),
    ((9, 8, 6), (4, 3, 2)),
    ((9, 8, 2), (4, 4, 2)),  # one layer of windows of two cells
    ((5, 6, 1), (8, 8, 1)),  # a window larger than the grid
    ((4, 4, 1), (1, 1, 1)),
]


def all_cells(grid: tuple[int, ...], batch: int = 2) -> Tensor:
    """[N, 4] every cell of every sample, shuffled."""
    sides = (torch.arange(size) for size in (batch, *grid[::-1]))
    cells = torch.cartesian_prod(*sides)
    return cells[torch.randperm(len(cells), generator=torch.Generator().manual_seed(0))]


@pytest.mark.parametrize('shifted', [False, True])
@pytest.mark.parametrize(('grid', 'window'), SHAPES)
def test_window_and_place_of_every_cell(grid: tuple[int, ...], window: tuple[int, ...], shifted: bool) -> None:
    coords = all_cells(grid)
    numbers, places = window_of(coords, grid, window, shifted)
    counts = [math.ceil(size / each) + 1 for size, each in zip(grid, window)]
    shift = [each // 2 if shifted else each for each in window]
    if grid[2] == window[2]:
        shift[2] = 0
    for (b, z, y, x), number, place in zip(coords.tolist(), numbers.tolist(), places.tolist()):
        moved = x + shift[0], y + shift[1], z + shift[2]
        wx, wy, wz = (at // each for at, each in zip(moved, window))
        assert number == ((b * counts[0] + wx) * counts[1] + wy) * counts[2] + wz
        assert place == [at % each for at, each in zip(moved, window)][::-1]
    assert len({(number, *place) for number, place in zip(numbers.tolist(), places.tolist())}) == len(coords)


@pytest.mark.parametrize('shifted', [False, True])
@pytest.mark.parametrize(('grid', 'window'), SHAPES)
def test_who_shares_a_window(grid: tuple[int, ...], window: tuple[int, ...], shifted: bool) -> None:
    """The same partition by another rule: borders of windows lie at multiples, or half a window before them."""
    coords = all_cells(grid)
    numbers, _ = window_of(coords, grid, window, shifted)
    flat = grid[2] <= window[2]

    def borders_before(at: int, axis: int) -> int:
        move = window[axis] // 2 if shifted and not (axis == 2 and flat) else 0
        return sum(border <= at for border in range(window[axis] - move, grid[axis] + window[axis], window[axis]))

    keys = [(b, borders_before(x, 0), borders_before(y, 1), borders_before(z, 2)) for b, z, y, x in coords.tolist()]
    assert len(set(zip(keys, numbers.tolist()))) == len(set(keys)) == len(numbers.unique())


def test_a_token_keeps_its_window_whatever_the_others() -> None:
    coords = all_cells((26, 23, 1))
    for shifted in (False, True):
        numbers, places = window_of(coords, (26, 23, 1), (7, 5, 1), shifted)
        some = torch.randperm(len(coords), generator=torch.Generator().manual_seed(1))[:50]
        of_some = window_of(coords[some].int(), (26, 23, 1), (7, 5, 1), shifted)
        assert torch.equal(of_some[0], numbers[some]) and torch.equal(of_some[1], places[some])
        assert of_some[0].dtype == of_some[1].dtype == torch.int64


@pytest.mark.parametrize('normalize', [False, True])
@pytest.mark.parametrize('channels', [16, 24, 10, 7, 64])
@pytest.mark.parametrize('window', [(12, 12, 1), (7, 5, 1), (4, 6, 3)])
def test_position_embedding_entry_by_entry(window: tuple[int, ...], channels: int, normalize: bool) -> None:
    places = torch.cartesian_prod(*(torch.arange(size) for size in window[::-1]))
    found = position_embedding(places, window, channels, 100.0, normalize, torch.float64)
    axes = 2 if window[2] == 1 else 3
    length = channels // (2 * axes) * 2
    expected = torch.zeros(len(places), channels, dtype=torch.float64)
    for row, place in enumerate(places.tolist()):
        for axis in range(axes):
            offset = place[2 - axis] - window[axis] / 2
            offset = offset / window[axis] * 2 * 3.1415 if normalize else offset
            for k in range(length):
                angle = offset / 100.0 ** (2 * (k // 2) / length)
                expected[row, axis * length + k] = math.cos(angle) if k % 2 else math.sin(angle)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)
    single = position_embedding(places, window, channels, 100.0, normalize)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), expected, rtol=0, atol=2e-6)


def ids_of(counts: list[int], seed: int = 0) -> Tensor:
    """Windows of so many tokens, numbered with gaps, in random order."""
    generator = torch.Generator().manual_seed(seed)
    numbers = (torch.randperm(5 * len(counts) + 1, generator=generator) + 3)[: len(counts)]
    ids = numbers.repeat_interleave(torch.tensor(counts))
    return ids[torch.randperm(len(ids), generator=generator)]


def check(plan: WindowPlan, ids: Tensor, sizes: tuple[int, ...]) -> None:
    """All that attention relies on."""
    assert torch.equal(plan.rows[plan.places], torch.arange(len(ids)))  # hence places differ from each other
    taken = torch.zeros(len(plan.rows), dtype=torch.bool)
    taken[plan.places] = True
    seen, end = [], 0
    for bucket in plan.buckets:
        assert bucket.start == end and bucket.places == slice(end, end + bucket.windows * bucket.size)
        end = bucket.places.stop
        padding = ~taken[bucket.places].view(bucket.windows, bucket.size)
        assert bucket.padding is None if not padding.any() else torch.equal(bucket.padding, padding)
        rows = plan.rows[bucket.places].view(bucket.windows, bucket.size)
        counts = (~padding).sum(1)
        for window, absent, count in zip(rows, padding, counts.tolist()):
            (number,) = ids[window].unique().tolist()
            assert window[:count].tolist() == (ids == number).nonzero().squeeze(1).tolist()  # all, in their order
            assert not absent[:count].any() and (window[count:] == window[0]).all()
            seen.append(number)
        below = max([0, *(level for level in sizes if level < bucket.size)])
        assert below < counts.min() and counts.max() <= bucket.size
        assert bucket.size in sizes or (below == max(sizes) and counts.max() == bucket.size)
    assert end == len(plan.rows) and sorted(seen) == ids.unique().tolist()
    assert [bucket.size for bucket in plan.buckets] == sorted({bucket.size for bucket in plan.buckets})


@pytest.mark.parametrize('sizes', [None, CPU_SIZES, GPU_SIZES, (5,), (1, 1000)], ids=str)
@pytest.mark.parametrize('seed', range(4))
def test_random_layouts(seed: int, sizes: tuple[int, ...] | None) -> None:
    generator = torch.Generator().manual_seed(seed)
    counts = (1 + 60 * torch.rand(25, generator=generator) ** (seed + 1)).long().tolist()
    ids = ids_of(counts, seed)
    check(plan_windows(ids, sizes), ids, CPU_SIZES if sizes is None else sizes)


@pytest.mark.parametrize(
    'counts', [[1], [144], [1] * 9, [144, 1], [7, 7, 7], [300], [1, 2, 3, 200, 176, 177, 500]], ids=str
)
def test_layouts_at_the_limits(counts: list[int]) -> None:
    """One token, full windows, and windows above the largest size."""
    ids = ids_of(counts)
    for sizes in (CPU_SIZES, GPU_SIZES):
        check(plan_windows(ids, sizes), ids, sizes)


def test_no_token() -> None:
    plan = plan_windows(torch.zeros(0, dtype=torch.int64))
    assert plan.buckets == () and len(plan.rows) == len(plan.places) == 0
    nothing = torch.zeros(0, 3)
    assert to_places(nothing, plan).shape == from_places(nothing, plan).shape == (0, 3)


def test_numbers_of_windows_do_not_matter() -> None:
    ids = ids_of([3, 20, 1, 9])
    _, small = ids.unique(return_inverse=True)
    one, other = plan_windows(ids), plan_windows(small)
    assert torch.equal(one.rows, other.rows) and torch.equal(one.places, other.places)


def test_little_padding_with_the_sizes_for_cpus() -> None:
    counts = list(range(1, 145))
    places = len(plan_windows(ids_of(counts)).rows)
    assert places < 1.11 * sum(counts) < len(plan_windows(ids_of(counts), GPU_SIZES).rows)


@pytest.mark.parametrize('shape', [(), (3,), (2, 4)], ids=str)
def test_to_places_and_back(shape: tuple[int, ...]) -> None:
    plan = plan_windows(ids_of([4, 9, 2, 1, 9, 5]), (3, 10))
    assert len(plan.rows) > 30
    tokens = torch.randn(30, *shape, dtype=torch.float64, requires_grad=True)
    placed = to_places(tokens, plan)
    assert torch.equal(placed, tokens[plan.rows])
    assert torch.equal(from_places(placed, plan), tokens)
    values = torch.randn(len(plan.rows), *shape, dtype=torch.float64, requires_grad=True)
    assert torch.equal(from_places(values, plan), values[plan.places])
    factor = torch.randn(values.shape, dtype=torch.float64)
    there_and_back = lambda tokens: from_places(to_places(tokens, plan) ** 2 * factor, plan)  # noqa: E731
    assert torch.autograd.gradcheck(lambda values: from_places(values, plan), values)
    assert torch.autograd.gradcheck(there_and_back, tokens, fast_mode=True)
    assert torch.autograd.gradgradcheck(there_and_back, tokens, fast_mode=True)


def test_what_arrives_at_padding_does_not_come_back() -> None:
    """It is 0 in attention, and not summed."""
    plan = plan_windows(ids_of([4, 9, 2]), (10,))
    tokens = torch.zeros(15, 2, requires_grad=True)
    gradient = torch.full((len(plan.rows), 2), torch.nan)
    gradient[plan.places] = torch.arange(30.0).view(15, 2)
    to_places(tokens, plan).backward(gradient)
    assert torch.equal(tokens.grad, torch.arange(30.0).view(15, 2))
