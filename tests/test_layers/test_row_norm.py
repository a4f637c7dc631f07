"""Batch norms over one row or none."""

from __future__ import annotations

import copy
import multiprocessing
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from mmcv.cnn import build_norm_layer
from mmdet3d.models.layers.norm import NaiveSyncBatchNorm1d
from torch import Tensor, nn

from mmprune3d.layers.row_norm import FewRows, RowBatchNorm1d, allow_few_rows

FORK = multiprocessing.get_context('fork')


def made(kind: str = 'BN1d', channels: int = 3) -> nn.Module:
    norm = build_norm_layer(dict(type=kind, eps=1e-3, momentum=0.1), channels)[1]
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, 2.0, 0.5]))
        norm.bias.copy_(torch.tensor([0.1, 0.2, 0.3]))
        norm.running_mean.copy_(torch.tensor([1.0, -1.0, 0.0]))
        norm.running_var.copy_(torch.tensor([4.0, 1.0, 0.25]))
    return norm


@pytest.mark.parametrize('kind', ['BN1d', 'naiveSyncBN1d'])
@pytest.mark.parametrize('shape', [(2, 3), (7, 3), (1, 3, 2), (4, 3, 5)])
@pytest.mark.parametrize('training', [True, False])
def test_many_rows_are_normalised_as_before_bit_for_bit(kind: str, shape: tuple[int, ...], training: bool) -> None:
    plain = made(kind).train(training)
    ours = allow_few_rows(copy.deepcopy(plain))
    rows = torch.randn(shape)
    assert torch.equal(ours(rows), plain(rows))
    for name, value in plain.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value), name


@pytest.mark.parametrize('kind', ['BN1d', 'naiveSyncBN1d'])
@pytest.mark.parametrize('shape', [(0, 3), (1, 3), (0, 3, 4), (1, 3, 1)])
def test_one_row_or_none_is_normalised_by_the_running_statistics(kind: str, shape: tuple[int, ...]) -> None:
    norm = allow_few_rows(made(kind)).train()
    before = copy.deepcopy(norm.state_dict())
    rows = torch.randn(shape, requires_grad=True)
    found = norm(rows)
    found.sum().backward()
    assert torch.equal(found, copy.deepcopy(norm).eval()(rows))
    assert all(torch.equal(value, before[name]) for name, value in norm.state_dict().items())
    assert rows.grad.isfinite().all() and norm.weight.grad is not None and norm.bias.grad is not None


def test_torch_alone_refuses_one_row() -> None:
    with pytest.raises(ValueError, match='more than 1 value per channel'):
        made().train()(torch.randn(1, 3))


def test_only_classes_change_and_only_once() -> None:
    model = nn.Sequential(nn.Linear(3, 3), made(), nn.LayerNorm(3), nn.BatchNorm2d(3), made('naiveSyncBN1d'))
    state = copy.deepcopy(model.state_dict())
    parameters = list(model.parameters())
    kinds = [[type(part) for part in allow_few_rows(model)] for _ in range(2)]
    assert kinds[0] == kinds[1] and kinds[0][1] is RowBatchNorm1d
    assert issubclass(kinds[0][4], (FewRows, NaiveSyncBatchNorm1d)) and kinds[0][2:4] == [nn.LayerNorm, nn.BatchNorm2d]
    assert all(one is other for one, other in zip(model.parameters(), parameters, strict=True))
    assert list(model.state_dict()) == list(state)


def rank_main(rank: int, folder: Path, results: Any) -> None:
    """The first of two processes has 6 rows, the second none."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE='2', MASTER_ADDR='127.0.0.1')
    torch.distributed.init_process_group('gloo', f'file://{folder}/rendezvous', rank=rank, world_size=2)
    norm = allow_few_rows(made('naiveSyncBN1d')).train()
    rows = torch.randn(0 if rank else 6, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    out = norm(rows)
    out.square().sum().backward()
    numbers = dict(out=out.detach(), mean=norm.running_mean, var=norm.running_var, grad=rows.grad)
    results.put((rank, {name: value.tolist() for name, value in numbers.items()}))
    torch.distributed.destroy_process_group()


def test_a_process_without_rows_does_not_stop_the_others(tmp_path: Path) -> None:
    results = FORK.Queue()
    processes = [FORK.Process(target=rank_main, args=(rank, tmp_path, results)) for rank in range(2)]
    for process in processes:
        process.start()
    found = dict(results.get(timeout=120) for _ in processes)
    for process in processes:
        process.join()
        assert process.exitcode == 0
    norm, rows = made(), torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    # both say what they have: 6 rows, and the running statistics
    mean = (rows.mean(0) + norm.running_mean) / 2
    square = (rows.square().mean(0) + norm.running_var + norm.running_mean**2) / 2
    expected = (rows - mean) * (square - mean**2 + norm.eps).rsqrt() * norm.weight + norm.bias
    close(torch.tensor(found[0]['out']), expected.detach())
    assert found[1]['out'] == [] and found[0]['mean'] == found[1]['mean'] and found[0]['var'] == found[1]['var']
    close(torch.tensor(found[0]['mean']), norm.running_mean + 0.1 * (mean - norm.running_mean))
    assert torch.tensor(found[0]['grad']).isfinite().all()


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('kind', ['BN1d', 'naiveSyncBN1d'])
def test_copies_and_pickles_keep_class_and_state(kind: str) -> None:
    norm = allow_few_rows(made(kind))
    norm(torch.randn(8, 3))
    for twin in (copy.deepcopy(norm), pickle.loads(pickle.dumps(norm))):
        assert type(twin) is type(norm) and twin.training and twin is not norm
        assert all(map(torch.equal, twin.state_dict().values(), norm.state_dict().values()))
        assert list(twin.state_dict()) == list(norm.state_dict())
        assert torch.equal(twin(torch.ones(1, 3)), norm(torch.ones(1, 3)))
