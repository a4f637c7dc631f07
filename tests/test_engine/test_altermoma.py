"""AlterMOMA against stored scores of the equations, brute force, finite differences, identities; and its tidiness."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmprune3d.engine.altermoma import alter_moma_gradients
from mmprune3d.engine.gradients import mean_gradients
from mmprune3d.layers.preserved import preserved
from mmprune3d.pruning.altermoma import (
    AlterMOMAPlan,
    PerChannel,
    alter_eva,
    alter_moma_scores,
    contribution,
    redundancy,
)
from mmprune3d.pruning.channels import ChannelGroup, Member
from mmprune3d.pruning.saliency import snip
from mmprune3d.pruning.thresholds import keep_masks
from tests.reference import load, reference_files

reference = pytest.mark.parametrize('file', reference_files('altermoma', 'alter_eva_*.pt'))


class TwoBranches(nn.Module):
    """The network of the reference data."""

    def __init__(self, meta: dict, state: dict[str, torch.Tensor]) -> None:
        super().__init__()
        network = meta['network']

        def conv(name: str, stride: int) -> nn.Conv2d:
            out, channels, *_ = network['layers'][name]
            return nn.Conv2d(channels, out, network['kernel'], stride, network['padding'])

        for branch in ('camera', 'lidar'):
            first, second = network[f'{branch}_strides']
            layers = conv(f'{branch}.0', first), nn.ReLU(), conv(f'{branch}.2', second), nn.ReLU()
            setattr(self, branch, nn.Sequential(*layers))
        self.fusion_conv = conv('fusion_conv', 1)
        self.fusion_fc = nn.Linear(*reversed(network['layers']['fusion_fc']))
        self.double().load_state_dict(state)
        self.groups = {
            name: group
            for name, _ in self.named_parameters()
            for group, modules in meta['groups'].items()
            if name.rpartition('.')[0] in modules
        }

    def loss(self, batch, masked=None):
        camera, lidar = self.camera(batch['image']), self.lidar(batch['lidar'])
        camera, lidar = camera * (masked != 'camera'), lidar * (masked != 'lidar')
        return F.mse_loss(self.fusion_fc(self.fusion_conv(torch.cat((camera, lidar), 1)).flatten(1)), batch['target'])


def procedure(net, data, variant):
    inputs = data['inputs']
    return alter_moma_gradients(
        dict(net.named_parameters()),
        net,
        net.loss,
        inputs['eval_batches'],
        inputs['reactivation_batches'],
        net.groups,
        lambda parameters: torch.optim.SGD(parameters, lr=inputs['lr']),
        same_eval_batches=variant == 'same_data',
        on_stage=lambda what, masked: net.seen.append(
            (what, masked, {k: p.clone() for k, p in net.state_dict().items()})
        ),
    )


def assert_close(actual, expected, tolerance):
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, rtol=0, atol=tolerance)


def assert_masks(scores, expected):
    for percent, entry in expected.items():
        total, keep = entry['n_total'], entry['n_keep']
        sparsity = int(percent) / 100 if total * int(percent) % 100 == 0 else 1 - keep / total
        masks = keep_masks(scores, sparsity)
        assert sum(int(mask.sum()) for mask in masks.values()) == keep
        for name, mask in entry['mask'].items():
            assert torch.equal(masks[name], mask), (percent, name)


@reference
@pytest.mark.parametrize('variant', ['last_batch', 'same_data'])
def test_equals_the_reference(file, variant):
    data = load(file)
    net = TwoBranches(data['meta'], data['state_dict'])
    net.seen = []
    found = procedure(net, data, variant)

    gradients = data['outputs']['gradients']
    assert_close(found.unmasked.values, gradients['G0'], 1e-9)
    assert found.unmasked.loss == pytest.approx(data['outputs']['loss']['unmasked_theta0'], abs=1e-12)
    assert list(found.stages) == ['camera', 'lidar'] and not found.without_gradient
    for masked, stage in found.stages.items():
        stored = gradients[f'{masked}_masked']
        for values, expected in ((stage.before.values, stored['A']), (stage.after.values, stored[f'Z_{variant}'])):
            assert set(values) == {name for name in net.groups if net.groups[name] != masked}
            assert_close(values, {name: expected[name] for name in values}, 1e-9)
        losses = data['outputs']['loss'][f'{masked}_masked_reactivation_losses']
        assert list(stage.losses) == pytest.approx(losses, abs=1e-9)
    assert [(what, masked) for what, masked, _ in net.seen] == [
        ('original', None),
        ('reactivated', 'camera'),
        ('reactivated', 'lidar'),
    ]
    assert all(torch.equal(net.seen[0][2][name], value) for name, value in data['state_dict'].items())
    for _, masked, state in net.seen[1:]:
        assert_close(state, data['outputs']['theta_B'][f'{masked}_masked'], 1e-9)
        for name in data['state_dict']:
            assert torch.equal(state[name], data['state_dict'][name]) == (net.groups[name] == masked)

    weights = dict(net.named_parameters())
    for kind in ('weights', 'weights_and_biases'):
        expected = data['outputs'][variant][kind]
        only = PerWeightOf(expected['scores'])
        assert_close(contribution(weights, found.unmasked.values, only), expected['deci'], 1e-10)
        for masked, stage in found.stages.items():
            reri = redundancy(weights, stage.before.values, stage.after.values, only)
            for key, values in expected['reri'].items():
                if key.endswith(f'when_{masked}_masked'):
                    assert_close(reri, values, 1e-10)
        scores = alter_moma_scores(weights, found, net.groups, only)
        assert scores.keys() == expected['scores'].keys()
        assert_close(scores, expected['scores'], 1e-10)
        assert_masks(scores, expected['keep_masks'])

    expected = data['outputs'][variant]['structured_output_channels']
    channels = [
        ChannelGroup(name, len(value), (Member(f'{name}.weight', 0, 'out'),))
        for name, value in expected['scores'].items()
    ]
    groups = {name: net.groups[f'{name}.weight'] for name in expected['scores']}
    scores = alter_moma_scores(weights, found, groups, PerChannel(channels))
    assert_close(contribution(weights, found.unmasked.values, PerChannel(channels)), expected['deci'], 1e-10)
    assert_close(scores, expected['scores'], 1e-10)
    assert_masks(scores, expected['keep_masks'])
    for name, value in net.state_dict().items():
        assert torch.equal(value, data['state_dict'][name])


class PerWeightOf:
    """Single weights of some parameters only."""

    def __init__(self, names) -> None:
        self.names = names

    def __call__(self, terms):
        return {name: term.abs() for name, term in terms.items() if name in self.names}


class Sensors(nn.Module):
    """Any number of sensors, each with a stream of linear, batch norm and dropout, and a fused head."""

    def __init__(self, modalities=('camera', 'lidar', 'radar'), seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.modalities = modalities
        for name in modalities:
            layers = nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Dropout(0.3), nn.Linear(5, 4)
            setattr(self, name, nn.Sequential(*layers))
        self.head = nn.Sequential(nn.Linear(4 * len(modalities), 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 2))
        self.register_buffer('calls', torch.zeros(1, dtype=torch.int64), persistent=False)
        self.drawn: list[tuple] = []

    @property
    def groups(self):
        first = {name: name.partition('.')[0] for name, _ in self.named_parameters()}
        return {name: 'fusion' if group == 'head' else group for name, group in first.items()}

    def loss(self, batch, masked=None):
        self.calls = self.calls + 1  # a new tensor under the old name, as some modules do
        self.drawn.append((float(torch.rand(())), random.random(), float(np.random.rand())))
        streams = [
            torch.zeros(len(batch[0]), 4) if name == masked else getattr(self, name)(batch[0][:, 3 * i : 3 * i + 3])
            for i, name in enumerate(self.modalities)
        ]
        return F.mse_loss(self.head(torch.cat(streams, 1)), batch[1])


def batches(count: int, net: Sensors, seed: int = 1) -> list:
    generator = torch.Generator().manual_seed(seed)
    size = 3 * len(net.modalities)
    return [(torch.randn(8, size, generator=generator), torch.randn(8, 2, generator=generator)) for _ in range(count)]


def run(net, reactivation=4, parameters=None, loss=None, **settings):
    plan = AlterMOMAPlan(sparsity=0.5, optimizer=settings.pop('optimizer', 'adamw'), lr=0.05)
    return alter_moma_gradients(
        dict(net.named_parameters()) if parameters is None else parameters,
        net,
        loss or net.loss,
        settings.pop('eval_batches', batches(2, net)),
        settings.pop('reactivation_batches', batches(reactivation, net, 2)),
        settings.pop('groups', net.groups),
        settings.pop('make_optimizer', plan.make_optimizer),
        **settings,
    )


def sums_per_group(scores, groups):
    return {
        group: float(sum(scores[name].double().sum() for name in scores if groups[name] == group))
        for group in dict.fromkeys(groups.values())
    }


@pytest.mark.parametrize('modalities', [('camera', 'lidar'), ('camera', 'lidar', 'radar'), ('a', 'b', 'c', 'd')])
def test_scores_of_each_group_sum_to_alpha_minus_beta(modalities):
    net = Sensors(modalities).double()
    net.loss = lambda batch, masked, loss=net.loss: loss([part.double() for part in batch], masked)
    found, weights = run(net), dict(net.named_parameters())
    for alpha, beta in ((1.0, 1.0), (1.0, 0.25), (0.5, 2.0)):
        sums = sums_per_group(alter_moma_scores(weights, found, net.groups, alpha=alpha, beta=beta), net.groups)
        assert set(sums) == {*modalities, 'fusion'}
        for value in sums.values():
            assert value == pytest.approx(alpha - beta, abs=1e-12)


def test_without_redundancy_and_groups_the_mask_is_that_of_snip():
    net = Sensors()
    net.eval()
    weights, data = dict(net.named_parameters()), batches(3, net)
    gradients = mean_gradients(weights, net.loss, data).values
    one = dict.fromkeys(weights, 'all')
    scores, expected = alter_eva(contribution(weights, gradients), {}, one, beta=0), snip(weights, gradients)
    for sparsity in (0.1, 0.5, 0.9):
        masks, others = keep_masks(scores, sparsity), keep_masks(expected, sparsity)
        assert all(torch.equal(masks[name], others[name]) for name in weights)
    grouped = keep_masks(alter_eva(contribution(weights, gradients), {}, net.groups, beta=0), 0.5)
    assert any(not torch.equal(grouped[name], keep_masks(expected, 0.5)[name]) for name in weights)


def ranks(values):
    return values.argsort().argsort().double()


def test_contribution_ranks_as_removing_each_weight():
    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(12, 24), nn.Tanh(), nn.Linear(24, 3)).double()
    x, y = torch.randn(64, 12).double(), 3 * torch.randn(64, 3).double()
    weights = {name: p for name, p in net.named_parameters() if p.dim() > 1}
    loss = lambda _: F.mse_loss(net(x), y)  # noqa: E731
    deci = contribution(weights, mean_gradients(weights, loss, [None]).values)
    base, removed = float(loss(None).detach()), []
    for weight in weights.values():
        flat = weight.data.view(-1)
        for i in range(len(flat)):
            kept, flat[i] = float(flat[i]), 0.0
            removed.append(abs(float(loss(None).detach()) - base))
            flat[i] = kept
    first = ranks(torch.cat([score.flatten() for score in deci.values()]))
    spearman = torch.corrcoef(torch.stack((first, ranks(torch.tensor(removed)))))[0, 1]
    assert spearman > 0.9


def test_gradients_are_those_of_the_mean_loss():
    """Central differences of the loss over several batches, with a modality masked, and after reactivation."""
    net = Sensors(('camera', 'lidar')).double().eval()
    data = [[part.double() for part in batch] for batch in batches(2, net)]
    trained = [[part.double() for part in batch] for batch in batches(3, net, 2)]
    states = {}
    found = run(
        net,
        eval_batches=data,
        reactivation_batches=trained,
        on_stage=lambda what, masked: states.update({masked: {n: v.clone() for n, v in net.state_dict().items()}}),
    )

    def difference(masked, name, index):
        flat, eps, values = dict(net.named_parameters())[name].data.view(-1), 1e-6, []
        for sign in (1, -1):
            flat[index] += sign * eps
            values.append(float(sum(net.loss(batch, masked) for batch in data).detach()) / len(data))
            flat[index] -= sign * eps
        return (values[0] - values[1]) / (2 * eps)

    def check(values, masked):
        for name in ('camera.0.weight', 'camera.4.weight', 'lidar.0.weight', 'head.0.weight', 'head.3.bias'):
            if name in values:
                for index in (0, values[name].numel() - 1):
                    assert values[name].flatten()[index] == pytest.approx(difference(masked, name, index), abs=1e-7)

    check(found.unmasked.values, None)
    for masked, stage in found.stages.items():
        check(stage.before.values, masked)
        with preserved(net):
            net.load_state_dict(states[masked])
            check(stage.after.values, masked)


def everything(net):
    tensors = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    values = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    flags = {name: module.training for name, module in net.named_modules()}
    grads = {name: None if p.grad is None else p.grad.clone() for name, p in net.named_parameters()}
    return tensors, values, flags, {name: p.requires_grad for name, p in net.named_parameters()}, grads


def assert_untouched(net, before):
    tensors, values, flags, wanted, grads = everything(net)
    assert list(tensors) == list(before[0]) and all(tensors[name] is before[0][name] for name in tensors)
    assert all(torch.equal(values[name], before[1][name]) for name in values)
    assert (flags, wanted) == (before[2], before[3])
    assert all((a is None and b is None) or torch.equal(a, b) for a, b in zip(grads.values(), before[4].values()))


def prepared():
    """In train mode but for one stream, one parameter frozen, with statistics and a gradient."""
    net = Sensors()
    net.loss(batches(1, net)[0]).backward()
    net.radar.eval()
    net.lidar[0].bias.requires_grad_(False)
    net.drawn.clear()
    return net


@pytest.mark.parametrize('failing', [None, 1, 4, 7])
def test_everything_is_put_back(failing):
    net = prepared()
    before, state, python, numbers = everything(net), torch.get_rng_state(), random.getstate(), np.random.get_state()[1]

    def loss(batch, masked):
        if len(net.drawn) + 1 == failing:
            raise RuntimeError('failed')
        if masked == 'camera':
            net.eval()  # a loss may do such things
        return net.loss(batch, masked)

    if failing is None:
        run(net, loss=loss)
        assert len(net.drawn) == 2 + 3 * (2 + 4 + 2)
    else:
        with pytest.raises(RuntimeError, match='failed'):
            run(net, loss=loss)
    assert_untouched(net, before)
    assert torch.equal(torch.get_rng_state(), state) and random.getstate() == python
    assert np.array_equal(np.random.get_state()[1], numbers)


def test_buffers_differ_while_it_runs():
    net, seen = prepared(), {}

    def note(what, masked):
        seen[masked] = {name: value.clone() for name, value in net.named_buffers()}

    run(net, on_stage=note)
    name = 'head.1.running_mean'
    assert not torch.equal(seen['camera'][name], net.get_buffer(name))
    assert int(seen['camera']['calls']) == 1 + 2 + 4 + 2  # no more than one stage's passes
    masked_stream = 'camera.1.running_mean'
    assert torch.equal(seen['camera'][masked_stream], net.get_buffer(masked_stream))


def test_gradients_before_and_after_start_from_the_same_random_numbers():
    net = prepared()
    run(net, reactivation=3)
    drawn = net.drawn
    stages = [drawn[2 + 7 * i : 9 + 7 * i] for i in range(3)]
    for stage in stages:
        assert stage[:2] == stage[5:]
        assert stage[0] == drawn[0]
        assert len(set(stage[:5])) == 5


def test_no_reactivation_means_no_redundancy():
    net = prepared()
    found = run(net, reactivation=0)
    for stage in found.stages.values():
        assert all(torch.equal(stage.before.values[name], stage.after.values[name]) for name in stage.before.values)
    scores = alter_moma_scores(dict(net.named_parameters()), found, net.groups)
    assert all(score.isfinite().all() for score in scores.values())
    assert sums_per_group(scores, net.groups)['camera'] == pytest.approx(1, abs=1e-6)


def test_the_masked_modality_is_not_given_to_the_optimizer():
    net, given = prepared(), []

    def make_optimizer(parameters):
        given.append([name for name, own in net.named_parameters() if any(own is p for p in parameters)])
        return torch.optim.AdamW(parameters, lr=0.1, weight_decay=1.0)

    states = {}
    run(
        net,
        make_optimizer=make_optimizer,
        on_stage=lambda what, m: states.update({m: net.state_dict()[f'{m}.0.weight'].clone() if m else None}),
    )
    for masked, names in zip(('camera', 'lidar', 'radar'), given):
        assert set(names) == {n for n, g in net.groups.items() if g != masked and n != 'lidar.0.bias'}
        assert torch.equal(states[masked], net.state_dict()[f'{masked}.0.weight'])


def test_parameters_without_gradient_are_reported_and_score_zero():
    net = prepared()
    net.unused = nn.Linear(2, 2)
    groups = net.groups | {'unused.weight': 'fusion', 'unused.bias': 'fusion'}
    found = run(net, groups=groups)
    frozen, unused = ('lidar.0.bias',), ('unused.weight', 'unused.bias')
    assert found.without_gradient == {
        'unmasked': frozen + unused,
        'camera masked, before': frozen + unused,
        'camera masked, after': frozen + unused,
        'lidar masked, before': unused,
        'lidar masked, after': unused,
        'radar masked, before': frozen + unused,
        'radar masked, after': frozen + unused,
    }
    scores = alter_moma_scores(dict(net.named_parameters()), found, groups)
    assert all(not scores[name].any() for name in frozen + unused)


def test_not_finite_gradients_are_named():
    net = prepared()

    def loss(batch, masked):
        value = net.loss(batch, masked)
        return value + net.head[3].bias[0] * (torch.nan if masked == 'lidar' else 1.0)

    before = everything(net)
    with pytest.raises(FloatingPointError, match=r'lidar masked: .* 1 of .* not finite: head.3.bias$'):
        run(net, loss=loss)
    assert_untouched(net, before)
    with pytest.raises(FloatingPointError, match=r'lidar masked, reactivation: .* not finite: head.3.bias$'):
        run(net, loss=loss, parameters={'head.0.weight': net.head[0].weight, 'lidar.0.weight': net.lidar[0].weight})


class Ranks:
    """Processes, played by threads: averages what all of them bring."""

    def __init__(self, count: int) -> None:
        self.barrier, self.brought = threading.Barrier(count, timeout=30), {}

    def average(self, rank: int, tensors: list[torch.Tensor]) -> None:
        self.brought[rank] = [tensor.clone() for tensor in tensors]
        self.barrier.wait()
        for tensor, *parts in zip(tensors, *(self.brought[i] for i in sorted(self.brought)), strict=True):
            tensor.copy_(sum(parts) / len(parts))
        self.barrier.wait()

    def run(self, work: Callable) -> list:
        with ThreadPoolExecutor(self.barrier.parties) as pool:
            jobs = [pool.submit(work, rank, partial(self.average, rank)) for rank in range(self.barrier.parties)]
            return [job.result() for job in jobs]


@pytest.mark.parametrize(
    'make_optimizer',
    [lambda p: torch.optim.SGD(p, lr=0.05), lambda p: torch.optim.AdamW(p, lr=0.05, weight_decay=0.5)],
    ids=['sgd', 'adamw'],
)
def test_two_processes_are_one_with_all_batches(make_optimizer):
    """Also for a parameter that only one of the processes uses, in every step or in none."""

    def second_loss(net, batch, masked):
        return net.loss(batch, masked) + (net.only_second * batch[0][0, 0]).square().sum()

    def fresh():
        net = Sensors(('camera', 'lidar')).eval()
        net.only_second, net.unused = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
        return net, net.groups | {'only_second': 'camera', 'unused': 'fusion'}

    def work(rank, average):
        net, loss = nets[rank], second_loss if rank else lambda net, batch, masked: net.loss(batch, masked)
        found = run(
            net,
            loss=partial(loss, net),
            groups=groups,
            make_optimizer=make_optimizer,
            reduce_gradients=average,
            on_stage=lambda *_: unused.append(float(net.unused.detach())),
            eval_batches=data[rank],
            reactivation_batches=trained[rank],
        )
        return found, alter_moma_scores(dict(net.named_parameters()), found, groups)

    def both(batch, masked):
        return (net.loss(batch[0], masked) + second_loss(net, batch[1], masked)) / 2

    nets, unused = [fresh()[0] for _ in range(2)], []
    net, groups = fresh()
    data, trained = ([batches(2, net, seed), batches(2, net, seed + 1)] for seed in (1, 3))
    (first, scores), (second, others) = Ranks(2).run(work)
    assert all(torch.equal(scores[name], others[name]) for name in scores)
    assert unused == [1.0] * 6  # no gradient in any process: not even decayed
    alone = run(
        net,
        loss=both,
        groups=groups,
        make_optimizer=make_optimizer,
        eval_batches=list(zip(*data)),
        reactivation_batches=list(zip(*trained)),
    )
    assert first.without_gradient == second.without_gradient == alone.without_gradient
    assert alone.without_gradient['unmasked'] == ('unused',)
    for masked, stage in alone.stages.items():
        for name in stage.before.values:
            torch.testing.assert_close(first.stages[masked].before.values[name], stage.before.values[name])
            torch.testing.assert_close(
                first.stages[masked].after.values[name], stage.after.values[name], rtol=1e-4, atol=1e-5
            )


def test_reactivation_steps_use_averaged_gradients():
    net, calls = Sensors(('camera', 'lidar')).eval(), []

    def halve(tensors):
        calls.append(len(tensors))
        for tensor in tensors:
            tensor.mul_(0.5)

    states = {}
    note = lambda what, masked: states.update({masked: net.head[0].weight.detach().clone()})  # noqa: E731
    run(net, reduce_gradients=halve, optimizer='sgd', reactivation=1, on_stage=note)
    half = net.head[0].weight - states['camera']
    run(net, optimizer='sgd', reactivation=1, on_stage=note)
    torch.testing.assert_close(2 * half, net.head[0].weight - states['camera'])
    assert len(calls) == 1 + 2 * 3


@pytest.mark.parametrize(
    'settings, message',
    [
        (dict(eval_batches=[]), 'no modality masked: there is no batch'),
        (dict(eval_batches=iter([])), 'not iterators'),
        (dict(reactivation_batches=iter([])), 'not iterators'),
        (dict(reactivation_batches=[], same_eval_batches=False), 'there is no D_B'),
        (
            dict(groups={'camera.0.weight': 'camera'}),
            r'no group \(camera\) is given for camera.0.bias, .* and \d+ more',
        ),
        (dict(modalities=['camera']), 'two or more different groups must be masked; there are camera, '),
        (dict(modalities=['camera', 'sonar']), "modalities 'camera', 'sonar'|modalities .*'sonar'"),
        (dict(parameters={'x': nn.Parameter(torch.zeros(1))}), 'x to score: not parameters of the model'),
        (dict(parameters={}), 'nothing to score'),
    ],
)
def test_wrong_arguments(settings, message):
    net = Sensors()
    before = everything(net)
    with pytest.raises(ValueError, match=message):
        run(net, **settings)
    assert_untouched(net, before)


def test_modalities_by_name():
    net = Sensors()
    assert list(run(net, modalities=['radar', 'camera']).stages) == ['radar', 'camera']
