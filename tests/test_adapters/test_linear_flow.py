"""Flow is conserved from layer to layer in all kinds of networks, and the networks are afterwards what they were."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmprune3d.adapters.linear_flow import flow_through, linear_flow
from mmprune3d.engine.flow_scores import synflow


class Norms(nn.Module):
    """A chain of convolutions with all kinds of norms and activations."""

    def __init__(self, bias: bool = False) -> None:
        super().__init__()
        norms = nn.BatchNorm2d(6), nn.GroupNorm(2, 6), nn.InstanceNorm2d(6, affine=True), nn.BatchNorm2d(6)
        norms[3].track_running_stats = False
        acts = nn.ReLU(), nn.GELU(), nn.SiLU(), nn.Sigmoid()
        layers = []
        for i, (norm, act) in enumerate(zip(norms, acts)):
            layers += [nn.Conv2d(6 if i else 3, 6, 3, padding=1, bias=bias), norm, act]
        self.layers = nn.Sequential(*layers, nn.Dropout(0.5), nn.MaxPool2d(2), nn.Conv2d(6, 2, 1, bias=bias))

    def forward(self, x):
        return torch.tanh(self.layers(x)).sum()


class Attention(nn.Module):
    """Tokens through layer norms, both kinds of attention layers and a gate by softmax, without residuals."""

    def __init__(self, bias: bool = False) -> None:
        super().__init__()
        self.embed, self.norm = nn.Linear(3, 8, bias=bias), nn.LayerNorm(8)
        self.joint = nn.MultiheadAttention(8, 2, bias=bias, batch_first=True)
        self.apart = nn.MultiheadAttention(8, 2, bias=bias, kdim=8, vdim=5)
        self.to_values = nn.Linear(8, 5, bias=bias)
        self.window = nn.Linear(8, 24, bias=bias)
        self.out = nn.Linear(8, 4, bias=bias)

    def forward(self, x):
        x = self.norm(F.gelu(self.embed(x)))
        x = self.norm(self.joint(x, x, x, need_weights=False)[0])
        turned = x.transpose(0, 1)
        x, shares = self.apart(turned, turned, self.to_values(turned))
        assert shares.shape == (x.shape[1], x.shape[0], x.shape[0])
        q, k, v = self.window(F.normalize(x.transpose(0, 1), dim=-1)).chunk(3, -1)
        x = (q @ k.transpose(1, 2) * 8**-0.5).softmax(dim=-1) @ v
        return self.out(F.scaled_dot_product_attention(x, x, x)).sigmoid().sum()


class Fusion(nn.Module):
    """Two streams, a depth distribution, residuals, a norm on [N, C] and coordinates among the parameters."""

    def __init__(self, bias: bool = False) -> None:
        super().__init__()
        self.depth, self.context = nn.Conv2d(3, 5, 1, bias=bias), nn.Conv2d(3, 4, 1, bias=bias)
        self.points = nn.Sequential(nn.Linear(2, 4, bias=bias), nn.BatchNorm1d(4))
        self.block, self.head = nn.Linear(4, 4, bias=bias), nn.Linear(8, 3, bias=bias)
        self.bx = nn.Parameter(torch.tensor([-4.0, 1.0]), requires_grad=False)
        self.nx = nn.Parameter(torch.tensor([3, 4]), requires_grad=False)

    def forward(self, image):
        assert self.bx.tolist() == [-4, 1] and self.bx.dtype == torch.float32
        depth = self.depth(image).softmax(dim=1)
        camera = (depth[:, :, None] * self.context(image)[:, None]).sum((1, 3, 4))
        lidar = self.points(image.new_ones(7, 2)).mean(0, keepdim=True).expand(len(image), -1)
        lidar = lidar + F.relu(self.block(lidar))
        return self.head(torch.cat((camera, lidar), 1)).sum()


NETS = {'norms': (Norms, (2, 3, 8, 8)), 'attention': (Attention, (2, 6, 3)), 'fusion': (Fusion, (2, 3, 4, 4))}


def disturbed(kind: str, bias: bool = False) -> tuple[nn.Module, torch.Tensor]:
    """With weights of both signs everywhere and statistics of some data, in train mode."""
    make, shape = NETS[kind]
    torch.manual_seed(0)
    net = make(bias)
    for parameter in net.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter)
    net(torch.randn(shape)).backward()
    return net, torch.ones(shape, dtype=torch.float64)


def flow_scores(net, ones):
    with linear_flow(net, double=True):
        weights = {name: p for name, p in net.named_parameters() if p.requires_grad}
        total = float(net(ones).detach())
        return total, synflow(weights, flow_through(net, lambda: net(ones)))


def sum_of(scores, *names) -> float:
    return float(sum(scores[name].sum() for name in names))


@pytest.mark.parametrize(
    'kind, cuts',
    [
        ('norms', [[f'layers.{i}.weight'] for i in (0, 1, 3, 4, 6, 7, 9, 10, 14)]),
        (
            'attention',
            [
                *([f'{name}.weight'] for name in ('embed', 'to_values', 'window', 'out')),
                *([f'joint.{name}'] for name in ('in_proj_weight', 'out_proj.weight')),
                *([f'apart.{name}'] for name in ('v_proj_weight', 'out_proj.weight')),
            ],
        ),
        ('fusion', [['head.weight'], ['context.weight', 'points.0.weight'], ['context.weight', 'points.1.weight']]),
    ],
)
def test_scores_of_every_cut_sum_to_the_flow(kind, cuts):
    total, scores = flow_scores(*disturbed(kind))
    assert total > 0
    for cut in cuts:
        assert sum_of(scores, *cut) == pytest.approx(total, rel=1e-12), cut


@pytest.mark.parametrize('kind, chain', [('norms', [f'layers.{i}' for i in (0, 3, 6, 9, 14)])])
def test_biases_bring_flow_of_their_own(kind, chain):
    """A cut of a network with biases also cuts those behind it; norms bring none."""
    total, scores = flow_scores(*disturbed(kind, bias=True))
    for i, name in enumerate(chain):
        behind = [f'{later}.bias' for later in chain[i:]]
        assert sum_of(scores, f'{name}.weight', *behind) == pytest.approx(total, rel=1e-12)
        assert sum_of(scores, f'{name}.bias') > 0
    assert sum_of(scores, 'layers.1.bias', 'layers.4.bias', 'layers.7.bias', 'layers.10.bias') == 0


def test_no_flow_through_queries_keys_and_depth():
    _, scores = flow_scores(*disturbed('attention'))
    assert not scores['joint.in_proj_weight'][:16].any() and scores['joint.in_proj_weight'][16:].all()
    assert not scores['window.weight'][:16].any() and not scores['apart.q_proj_weight'].any()
    _, scores = flow_scores(*disturbed('fusion'))
    assert not scores['depth.weight'].any() and scores['context.weight'].all()


def test_the_flow_is_that_of_absolute_weights():
    """Written plainly: batch norm is |gamma|, everything else |w|."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2)).double()
    nn.init.normal_(net[1].weight)
    net(torch.randn(9, 3).double())
    ones = torch.ones(2, 3).double()
    expected = (ones @ net[0].weight.abs().T + net[0].bias.abs()) * net[1].weight.abs()
    expected = expected @ net[3].weight.abs().T + net[3].bias.abs()
    with linear_flow(net):
        torch.testing.assert_close(net(ones), expected)
        with torch.no_grad():
            torch.testing.assert_close(net(3 * ones) - net(2 * ones), net(2 * ones) - net(ones))


def test_masked_keys_get_no_share():
    logits = torch.tensor([[1.0, -torch.inf, 3.0], [-torch.inf] * 3])
    with linear_flow(nn.Identity()):
        for shares in (logits.softmax(1), torch.softmax(logits, 1), F.softmax(logits, dim=1), nn.Softmax(1)(logits)):
            assert shares.tolist() == [[0.5, 0, 0.5], [0, 0, 0]]
    assert logits.softmax(1)[0, 2] > 0.8


def test_float64_where_float32_overflows():
    net = nn.Sequential(*(nn.Linear(64, 64, bias=False) for _ in range(20)))
    for layer in net:
        nn.init.normal_(layer.weight, std=10)
    with linear_flow(net):
        assert net(torch.ones(1, 64)).sum().isinf()
    with linear_flow(net, double=True):
        assert 1e38 < net(torch.ones(1, 64).double()).sum() < float('inf')
    assert all(layer.weight.dtype == torch.float32 for layer in net)


def everything(net):
    tensors = dict(net.named_parameters()) | dict(net.named_buffers())
    return (
        {name: (id(t), t.data_ptr(), t.dtype, t.requires_grad, t.detach().clone()) for name, t in tensors.items()},
        {name: (id(p.grad), None if p.grad is None else p.grad.clone()) for name, p in net.named_parameters()},
        {name: (module.training, dict(vars(module))['training']) for name, module in net.named_modules()},
    )


def assert_same(first, second):
    assert first[2] == second[2]
    for before, after in zip(first[:2], second[:2]):
        assert before.keys() == after.keys()
        for name in before:
            *numbers, value = before[name]
            *others, other = after[name]
            assert numbers == others and (value is other is None or torch.equal(value, other)), name


@pytest.mark.parametrize('kind', NETS)
@pytest.mark.parametrize('double', [False, True])
@pytest.mark.parametrize('fails', [False, True])
def test_everything_is_put_back(kind, double, fails):
    net, ones = disturbed(kind)
    net.with_cp = True
    list(net.children())[-1].eval()
    before = everything(net)
    softmax, output = torch.Tensor.softmax, net.eval()(ones.float())
    for name, module in net.named_modules():
        module.training = before[2][name][0]
    try:
        with linear_flow(net, double):
            assert not net.with_cp and not net.training
            net(ones if double else ones.float()).backward()
            if fails:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    assert net.with_cp is True and torch.Tensor.softmax is softmax
    assert_same(before, everything(net))
    assert torch.equal(net.eval()(ones.float()), output)


def test_swin():
    """Windows, shifts and relative positions of mmdet's backbone; the flow of the patches is conserved."""
    from mmdet.models.backbones import SwinTransformer

    torch.manual_seed(0)
    net = SwinTransformer(
        embed_dims=8, depths=(2, 2), num_heads=(2, 2), window_size=4, out_indices=(1,), strides=(4, 2), with_cp=True
    )
    state = {name: value.clone() for name, value in net.state_dict().items()}
    ones = torch.ones(1, 3, 32, 32, dtype=torch.float64)
    for name, parameter in net.named_parameters():
        if name.endswith('bias'):
            nn.init.zeros_(parameter)
            state[name].zero_()
    with linear_flow(net, double=True):
        weights = {name: p for name, p in net.named_parameters() if p.dim() > 1 and 'relative' not in name}
        total = float(net(ones)[0].sum().detach())
        scores = synflow(weights, flow_through(net, lambda: net(ones)[0].sum()))
    for name in ('patch_embed.projection.weight', 'stages.0.downsample.reduction.weight'):
        assert sum_of(scores, name) == pytest.approx(total, rel=1e-12)
    for name, score in scores.items():
        rows = 2 * score.shape[0] // 3 if 'qkv' in name else 0
        assert not score[:rows].any() and score[rows:].any()
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
