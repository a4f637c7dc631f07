"""Scores in two processes that have different data: both decide the same, and as one process with the union does."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mmprune3d.adapters.fusion import fusion_map, parameter_groups
from mmprune3d.coupling.groups import find_channel_groups
from mmprune3d.engine.channel_scoring import choose_channels, score_channels
from mmprune3d.engine.criteria import make_masks, score_model
from mmprune3d.pruning.altermoma import AlterMOMAPlan
from mmprune3d.pruning.channel_selection import Costs
from mmprune3d.pruning.channels import ChannelGroup, Member
from tests.kills import FORK

from .small_fusion import RADAR_GROUPS, RADAR_INTERFACES, SmallFusion, batches

CRITERIA = AlterMOMAPlan.criteria
MODES = ('unstructured', 'channels')
WORLD = 2
NUMBER = 5
"""Batches of each process."""


class Sparse(SmallFusion):
    """What comes out of the streams counts only at places that differ from batch to batch, as voxels do.

    The flow of SynFlow, too, then depends on the data.
    """

    def fused(self, inputs: dict[str, Any]) -> Tensor:
        self.places = (torch.stack(list(inputs['pts'])) > 0.5).to(self.bbox_head.weight.dtype)
        return super().fused(inputs)

    def combine(self, maps: list[Tensor]) -> Tensor:
        return super().combine([maps[0] * self.places[:, :1], maps[1] * self.places[:, 1:], *maps[2:]])


def shares() -> list[list[dict]]:
    """The batches of each process."""
    return [batches(WORLD * NUMBER)[rank::WORLD] for rank in range(WORLD)]


def union() -> list[dict]:
    """The batches of one process that has the data of all."""
    return [
        dict(
            inputs={name: [item for part in parts for item in part['inputs'][name]] for name in parts[0]['inputs']},
            data_samples=[item for part in parts for item in part['data_samples']],
        )
        for parts in zip(*shares())
    ]


def decided(criterion: str, mode: str, data: list[dict]) -> tuple[dict[str, list], dict[str, list]]:
    """Scores and what stays, as plain lists, for a queue."""
    torch.manual_seed(5)
    model = Sparse(radar=True, norm=False)
    fusion = fusion_map(model, RADAR_GROUPS, RADAR_INTERFACES, head='bbox_head')
    settings = {'eval_batches': 2, 'reactivation_steps': 3, 'lr': 0.1, 'optimizer': 'sgd'}
    if criterion == 'synflow':
        settings['rounds'] = 3
    plan = AlterMOMAPlan(criterion=criterion, mode=mode, sparsity=0.5, **settings)
    if mode == 'unstructured':
        scores = score_model(model, plan, data, fusion)
        keep = make_masks(scores, plan, parameter_groups(model, fusion))
    else:
        groups = find_channel_groups(model, lambda model: model(**union()[0], mode='tensor')).groups
        choose = partial(choose_channels, groups=groups, plan=plan, tolerance=0.05)
        scores = score_channels(model, plan, data, fusion, groups, lambda found, share: choose(found, share=share))
        keep = choose(scores.values, share=0.5).keep
    return tuple({name: value.tolist() for name, value in found.items()} for found in (scores.values, keep))


def chosen_by_costs(rank: int) -> dict[str, list]:
    """What stays of two layers whose FLOPs each process counted on another sample, with other numbers of voxels."""
    groups = [ChannelGroup(name, 8, (Member(f'{name}.weight', 0, 'out'),)) for name in 'ab']
    plan = AlterMOMAPlan(flops=0.5, criterion='random')
    shapes = {f'{name}.weight': (8, 1) for name in 'ab'}
    costs = Costs({'a.weight': 1.0 + 9 * rank, 'b.weight': 10.0 - 9 * rank}, shapes)
    scores = {'a': torch.arange(8.0), 'b': torch.arange(8.0) + 4}
    return {
        name: mask.tolist()
        for name, mask in choose_channels(scores, groups, plan, 0.5, costs, tolerance=0.1).keep.items()
    }


def rank_work(rank: int, folder: Path, results: Any) -> None:
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(WORLD))
    torch.distributed.init_process_group('gloo', f'file://{folder}/rendezvous', rank=rank, world_size=WORLD)
    data = shares()[rank]
    found: dict[Any, Any] = {(c, mode): decided(c, mode, data) for c in CRITERIA for mode in MODES}
    results.put((rank, {**found, 'costs': chosen_by_costs(rank)}))
    torch.distributed.destroy_process_group()


@pytest.fixture(scope='module')
def of_ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict]:
    """What each of the two processes decided, by all criteria."""
    folder, results = tmp_path_factory.mktemp('ranks'), FORK.Queue()
    processes = [FORK.Process(target=rank_work, args=(rank, folder, results)) for rank in range(WORLD)]
    for process in processes:
        process.start()
    found = dict(results.get(timeout=60) for _ in processes)
    for process in processes:
        process.join()
        assert process.exitcode == 0
    return found


@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('criterion', CRITERIA)
def test_two_processes_score_and_decide_as_one_with_the_union(of_ranks, criterion, mode):
    (first, kept), (second, others) = (of_ranks[rank][criterion, mode] for rank in range(WORLD))
    assert kept == others
    assert first == second
    scores, keep = decided(criterion, mode, union())
    assert kept == keep
    for name, expected in scores.items():
        found, expected = torch.tensor(first[name]).double(), torch.tensor(expected).double()
        # SynFlow's flow is a sum over the samples, of which one process has more
        factor = WORLD if criterion == 'synflow' else 1
        torch.testing.assert_close(factor * found, expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('criterion', ['altermoma', 'prospr', 'snip', 'synflow'])
def test_each_process_alone_would_decide_otherwise(criterion, mode):
    """Otherwise the test above could not fail."""
    alone = [decided(criterion, mode, data)[1] for data in shares()]
    assert alone[0] != alone[1]


def test_costs_of_the_first_process_count(of_ranks):
    assert chosen_by_costs(0) != chosen_by_costs(1)
    assert of_ranks[0]['costs'] == of_ranks[1]['costs'] == chosen_by_costs(0)
