from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mmprune3d.checkpoint.slim import slim_state_dict, structure_of
from mmprune3d.coupling.groups import find_channel_groups
from mmprune3d.layers.slim import slim_model_
from mmprune3d.measure.flops import count_operations
from mmprune3d.measure.layer_costs import LayerCosts, count_costs, gflops_by_part
from mmprune3d.pruning.channel_selection import Costs, select_channels
from mmprune3d.upgrade.channels import flops_of
from tests.test_coupling.channel_nets import (
    Mixed,
    SparseToDense,
    bevfusion_forward,
    bevfusion_groups,
    build_bevfusion,
    half_of,
)


def total(costs):
    return costs.total


def slimmed(model, groups, keep):
    weights = slim_state_dict(model.state_dict(), groups, keep)
    slim = copy.deepcopy(model)
    slim_model_(slim, structure_of(weights))
    slim.load_state_dict(weights)
    return slim.eval()


def test_dense_layers_add_up_to_what_torch_counts():
    model = Mixed().eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(model.inputs())
    costs = count_costs(model, lambda: model(model.inputs()))
    assert total(costs) == counter.get_total_flops()
    assert costs.fixed == 0
    assert costs.per_element['stem.weight'] == 2 * 2 * 64
    assert costs.per_element['up.weight'] == 2 * 2 * 64
    assert costs.per_element['hidden.weight'] == 2 * 2


def test_attention_is_fixed():
    model = nn.ModuleList([nn.Linear(8, 8), nn.MultiheadAttention(8, 2, batch_first=True)]).eval()
    x = torch.randn(1, 5, 8)
    costs = count_costs(model, lambda: model[1](*[model[0](x)] * 3, need_weights=False))
    assert list(costs.per_element) == ['0.weight']
    projections, scores = 2 * 5 * 4 * 64, 2 * 2 * 5 * 5 * 8
    assert costs.fixed == projections + scores
    assert torch.backends.mha.get_fastpath_enabled()


def test_sparse_convolutions_count_pairs_of_sites():
    model = SparseToDense().eval()
    costs = count_costs(model, lambda: model(model.inputs()))
    occupied = torch.zeros(1, 1, 8, 8, 4)
    _, coords = model.inputs()
    occupied[0, 0][tuple(coords[:, 1:].long().T)] = 1
    kernel = torch.ones(1, 1, 3, 3, 3)
    around = nn.functional.conv3d(occupied, kernel, padding=1)
    pairs = int((around * occupied).sum())
    expected = {'conv1': (pairs, 4 * 6), 'conv2': (pairs, 6 * 6)}
    strided = nn.functional.conv3d(occupied, kernel, padding=1, stride=2)
    expected['down'] = (int(strided.sum()), 6 * 7)
    for name, (count, channels) in expected.items():
        weight = f'{name}.weight'
        assert costs.per_element[weight] * math.prod(costs.shapes[weight]) == pytest.approx(2 * count * channels)
    dense = 2 * (2 * 2) * (14 * 5 * 9 + 5 * 2)  # a 3x3 and a 1x1 convolution, 2 x 2 outputs
    assert costs.fixed == 0
    assert total(costs) == pytest.approx(dense + sum(2 * count * channels for count, channels in expected.values()))


def test_predicted_costs_are_those_of_the_slim_model():
    model = SparseToDense().eval()
    groups = find_channel_groups(model, lambda model: model(model.inputs())).groups
    keep = half_of(groups)
    slim = slimmed(model, groups, keep)
    costs = flops_of(model, lambda: model(model.inputs()))
    predicted = costs.after(groups, {name: int(mask.sum()) for name, mask in keep.items()})
    assert predicted == pytest.approx(total(count_costs(slim, lambda: slim(slim.inputs()))), rel=1e-9)


def test_half_of_the_flops_of_bevfusion_within_one_per_cent():
    model, groups = build_bevfusion(), bevfusion_groups().groups
    costs = flops_of(model, lambda: bevfusion_forward(model))
    generator = torch.Generator().manual_seed(0)
    scores = {group.name: torch.rand(group.size, generator=generator) for group in groups}
    chosen = select_channels(scores, groups, ('flops', 0.5), costs)
    slim = slimmed(model, groups, chosen.keep)
    measured = total(count_costs(slim, lambda: bevfusion_forward(slim)))
    assert 1 - measured / costs.after([], {}) == pytest.approx(chosen.reached, abs=1e-9)
    assert chosen.reached == pytest.approx(0.5, abs=0.01)
    shapes = structure_of({name: p for name, p in model.named_parameters() if p.requires_grad})
    fewer = select_channels(scores, groups, ('params', 0.3), Costs.of_parameters(shapes))
    left = sum(p.numel() for p in slimmed(model, groups, fewer.keep).parameters() if p.requires_grad)
    assert 1 - left / sum(math.prod(shape) for shape in shapes.values()) == pytest.approx(fewer.reached)


def test_what_bevfusion_runs_without_a_counter():
    model = build_bevfusion()
    assert count_operations(lambda: bevfusion_forward(model), {}).unknown == ('aten.linalg_inv_ex',)


def test_parts_and_rest_add_up():
    costs = LayerCosts(
        {'a.0.weight': 1e9, 'ab.weight': 2e9, 'c.weight': 3e9},
        dict.fromkeys(('a.0.weight', 'ab.weight', 'c.weight'), (2,)),
        5e9,
    )
    assert gflops_by_part(costs, {'first': ['a'], 'both': ['ab', 'c']}) == {
        'first': 2.0,
        'both': 10.0,
        'rest': 5.0,
        'total': 17.0,
    }


def test_nothing_ran():
    with pytest.raises(ValueError, match='no convolution or linear layer ran'):
        count_costs(nn.Linear(2, 2), lambda: None)
