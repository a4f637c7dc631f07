"""Scores of channels against gates on the channels; what stays; criteria to compare with."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mmprune3d.adapters.fusion import FusionMap, fusion_map
from mmprune3d.coupling.groups import find_channel_groups
from mmprune3d.engine.channel_scoring import choose_channels, score_channels, trained_groups
from mmprune3d.pruning.altermoma import AlterMOMAPlan
from mmprune3d.pruning.channels import ChannelGroup, Member
from tests.kills import assert_same

from .small_fusion import GROUPS, INTERFACES, RADAR_GROUPS, RADAR_INTERFACES, SmallFusion, batches

LAST = {
    'img_backbone.0': 'img_backbone.1',
    'img_backbone.3': 'img_backbone.3',
    'pts_middle_encoder.0': 'pts_middle_encoder.1',
    'pts_middle_encoder.3': 'pts_middle_encoder.3',
    'fusion_layer.0': 'fusion_layer.1',
}
"""Group -> the last module that makes its channels: the norm, if there is one."""
DATA = batches(5)


def small(radar: bool = False, **kwargs: Any) -> tuple[SmallFusion, FusionMap, list[ChannelGroup]]:
    torch.manual_seed(1)
    model = SmallFusion(radar=radar, **kwargs)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
            module.eps = 1e-12  # otherwise weights in front of it have a little influence
    fusion = fusion_map(model, *((RADAR_GROUPS, RADAR_INTERFACES) if radar else (GROUPS, INTERFACES)), head='bbox_head')
    return model, fusion, find_channel_groups(model, lambda model: model(**DATA[0], mode='tensor')).groups


def plan_of(criterion: str, **settings: Any) -> AlterMOMAPlan:
    settings = {'sparsity': 0.4, 'mode': 'channels', 'eval_batches': 2, 'reactivation_steps': 2, **settings}
    return AlterMOMAPlan(criterion=criterion, **settings)


def scores_of(criterion: str, made: tuple | None = None, **settings: Any) -> dict[str, Tensor]:
    model, fusion, groups = made or small()
    plan = plan_of(criterion, **settings)
    choose = partial(choose_channels, groups=groups, plan=plan, tolerance=1.0)
    return score_channels(model, plan, DATA, fusion, groups, lambda scores, share: choose(scores, share=share)).values


def gates(model: SmallFusion, data: list[dict]) -> dict[str, Tensor]:
    """|dL / dgate| for a factor of 1 on every channel, where it leaves its norm."""
    model = copy.deepcopy(model).train()
    modules, made = dict(model.named_modules()), {}
    for group, path in LAST.items():
        made[group] = torch.ones(modules[path].weight.shape[0], requires_grad=True)
        gate = made[group][:, None, None]
        modules[path].register_forward_hook(lambda module, args, output, gate=gate: output * gate)
    sum(model(**batch, mode='loss')['loss_bbox'] for batch in data).backward()
    return {group: gate.grad.abs() / len(data) for group, gate in made.items()}


def assert_close(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert sorted(ours) == sorted(theirs)
    for name, score in theirs.items():
        torch.testing.assert_close(ours[name].float(), score.float(), rtol=1e-3, atol=1e-6)


def normalised(values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Divided by the sum over what belongs to one modality."""
    sums: dict[str, Tensor] = {}
    for name, value in values.items():
        sums[name.split('.')[0]] = sums.get(name.split('.')[0], 0) + value.sum()
    return {name: value / sums[name.split('.')[0]] for name, value in values.items()}


def test_snip_is_the_derivative_of_a_gate_on_the_channel() -> None:
    made = small()
    expected = gates(made[0], DATA[:2])
    total = sum(gate.sum() for gate in expected.values())
    assert_close(scores_of('snip', made), {name: gate / total for name, gate in expected.items()})


def test_prospr_without_steps_is_snip_on_its_batch() -> None:
    made = small()
    assert_close(scores_of('prospr', made, reactivation_steps=0), gates(made[0], DATA[:1]))
    trained, data = copy.deepcopy(made[0]).train(), DATA[:2]
    optimizer = torch.optim.SGD(trained.parameters(), lr=0.1)
    trained(**data[0], mode='loss')['loss_bbox'].backward()
    optimizer.step()
    later = scores_of('prospr', made, reactivation_steps=1, lr=0.1)
    initial = dict(made[0].named_parameters())
    trained.zero_grad()
    trained(**data[1], mode='loss')['loss_bbox'].backward()
    terms = {name: initial[name].detach() * p.grad for name, p in trained.named_parameters()}
    expected = terms['fusion_layer.0.weight'].sum((1, 2, 3)) + terms['fusion_layer.1.weight'] + terms[
        'fusion_layer.1.bias'
    ]  # fmt: skip
    torch.testing.assert_close(later['fusion_layer.0'].float(), expected.abs(), rtol=1e-3, atol=1e-6)


def test_altermoma_without_redundancy_is_the_share_of_the_gates_in_each_modality() -> None:
    made = small()
    assert_close(scores_of('altermoma', made, beta=0.0), normalised(gates(made[0], DATA[:2])))


@pytest.mark.parametrize('radar', [False, True])
def test_scores_sum_to_zero_in_each_modality(radar: bool) -> None:
    scores = scores_of('altermoma', small(radar), dead_lowest=False)
    for part in {name.split('.')[0] for name in scores}:
        values = torch.cat([score for name, score in scores.items() if name.startswith(part)])
        assert float(values.sum().abs()) < 1e-6 < float(values.abs().max())


def test_dead_channels_come_last() -> None:
    model, fusion, groups = small()
    with torch.no_grad():
        model.img_backbone[1].weight[2] = model.img_backbone[1].bias[2] = 0
    scores = scores_of('altermoma', (model, fusion, groups))
    dead = {name: gate == 0 for name, gate in gates(model, DATA[:2]).items()}
    assert dead['img_backbone.0'][2] and not all(mask.all() for mask in dead.values())
    assert_same({name: score == -torch.inf for name, score in scores.items()}, dead, 'dead channels')
    kept = scores_of('altermoma', (model, fusion, groups), dead_lowest=False)
    assert kept['img_backbone.0'][2] == 0


def test_magnitude_is_the_norm_of_what_makes_a_channel() -> None:
    made = small()
    weight = made[0].pts_middle_encoder[3].weight
    expected = torch.stack([row.square().sum().sqrt() for row in weight])
    torch.testing.assert_close(scores_of('magnitude', made)['pts_middle_encoder.3'].float(), expected.detach())
    # a stream that is a sum has several makers; the root of their mean square is of the size of one
    first, second = Member('img_backbone.3.weight', 0, 'out'), Member('pts_middle_encoder.3.weight', 0, 'out')
    both = ChannelGroup('img_backbone.3', 4, (first, second))
    (score,) = scores_of('magnitude', (made[0], made[1], [both])).values()
    norms = [part[3].weight.square().sum((1, 2, 3)) for part in (made[0].img_backbone, made[0].pts_middle_encoder)]
    torch.testing.assert_close(score.float(), (sum(norms) / 2).sqrt().detach())


def test_random_depends_on_the_seed() -> None:
    first, again, other = (scores_of('random', seed=seed) for seed in (1, 1, 2))
    assert_same(first, again, 'scores')
    assert not torch.equal(first['fusion_layer.0'], other['fusion_layer.0'])


@pytest.mark.parametrize('rounds', [1, 5])
def test_synflow_knows_what_nobody_reads(rounds: int) -> None:
    model, fusion, groups = small()
    with torch.no_grad():
        model.bbox_head.weight[:, 3] = 0
    scores = scores_of('synflow', (model, fusion, groups), rounds=rounds)
    assert all(score.isfinite().all() and bool((score >= 0).all()) for score in scores.values())
    assert int(scores['fusion_layer.0'].argmin()) == 3 and scores['fusion_layer.0'][3] == 0
    zeros = sum(int((score == 0).sum()) for score in scores.values())
    assert zeros == 1 if rounds == 1 else zeros > 1  # what went in earlier rounds


@pytest.mark.parametrize('criterion', AlterMOMAPlan.criteria)
def test_the_model_is_left_as_it_was(criterion: str) -> None:
    made = small(dropout=0.3)
    before, state = copy.deepcopy(made[0].state_dict()), torch.get_rng_state()
    made[0].eval()
    first, second = (scores_of(criterion, made, rounds=4) for _ in range(2))
    assert_same(first, second, 'scores')
    assert_same(made[0].state_dict(), before, 'model')
    assert not made[0].training and torch.equal(state, torch.get_rng_state())
    assert [len(score) for score in first.values()] == [group.size for group in made[2]]


def test_frozen_groups_are_told_apart() -> None:
    model, _, groups = small()
    for parameter in model.img_backbone[:3].parameters():
        parameter.requires_grad = False
    kept, left = trained_groups(model, groups)
    assert left == ['img_backbone.0'] and [group.name for group in kept] == [name for name in LAST if name not in left]


@pytest.mark.parametrize(('min_keep', 'expected'), [(2, [2, 2]), (0.75, [4, 3])])
def test_what_stays_at_least(min_keep: float, expected: list[int]) -> None:
    groups = [ChannelGroup('a', 5, ()), ChannelGroup('b', 4, ())]
    scores = {'a': torch.arange(5.0), 'b': torch.arange(4.0)}
    plan = plan_of('random', min_keep=min_keep)
    chosen = choose_channels(scores, groups, plan, 0.9, tolerance=1.0)
    assert [chosen.kept['a'], chosen.kept['b']] == expected


def test_errors() -> None:
    model, fusion, groups = small()
    with pytest.raises(ValueError, match='snip needs 9 batches, got 5'):
        scores_of('snip', (model, fusion, groups), eval_batches=9)
    with pytest.raises(ValueError, match=r"scope='per_layer': channels are ranked all together"):
        choose_channels({}, [], plan_of('random', scope='per_layer'), 0.5)
    alone = fusion_map(model, dict(camera=['img_backbone'], fusion=['pts_middle_encoder', 'fusion_layer', 'bbox_head']))
    with pytest.raises(ValueError, match='AlterMOMA masks modalities in turn, but SmallFusion has weights of none'):
        scores_of('altermoma', (model, alone, groups))
