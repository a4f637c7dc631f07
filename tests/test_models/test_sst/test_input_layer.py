"""The input layer: a function of coordinates, and the tokens that SST drops in training."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mmprune3d.models.sst.input_layer import SSTInputLayer, WindowedTokens
from mmprune3d.ops.windows import position_embedding, window_of

from .small_sst import GRID, WIDTH, WINDOW, coords_of

SHAPES = dict(window_shape=WINDOW, sparse_shape=(*GRID, 1))
TABLE = {
    0: dict(max_tokens=5, drop_range=(0, 12)),
    1: dict(max_tokens=8, drop_range=(12, 25)),
    2: dict(max_tokens=10, drop_range=(25, 1000)),
}
GENTLE = {0: dict(max_tokens=30, drop_range=(0, 30)), 1: dict(max_tokens=36, drop_range=(30, 100000))}


def tokens_of(layer: SSTInputLayer, sizes: tuple[int, ...] = (200, 120), seed: int = 0) -> WindowedTokens:
    coords = coords_of(sizes, seed)
    feats = torch.arange(len(coords), dtype=torch.float32)[:, None].expand(-1, WIDTH)
    return layer(feats, coords, len(sizes))


def ranks(ids: list[int]) -> list[int]:
    """How many tokens of the same window come before each."""
    return [ids[:place].count(each) for place, each in enumerate(ids)]


def limit(count: int, table: dict) -> int:
    fitting = [
        entry['max_tokens'] for entry in table.values() if entry['drop_range'][0] <= count < entry['drop_range'][1]
    ]
    return fitting[0] if fitting else count


def slow_drop(order: list[int], windows: tuple[Tensor, Tensor], table: dict) -> list[int]:
    """SST's rule: by rank in the window, below the limit of the window's occupancy; then again in shifted windows."""
    for ids in windows:
        own = [int(ids[row]) for row in order]
        limits = {each: limit(own.count(each), table) for each in set(own)}
        order = [row for row, each, rank in zip(order, own, ranks(own)) if rank < limits[each]]
    return sorted(order)


def test_nothing_is_dropped_by_default() -> None:
    layer = SSTInputLayer(**SHAPES)
    coords = coords_of((200, 120))
    for mode in (True, False):
        tokens = tokens_of(layer.train(mode))
        assert torch.equal(tokens.coords, coords) and tokens.batch_size == 2
        assert torch.equal(tokens.feats[:, 0], torch.arange(320.0))
        for shifted in (False, True):
            ids, places = window_of(coords, (*GRID, 1), WINDOW, shifted)
            assert torch.equal(tokens.window_ids[shifted], ids)
            assert torch.equal(tokens.positions[shifted], position_embedding(places, WINDOW, WIDTH))
    assert list(layer.parameters()) == [] and list(layer.state_dict()) == []


@pytest.mark.parametrize('seed', range(3))
@pytest.mark.parametrize('table', [TABLE, {0: TABLE[1]}], ids=['all occupancies', 'some'])
def test_dropped_tokens_are_those_of_the_rule(table: dict, seed: int) -> None:
    """Windows whose occupancy is in no range keep everything."""
    whole = tokens_of(SSTInputLayer(**SHAPES))
    torch.manual_seed(seed)
    order = torch.randperm(320).tolist()
    expected = slow_drop(order, whole.window_ids, table)
    torch.manual_seed(seed)
    tokens = tokens_of(SSTInputLayer(**SHAPES, drop_info=table))
    assert tokens.feats[:, 0].long().tolist() == expected and 60 < len(expected) < 320
    for part in ('coords', 'feats'):
        assert torch.equal(getattr(tokens, part), getattr(whole, part)[expected])
    for part in ('window_ids', 'positions'):
        for found, wanted in zip(getattr(tokens, part), getattr(whole, part)):
            assert torch.equal(found, wanted[expected])


def test_which_tokens_go_is_random_and_seeded() -> None:
    layer, found = SSTInputLayer(**SHAPES, drop_info=TABLE), []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        found.append(tokens_of(layer).coords)
    assert torch.equal(found[0], found[1]) and {*map(tuple, found[0].tolist())} != {*map(tuple, found[2].tolist())}


def test_mode_chooses_the_table_each_time() -> None:
    layer = SSTInputLayer(**SHAPES, drop_info=(TABLE, GENTLE))
    for _ in range(2):
        assert len(tokens_of(layer.train()).feats) < 320
        assert len(tokens_of(layer.eval()).feats) == 320
    one_table = SSTInputLayer(**SHAPES, drop_info=TABLE)
    assert len(tokens_of(one_table.train()).feats) < 320 and len(tokens_of(one_table.eval()).feats) < 320
    only_training = SSTInputLayer(**SHAPES, drop_info=[TABLE, None])
    assert len(tokens_of(only_training.eval()).feats) == 320


def test_samples_drop_apart() -> None:
    """Occupancy is counted in the windows of one sample."""
    torch.manual_seed(0)
    tokens = tokens_of(SSTInputLayer(**SHAPES, drop_info={0: dict(max_tokens=4, drop_range=(0, 100))}), (90, 0, 90, 0))
    assert tokens.batch_size == 4
    for sample in (0, 2):
        ids = tokens.window_ids[0][tokens.coords[:, 0] == sample]
        assert ids.unique(return_counts=True)[1].max() <= 4 and len(ids) > 10


@pytest.mark.parametrize(
    ('options', 'width'),
    [(dict(), WIDTH), (dict(pos_dims=24), 24), (dict(normalize_pos=True, pos_temperature=50), WIDTH)],
)
def test_positions_are_as_wide_as_asked(options: dict, width: int) -> None:
    tokens = tokens_of(SSTInputLayer(**SHAPES, **options))
    _, places = window_of(tokens.coords, (*GRID, 1), WINDOW, True)
    temperature, normalize = options.get('pos_temperature', 10000), options.get('normalize_pos', False)
    assert torch.equal(tokens.positions[1], position_embedding(places, WINDOW, width, temperature, normalize))


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_positions_are_exact_for_half_precision(dtype: torch.dtype) -> None:
    coords = coords_of((20,)).int()
    tokens = SSTInputLayer(**SHAPES)(torch.zeros(20, 8, dtype=dtype), coords, 1)
    assert tokens.positions[0].dtype == (torch.float32 if dtype == torch.bfloat16 else dtype)
    assert tokens.coords.dtype == torch.int64


@pytest.mark.parametrize('table', [None, TABLE], ids=['keep', 'drop'])
def test_no_token(table: dict | None) -> None:
    tokens = tokens_of(SSTInputLayer(**SHAPES, drop_info=table), (0, 0, 0))
    assert tokens.feats.shape == (0, WIDTH) and tokens.batch_size == 3 and tokens.coords.shape == (0, 4)


def test_selected_tokens_keep_what_belongs_to_them() -> None:
    whole = tokens_of(SSTInputLayer(**SHAPES))
    rows = torch.tensor([3, 200, 7])
    some = whole.select(rows)
    assert some.batch_size == 2 and torch.equal(some.feats, whole.feats[rows])
    assert torch.equal(some.coords, whole.coords[rows])
    for part in ('window_ids', 'positions'):
        assert all(torch.equal(a, b[rows]) for a, b in zip(getattr(some, part), getattr(whole, part), strict=True))


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(window_shape=(6, 6)), r'window_shape and sparse_shape are \(x, y, z\)'),
        (dict(sparse_shape=(18, 20)), r'window_shape and sparse_shape are \(x, y, z\)'),
        (dict(drop_info={0: dict(max_tokens=3)}), 'level 0 of drop_info has .*valid are max_tokens and drop_range'),
    ],
    ids=str,
)
def test_errors_name_what_is_valid(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SSTInputLayer(**{**SHAPES, **options})
