"""Scores of the official implementations, and what they mean: finite differences, seeds, schedules."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from mmprune3d.engine.flow_scores import synflow
from mmprune3d.engine.gradients import mean_gradients
from mmprune3d.engine.prospr import prospr
from mmprune3d.pruning.saliency import keep_ratio, magnitude, random_scores, snip
from mmprune3d.pruning.thresholds import keep_masks
from tests.reference import load, reference_files

reference = pytest.mark.parametrize('file', reference_files('prune', 'saliency_*.pt'))


class Net(nn.Module):
    """The network of the reference data: conv, [norm], relu, conv, [norm], relu, mean, linear."""

    def __init__(self, state: dict[str, torch.Tensor]) -> None:
        super().__init__()
        (c1, c0, *_), (c2, *_), (classes, _) = (state[f'{name}.weight'].shape for name in ('c1', 'c2', 'fc'))
        self.c1 = nn.Conv2d(c0, c1, 3, padding=1, bias='c1.bias' in state)
        self.b1 = nn.BatchNorm2d(c1) if 'b1.weight' in state else nn.Identity()
        self.c2 = nn.Conv2d(c1, c2, 3, 2, padding=1, bias='c2.bias' in state)
        self.b2 = nn.BatchNorm2d(c2) if 'b2.weight' in state else nn.Identity()
        self.fc = nn.Linear(c2, classes)
        self.load_state_dict(state)

    def forward(self, x):
        return self.fc(F.relu(self.b2(self.c2(F.relu(self.b1(self.c1(x)))))).mean((2, 3)))

    @property
    def scored(self):
        return {name: p for name, p in self.named_parameters() if p.dim() > 1}

    def loss(self, batch):
        return F.cross_entropy(self(batch['x']), batch['y'])


def as_published(scores, keep):
    return keep_masks(scores, 1.0 - keep, rounding='down', ties='drop')


def assert_masks(masks, expected):
    assert masks.keys() == expected.keys()
    for name in expected:
        assert torch.equal(masks[name], expected[name]), name


def assert_scores(scores, expected, tolerance=1e-5):
    assert scores.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(scores[name], expected[name], rtol=tolerance, atol=tolerance * expected[name].max())


def check(data, name, scores):
    expected = data['outputs'][name]
    assert_scores(scores, expected['scores'])
    assert_masks(as_published(scores, expected['keep_ratio']), expected['mask'])


@reference
def test_magnitude(file):
    data = load(file)
    check(data, 'Mag', magnitude(Net(data['state_dict']).scored))


@reference
def test_snip(file):
    data = load(file)
    net = Net(data['state_dict']).eval()
    check(data, 'SNIP', snip(net.scored, mean_gradients(net.scored, net.loss, data['inputs']).values))


def flow_of(net, image):
    state = {name: value.abs() for name, value in net.state_dict().items()}
    return lambda weights: functional_call(net, {**state, **weights}, (torch.ones_like(image[:1]),)).sum()


@reference
def test_synflow(file):
    data = load(file)
    net = Net(data['state_dict']).eval()
    flow = flow_of(net, data['inputs'][0]['x'])
    check(data, 'SynFlow', synflow(net.scored, flow))
    expected = data['outputs']['SynFlow_iterative10']
    keep = expected['keep_ratio']
    scores = synflow(net.scored, flow, 1 - keep, 10, partial(keep_masks, rounding='down', ties='drop'))
    assert_masks(as_published(scores, keep), expected['mask'])


@reference
@pytest.mark.parametrize('order', ['first', 'full'])
@pytest.mark.parametrize('new_data', [True, False])
def test_prospr(file, order, new_data):
    data = load(file)
    net = Net(data['state_dict']).train()
    key = f'{"first_order" if order == "first" else "full"}_newdata{int(new_data)}'
    scores = prospr(net.scored, net, net.loss, data['inputs'], 2, 0.1, 0.9, new_data, order)
    assert_scores(scores, data['outputs']['ProsPr'][key])
    for name, value in net.state_dict().items():
        assert torch.equal(value, data['state_dict'][name])
    assert all(p.grad is None for p in net.parameters())


def small_net(seed: int = 0) -> tuple[nn.Sequential, list]:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    batches = [(torch.randn(5, 3).double(), torch.randn(5, 2).double()) for _ in range(4)]
    return net, batches


def test_full_prospr_is_the_derivative_for_the_masks():
    """Central differences of the loss after three plain SGD steps that start from masked weights."""
    net, batches = small_net()
    scored = {name: p for name, p in net.named_parameters() if p.dim() > 1}
    loss = lambda batch: F.mse_loss(net(batch[0]), batch[1])  # noqa: E731
    scores = prospr(scored, net, loss, batches, 3, 0.3, order='full')
    initial = {name: p.detach().clone() for name, p in net.named_parameters()}

    def trained_loss(name, index, mask):
        weights = {key: value.clone().requires_grad_() for key, value in initial.items()}
        weights[name].data.view(-1)[index] *= mask
        for x, y in batches[:3]:
            grads = torch.autograd.grad(F.mse_loss(functional_call(net, weights, (x,)), y), list(weights.values()))
            weights = {k: (w - 0.3 * g).detach().requires_grad_() for (k, w), g in zip(weights.items(), grads)}
        return float(F.mse_loss(functional_call(net, weights, (batches[3][0],)), batches[3][1]).detach())

    for name, score in scores.items():
        for index, value in enumerate(score.flatten().tolist()):
            difference = trained_loss(name, index, 1 + 1e-5) - trained_loss(name, index, 1 - 1e-5)
            assert value == pytest.approx(abs(difference) / 2e-5, abs=1e-8)
    first = prospr(scored, net, loss, batches, 3, 0.3)
    assert any(not torch.allclose(first[name], scores[name], rtol=1e-2) for name in scores)
    same = prospr(scored, net, loss, batches, 3, 1e-9)
    assert_scores(same, prospr(scored, net, loss, batches, 3, 1e-9, order='full'), 1e-7)


def test_prospr_without_steps_ranks_as_snip():
    net, batches = small_net(1)
    scored = dict(net.named_parameters())
    loss = lambda batch: F.mse_loss(net(batch[0]), batch[1])  # noqa: E731
    scores = prospr(scored, net, loss, batches[:1], steps=0)
    total = sum(score.sum() for score in scores.values())
    assert_scores(
        {name: score / total for name, score in scores.items()},
        snip(scored, mean_gradients(scored, loss, batches[:1]).values),
        1e-12,
    )


def test_wrong_settings_of_prospr():
    net, batches = small_net()
    loss = lambda batch: net(batch[0]).sum()  # noqa: E731
    with pytest.raises(ValueError, match='4 batches, of which 5 are needed'):
        prospr(dict(net.named_parameters()), net, loss, batches, steps=4)
    with pytest.raises(ValueError, match=r"order='second' .valid are first, full"):
        prospr(dict(net.named_parameters()), net, loss, batches, order='second')
    with pytest.raises(ValueError, match='cannot average over processes'):
        prospr(dict(net.named_parameters()), net, loss, batches, order='full', reduce_gradients=lambda tensors: None)


def test_synflow_conserves_the_flow_in_every_layer_and_round():
    """Sums of scores of a bias-free chain are R in every layer, and no layer collapses at 99 % (Tanaka et al.)."""
    torch.manual_seed(0)
    weights = {f'{i}': torch.randn(20, 20).double() for i in range(6)}
    flows = []

    def flow(weights):
        x = torch.ones(1, 20).double()
        for weight in weights.values():
            x = F.relu(F.linear(x, weight))
        flows.append(float(x.sum().detach()))
        return x.sum()

    scores = synflow(weights, flow)
    for score in scores.values():
        assert float(score.sum()) == pytest.approx(flows[-1], rel=1e-12)
    scores = synflow(weights, flow, 0.99, 30)
    assert len(flows) == 31
    for score in scores.values():
        assert float(score[score.isfinite()].sum()) == pytest.approx(flows[-1], rel=1e-12)
    masks = keep_masks(scores, 0.99)
    assert all(mask.any() for mask in masks.values()) and sum(int(mask.sum()) for mask in masks.values()) == 24
    assert not any(weight.requires_grad for weight in weights.values())


def test_what_went_in_an_earlier_round_does_not_come_back():
    """All four `a` go first; then everything behind them scores 0 as well, more than the next round removes."""
    weights = {'y': torch.ones(7), 'a': torch.full((4,), 1 / 4), **{name: torch.full((3,), 1 / 3) for name in 'vwz'}}

    def flow(weights):
        return weights['y'].sum() + torch.stack([weights[name].sum() for name in 'avwz']).prod()

    scores = synflow(weights, flow, 1 - 0.8**3, 3)
    assert scores['a'].tolist() == [-torch.inf] * 4
    assert scores['y'].tolist() == [1] * 7
    assert sorted(torch.cat([scores[name] for name in 'vwz']).tolist()) == [-torch.inf] * 3 + [0] * 6


def test_no_flow_and_too_much():
    with pytest.raises(RuntimeError, match=r'the flow is 0\.0: nothing reaches the outputs'):
        synflow({'a': torch.zeros(2)}, lambda weights: weights['a'].sum())
    with pytest.raises(FloatingPointError, match='the flow is inf; score in float64'):
        synflow({'a': torch.full((2,), 1e38)}, lambda weights: weights['a'].sum() * 10)


def test_unused_weights_have_no_flow():
    scores = synflow({'a': torch.ones(2), 'b': torch.ones(3)}, lambda weights: weights['a'].sum())
    assert scores['b'].tolist() == [0, 0, 0] and scores['a'].tolist() == [1, 1]


def test_random_scores_depend_on_seed_and_names_only():
    weights = {'b': (50,), 'a': (3, 4)}
    scores, turned = random_scores(weights, 5), random_scores(dict(reversed(weights.items())), 5)
    assert list(scores) == ['b', 'a']
    assert all(torch.equal(scores[name], turned[name]) for name in weights)
    assert not torch.equal(scores['b'], random_scores(weights, 6)['b'])
    torch.manual_seed(0)
    before = torch.get_rng_state()
    random_scores(weights)
    assert torch.equal(before, torch.get_rng_state())


def test_schedule_of_imp():
    assert [round(keep_ratio(0.8, done, 7), 3) for done in range(8)] == [
        1.0,
        0.795,
        0.631,
        0.502,
        0.399,
        0.317,
        0.252,
        0.2,
    ]
    assert keep_ratio(0.3, 1, 1) == pytest.approx(0.7)
    for done, rounds in ((3, 2), (-1, 2), (0, 0)):
        with pytest.raises(ValueError, match='valid are 0 to the number of rounds'):
            keep_ratio(0.5, done, rounds)
