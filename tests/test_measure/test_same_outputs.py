"""That what rounding tips does not hide, and does not pretend, a difference."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from mmprune3d.measure.same_outputs import output_difference


class Proposals(nn.Module):
    """The best places of a map with equal neighbours, in the order of their scores, and what is found there."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.heat, self.box = nn.Conv2d(2, 6, 1), nn.Conv2d(6, 1, 1), nn.Conv2d(6, 3, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = nn.functional.max_pool2d(self.stem(x), 2)
        heat = self.heat(features).flatten()
        heat = heat * (heat == heat.max()) + heat
        best = heat.topk(9).indices
        return {'heat': heat, 'boxes': self.box(features).flatten(2)[..., best]}


@pytest.fixture
def nets() -> tuple[Proposals, Proposals]:
    torch.manual_seed(0)
    net = Proposals()
    other = copy.deepcopy(net)
    with torch.no_grad():
        other.heat.weight.mul_(1 + 1e-6 * torch.randn_like(other.heat.weight))
    return net, other


def sample() -> Tensor:
    noise = 1e-6 * torch.rand(1, 2, 8, 8, generator=torch.Generator().manual_seed(1))
    return 1 + noise + torch.linspace(0, 1e-5, 64).view(8, 8).cos()


def test_order_of_almost_equal_scores_is_no_difference(nets: tuple[Proposals, Proposals]) -> None:
    net, other = nets
    orders = [model(sample())['heat'].topk(9).indices for model in nets]
    assert not torch.equal(*orders)
    assert 0 < output_difference(other, net, lambda model: model(sample())) < 1e-5
    assert output_difference(net, net, lambda model: model(sample())) == 0


def test_a_real_difference_is_found_behind_a_decision(nets: tuple[Proposals, Proposals]) -> None:
    net, other = nets
    with torch.no_grad():
        other.box.weight[0] += 1e-2
    assert output_difference(other, net, lambda model: model(sample())) > 1e-3


def test_fewer_channels_decide_for_themselves(nets: tuple[Proposals, Proposals]) -> None:
    net = nets[0]
    slim = copy.deepcopy(net)
    with torch.no_grad():
        for layer in (net.heat, net.box):
            layer.weight[:, 5] = 0
        slim.stem.weight, slim.stem.bias = nn.Parameter(net.stem.weight[:5]), nn.Parameter(net.stem.bias[:5])
        slim.heat.weight, slim.box.weight = (nn.Parameter(layer.weight[:, :5]) for layer in (net.heat, net.box))
    assert output_difference(slim, net, lambda model: model(sample())) < 1e-6


def test_modes_come_back_and_shapes_must_agree(nets: tuple[Proposals, Proposals]) -> None:
    net, other = nets
    other.eval()
    output_difference(other, net, lambda model: model(sample()))
    assert net.training and not other.training
    with pytest.raises(ValueError, match=r'the outputs have the shapes \[\[1\]\], those of the reference \[\[2\]\]'):
        output_difference(net, other, lambda model: torch.ones(1 if model is net else 2))
