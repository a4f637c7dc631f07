from __future__ import annotations

import math

import pytest
import torch

from mmprune3d.pruning import selection
from mmprune3d.pruning.selection import compose, gather_tokens, keep_highest, top_indices


@pytest.mark.parametrize('keep', [1, 5, 8, 9])
def test_keep_highest_equals_a_full_sort(keep: int) -> None:
    scores = torch.rand(3, 9, generator=torch.Generator().manual_seed(keep))
    expected = scores.argsort(dim=1, descending=True)[:, :keep].sort(1).values
    assert torch.equal(keep_highest(scores, keep).sort(1).values, expected)


@pytest.fixture(params=[0, selection.SHORT], ids=['topk', 'sort'])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Either way for few scores."""
    monkeypatch.setattr(selection, 'SHORT', request.param)


def by_hand(scores: torch.Tensor, k: int) -> list[int]:
    """The order by definition: NaN, then the larger one, then the lower index."""
    values = [math.inf if math.isnan(value) else value for value in scores.tolist()]
    numbers = [not math.isnan(value) for value in scores.tolist()]
    return sorted(range(len(values)), key=lambda i: (numbers[i], -values[i], i))[:k]


@pytest.mark.usefixtures('way')
@pytest.mark.parametrize('k', [0, 1, 2, 3, 15, 16, 17, 40, 99, 100])
@pytest.mark.parametrize('levels', [1, 2, 7, 10**6])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.int64])
def test_of_equal_scores_the_first_ones_are_taken(k: int, levels: int, dtype: torch.dtype) -> None:
    scores = torch.randint(levels, (3, 2, 100), generator=torch.Generator().manual_seed(k)).to(dtype)
    found = top_indices(scores, k)
    assert found.shape == (3, 2, k)
    assert found.flatten(0, 1).tolist() == [by_hand(row, k) for row in scores.flatten(0, 1)]
    assert top_indices(scores[0, 0], k).tolist() == by_hand(scores[0, 0], k)
    if k >= 1:
        assert keep_highest(scores[0], k).tolist() == (
            [by_hand(row, k) for row in scores[0]] if k < 100 else [list(range(100))] * 2
        )


def test_many_scores_with_few_values() -> None:
    scores = torch.randint(300, (2, 5000), generator=torch.Generator().manual_seed(0)).float()
    for k in (1, 70, 2000, 4999):
        assert top_indices(scores, k).tolist() == [by_hand(row, k) for row in scores]


@pytest.mark.usefixtures('way')
@pytest.mark.parametrize('k', [1, 3, 20, 50])
def test_nan_is_higher_than_any_number(k: int) -> None:
    scores = torch.tensor([0.0, 1.0, math.inf, -math.inf, math.nan] * 10 + [-0.0])
    assert top_indices(scores, k).tolist() == by_hand(scores, k)
    assert top_indices(torch.full((60,), math.nan), k).tolist() == list(range(k))


@pytest.mark.parametrize('k', [-1, 10])
def test_more_than_there_are_says_what_is_valid(k: int) -> None:
    with pytest.raises(ValueError, match='valid numbers are 0 to 9'):
        top_indices(torch.rand(2, 9), k)


def test_a_traced_graph_has_one_topk_and_no_sort() -> None:
    traced = torch.jit.trace(lambda scores: top_indices(scores, 3), torch.rand(2, 9))
    kinds = {node.kind() for node in traced.graph.nodes()}
    assert 'aten::topk' in kinds and not any('sort' in kind for kind in kinds)


def test_a_compiled_choice_is_the_same() -> None:
    scores = torch.randint(3, (2, 40), generator=torch.Generator().manual_seed(0)).float()
    found = torch.compile(lambda values: top_indices(values, 11), backend='eager', fullgraph=True)(scores)
    assert torch.equal(found, top_indices(scores, 11))


def test_keeping_all_keeps_the_order() -> None:
    assert torch.equal(keep_highest(torch.rand(2, 7), 7), torch.arange(7).expand(2, 7))


@pytest.mark.parametrize('keep', [0, -1, 10])
def test_keep_out_of_range_says_what_is_valid(keep: int) -> None:
    with pytest.raises(ValueError, match='valid numbers are 1 to 9'):
        keep_highest(torch.rand(1, 9), keep)


@pytest.mark.parametrize('shape', [(2, 6), (2, 6, 3), (2, 6, 3, 4)])
def test_gather_takes_rows_of_each_sample(shape: tuple[int, ...]) -> None:
    tokens = torch.rand(shape)
    index = torch.tensor([[5, 0, 2], [1, 1, 4]])
    expected = torch.stack([tokens[b][index[b]] for b in range(2)])
    assert torch.equal(gather_tokens(tokens, index), expected)


def test_compose_gives_original_ids_after_two_choices() -> None:
    tokens = torch.rand(2, 10)
    first = torch.tensor([[9, 3, 4, 1], [0, 2, 5, 7]])
    second = torch.tensor([[3, 0], [1, 2]])
    survivors = gather_tokens(gather_tokens(tokens, first), second)
    assert torch.equal(gather_tokens(tokens, compose(first, second)), survivors)
