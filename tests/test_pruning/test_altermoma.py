"""Scores of AlterMOMA by hand, from indicators that are given; the plan."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mmprune3d.pruning.altermoma import AlterMOMAPlan, PerChannel, alter_eva
from mmprune3d.pruning.channels import ChannelGroup, Member


def test_three_modalities_by_hand():
    """A modality takes part where another one is masked, beta / 2 each; the fusion in all three stages, beta / 3."""
    groups = {'c': 'camera', 'l': 'lidar', 'r': 'radar', 'f': 'fusion'}
    deci = {name: torch.tensor([1.0, 3.0]) for name in groups}
    reri = {
        masked: {name: torch.tensor([i + 1.0, 1.0]) for i, name in enumerate(groups) if groups[name] != masked}
        for masked in ('camera', 'lidar', 'radar')
    }
    scores = alter_eva(deci, reri, groups, alpha=2, beta=6)
    torch.testing.assert_close(scores['c'], torch.tensor([2 / 4 - 3 * (1 / 2 + 1 / 2), 6 / 4 - 3 * (1 / 2 + 1 / 2)]))
    torch.testing.assert_close(scores['l'], torch.tensor([2 / 4 - 6 * 2 / 3, 6 / 4 - 6 * 1 / 3]))
    torch.testing.assert_close(scores['f'], torch.tensor([2 / 4 - 6 * 4 / 5, 6 / 4 - 6 * 1 / 5]))


def test_zero_by_zero_and_dead_weights():
    deci = {'a': torch.tensor([0.0, 2.0, 2.0]), 'b': torch.zeros(2)}
    reri = {'x': {'a': torch.tensor([1.0, 1.0, 2.0]), 'b': torch.zeros(2)}}
    groups = {'a': 'g', 'b': 'h'}
    scores = alter_eva(deci, reri, groups)
    assert scores['a'].tolist() == [-0.25, 0.25, 0.0] and scores['b'].tolist() == [0, 0]
    scores = alter_eva(deci, reri, groups, dead_lowest=True)
    assert scores['a'].tolist() == [-torch.inf, 0.25, 0.0] and scores['b'].tolist() == [-torch.inf] * 2
    with pytest.raises(ValueError, match=r"group 'x': beta=1.0, but no other modality was masked: \['x'\]"):
        alter_eva({'a': torch.ones(1)}, {'x': {}}, {'a': 'x'})
    with pytest.raises(ValueError, match=r'no group \(g\) is given for b'):
        alter_eva(deci, reri, {'a': 'g'})


@pytest.mark.parametrize('reduce', ['dot', 'abs_sum', 'abs_mean'])
def test_coupled_channels(reduce):
    """Three channels made by a conv, scaled by a norm, and at positions 2..4 of a second tensor's rows."""
    generator = torch.Generator().manual_seed(0)
    terms = {
        'conv': torch.randn(3, 4, 2, generator=generator),
        'norm': torch.randn(3, generator=generator),
        'other': torch.randn(7, 2, generator=generator),
        'reader': torch.randn(5, 3, generator=generator),
    }
    members = (
        Member('conv', 0, 'out'),
        Member('norm', 0, 'through'),
        Member('other', 0, 'out', offset=2),
        Member('reader', 1, 'in'),
    )
    found = PerChannel([ChannelGroup('g', 3, members), ChannelGroup('gone', 3, (Member('x', 0, 'out'),))], reduce)(
        terms
    )
    assert list(found) == ['g']
    for channel in range(3):
        parts = terms['conv'][channel].flatten(), terms['norm'][channel : channel + 1], terms['other'][channel + 2]
        entries = torch.cat(parts).double()
        expected = {'dot': entries.sum().abs(), 'abs_sum': entries.abs().sum(), 'abs_mean': entries.abs().mean()}[
            reduce
        ]
        torch.testing.assert_close(found['g'][channel], expected)


def test_plans():
    plan = AlterMOMAPlan.parse('sparsity=0.8')
    assert plan.target == ('sparsity', 0.8) and plan.mode == 'unstructured'
    assert (plan.alpha, plan.beta, plan.lr, plan.reactivation_steps, plan.rounds) == (1, 1, 1e-4, 100, 1)
    assert (plan.min_keep, plan.dead_lowest, plan.same_eval_batches) == (0, False, True)
    plan = AlterMOMAPlan.parse('flops=0.5')
    assert plan.target == ('flops', 0.5) and (plan.mode, plan.min_keep, plan.dead_lowest) == ('channels', 1, True)
    assert AlterMOMAPlan.parse('sparsity=0.3,mode=channels').target == ('sparsity', 0.3)
    assert AlterMOMAPlan.parse('sparsity=0.8,criterion=prospr').reactivation_steps == 3
    assert AlterMOMAPlan.parse('sparsity=0.8,criterion=synflow').rounds == 100
    text = (
        'params=0.4,beta=0.5,same_eval_batches=false,protected=bbox_head+view_transform.depthnet,lr=0.001,min_keep=0.1'
    )
    plan = AlterMOMAPlan.parse(text)
    assert plan.protected == ('bbox_head', 'view_transform.depthnet') and plan.same_eval_batches is False
    assert AlterMOMAPlan.from_dict(plan.to_dict()) == plan
    assert AlterMOMAPlan.parse('sparsity=0.8,protected=bbox_head').protected == ('bbox_head',)
    parameters = [nn.Parameter(torch.zeros(1))]
    optimizer = plan.make_optimizer(parameters)
    assert isinstance(optimizer, torch.optim.AdamW)
    assert (optimizer.defaults['lr'], optimizer.defaults['weight_decay']) == (0.001, 0)
    assert isinstance(AlterMOMAPlan(sparsity=0.1, optimizer='sgd').make_optimizer(parameters), torch.optim.SGD)


@pytest.mark.parametrize(
    'settings, message',
    [
        (dict(), 'give exactly one of sparsity, flops, params, how much is removed .example: sparsity=0.8.$'),
        (dict(sparsity=0.8, flops=0.5), 'not sparsity and flops'),
        (dict(sparsity=1), 'Weight pruning: sparsity=1 must be a share to remove, from 0 to below 1'),
        (dict(sparsity='much'), "sparsity='much' must be a share"),
        (dict(flops=0.5, mode='unstructured'), "flops=0.5 needs mode='channels'"),
        (dict(sparsity=0.5, mode='rows'), 'valid are unstructured, channels'),
        (dict(sparsity=0.5, criterion='imp'), 'valid are altermoma, prospr, snip, synflow, magnitude, random'),
        (dict(sparsity=0.5, scope='local'), 'valid are global, per_group, per_layer'),
        (dict(sparsity=0.5, reduce='max'), 'valid are dot, abs_sum, abs_mean'),
        (dict(sparsity=0.5, optimizer='lbfgs'), 'valid are adamw, sgd'),
        (dict(sparsity=0.5, eval_batches=0), 'eval_batches=0 must be a whole number, 1 or more'),
        (dict(sparsity=0.5, alpha=-1), 'alpha=-1 must be a number, 0 or more'),
        (dict(sparsity=0.5, lr='1e'), "lr='1e' must be a number"),
        (dict(sparsity=0.5, same_eval_batches='maybe'), "same_eval_batches='maybe'; valid are true, false"),
        (dict(sparsity=0.5, reactivation_steps=0, same_eval_batches=False), 'leaves no batch'),
        (dict(sparsity=0.5, gamma=1), 'unknown setting gamma; valid are sparsity, flops'),
    ],
)
def test_wrong_plans(settings, message):
    with pytest.raises(ValueError, match=message):
        AlterMOMAPlan.from_dict(settings)
