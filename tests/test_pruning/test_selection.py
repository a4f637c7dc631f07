from __future__ import annotations

import pytest
import torch

from mmprune3d.pruning.selection import compose, gather_tokens, keep_highest


@pytest.mark.parametrize('keep', [1, 5, 8, 9])
def test_keep_highest_equals_a_full_sort(keep: int) -> None:
    scores = torch.rand(3, 9, generator=torch.Generator().manual_seed(keep))
    expected = scores.argsort(dim=1, descending=True)[:, :keep].sort(1).values
    assert torch.equal(keep_highest(scores, keep).sort(1).values, expected)


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
