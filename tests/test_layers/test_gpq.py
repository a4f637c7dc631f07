"""An embedding that loses rows: what the model reads, what optimizer and state dict see."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from mmprune3d.layers.gpq import PrunableEmbedding, prunable_names


def embedding(rows: int = 6) -> PrunableEmbedding:
    torch.manual_seed(0)
    return PrunableEmbedding(rows, 3)


def without(*rows: int, total: int = 6) -> PrunableEmbedding:
    made = embedding(total)
    made.remove(torch.tensor(rows))
    return made


def test_removing_nothing_changes_nothing():
    ours = embedding()
    torch.manual_seed(0)
    plain = nn.Embedding(6, 3)
    assert ours.weight is ours.all_rows  # the parameter itself, no copy
    assert torch.equal(ours.weight, plain.weight)
    assert list(ours.state_dict()) == list(plain.state_dict())
    assert ours.kept.tolist() == list(range(6)) and ours.num_kept == 6
    assert ours.removed_rows() is None
    ours.put_back(None)
    plain.load_state_dict(ours.state_dict(), strict=True)
    ours.load_state_dict(plain.state_dict(), strict=True)


def test_the_buffer_is_there_from_the_beginning():
    assert dict(embedding().named_buffers())['removal_rank'].tolist() == [0] * 6


def test_rows_go_and_the_order_is_kept():
    made = embedding()
    made.remove(torch.tensor([4]))
    made.remove(torch.tensor([2, 0]))
    assert made.removal_rank.tolist() == [3, 0, 2, 0, 1, 0]
    assert made.kept.tolist() == [1, 3, 5] and made.num_kept == 3
    assert torch.equal(made.weight, made.all_rows[[1, 3, 5]])


@pytest.mark.parametrize('rows', [[1, 1], [2], [0, 1, 3, 4, 5]])
def test_rows_that_cannot_go(rows):
    made = without(2)
    with pytest.raises(ValueError, match='cannot remove rows'):
        made.remove(torch.tensor(rows))
    assert made.kept.tolist() == [0, 1, 3, 4, 5]


def test_gradients_and_optimizer():
    made = embedding()
    optimizer = torch.optim.AdamW(made.parameters(), lr=0.1, weight_decay=0.5)
    made.weight.square().sum().backward()
    optimizer.step()
    made.remove(torch.tensor([1, 4]))
    before, gone = made.all_rows.detach().clone(), made.removed_rows()
    optimizer.zero_grad()
    made.weight.square().sum().backward()
    assert made.all_rows.grad[[1, 4]].abs().max() == 0
    assert (made.all_rows.grad[[0, 2, 3, 5]] != 0).all()
    optimizer.step()
    assert (made.all_rows[[1, 4]] != before[[1, 4]]).all()  # momentum and weight decay
    made.put_back(gone)
    assert torch.equal(made.all_rows[[1, 4]], before[[1, 4]])
    assert (made.all_rows[[0, 2, 3, 5]] != before[[0, 2, 3, 5]]).all()
    assert optimizer.param_groups[0]['params'][0] is made.all_rows


def test_state_dict_round_trip():
    source, target = without(4, 1), embedding()
    assert prunable_names({f'head.points.{key}': value for key, value in source.state_dict().items()}) == [
        'head.points'
    ]
    target.load_state_dict(source.state_dict(), strict=True)
    assert target.kept.tolist() == [0, 2, 3, 5] and target.removal_rank.tolist() == source.removal_rank.tolist()
    target.load_state_dict(embedding().state_dict(), strict=True)  # an unpruned state has all rows
    assert target.num_kept == 6 and target.weight is target.all_rows


def test_another_number_of_rows_is_an_error_that_names_the_weight():
    with pytest.raises(RuntimeError, match='size mismatch for weight'):
        embedding(5).load_state_dict(without(4).state_dict())


def test_copies_follow():
    source = without(3)
    other = copy.deepcopy(source)
    source.remove(torch.tensor([5]))
    assert other.kept.tolist() == [0, 1, 2, 4, 5]
    other.follow(source)
    assert other.kept.tolist() == source.kept.tolist() == [0, 1, 2, 4]


def test_conversion_is_in_place():
    plain = nn.Embedding(6, 3)
    parameter, values = plain.weight, plain.weight.detach().clone()
    converted = PrunableEmbedding.convert(plain)
    assert converted is plain and converted.weight is parameter and torch.equal(parameter, values)
    assert PrunableEmbedding.convert(plain) is plain
    plain.remove(torch.tensor([0]))
    assert torch.equal(plain.weight, values[1:])

    class Special(nn.Embedding):
        pass

    with pytest.raises(TypeError, match='queries in a Special cannot be pruned'):
        PrunableEmbedding.convert(Special(6, 3))


def test_moves_and_casts():
    made = without(0).to(torch.bfloat16)
    assert made.weight.dtype == torch.bfloat16 and made.removal_rank.dtype == torch.int64 and len(made.weight) == 5


def test_it_says_how_many_are_left():
    assert 'kept=4' in repr(without(0, 1))
