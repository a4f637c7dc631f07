"""SynFlow on detectors: ones where raw data are read, outputs of the head, weights that no flow reaches."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mmprune3d.adapters.flow_inputs import flow_outputs
from mmprune3d.adapters.fusion import FusionMap, fusion_map, prunable
from mmprune3d.adapters.linear_flow import linear_flow
from mmprune3d.engine.flow_scores import flow_scores
from mmprune3d.pruning.thresholds import keep_masks
from tests.test_engine.small_fusion import GROUPS, INTERFACES, SmallFusion, batches


def small(**kwargs: Any) -> tuple[SmallFusion, FusionMap]:
    torch.manual_seed(2)
    model = SmallFusion(**kwargs)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight), nn.init.normal_(module.bias), nn.init.normal_(module.running_mean)
    return model, fusion_map(model, GROUPS, INTERFACES)


def flow_by_hand(model: SmallFusion, weights: dict[str, Tensor]) -> Tensor:
    """Absolute weights, norms that only multiply, ones in."""
    flowing = copy.deepcopy(model).double()
    parameters = dict(flowing.named_parameters())
    for name, parameter in parameters.items():
        parameter.data = weights.get(name, parameter.data).abs()

    def stream(layers: nn.Sequential, values: Tensor) -> Tensor:
        for layer in layers:
            norm = isinstance(layer, nn.BatchNorm2d)
            values = values * layer.weight.view(-1, 1, 1) if norm else layer(values)
        return values

    maps = [stream(flowing.img_backbone, torch.ones(2, 3, 6, 6).double())]
    maps.append(stream(flowing.pts_middle_encoder, torch.ones(2, 2, 6, 6).double()))
    return flowing.bbox_head(stream(flowing.fusion_layer, torch.cat(maps, 1)).mean((2, 3))).sum()


@pytest.mark.parametrize('head', [None, 'bbox_head'])
def test_the_flow_of_ones_whatever_the_sensors_saw(head):
    model, _ = small()
    names = fusion_map(model, GROUPS, INTERFACES, head=head)
    expected = flow_by_hand(model, {})
    with linear_flow(model, double=True):
        for batch in batches(2):
            torch.testing.assert_close(flow_outputs(model, batch, names), expected)
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
    assert not any(hooks)


def test_rounds_as_by_hand():
    """Synaptic-Flow's loop: score, mask to the next ratio, score again."""
    model, names = small()
    weights = {name: p.detach().double() for name, p in prunable(model).items()}
    masks = {name: torch.ones_like(w, dtype=torch.bool) for name, w in weights.items()}
    for done in range(1, 5):
        left = {name: (w * masks[name]).abs().requires_grad_() for name, w in weights.items()}
        flowing = copy.deepcopy(model).double()
        scores = dict(zip(left, torch.autograd.grad(flow_of(flowing, left), list(left.values()))))
        scores = {name: (scores[name] * left[name]).masked_fill(~masks[name], -torch.inf) for name in left}
        masks = keep_masks(scores, 1 - 0.2 ** (done / 4))
    found, without = flow_scores(model, batches(1)[0], names, 0.8, 4, keep_masks)
    ours = keep_masks(found, 0.8)
    assert all(torch.equal(ours[name], mask) for name, mask in masks.items()) and without == {}


def flow_of(model: SmallFusion, weights: dict[str, Tensor]) -> Tensor:
    """`flow_by_hand`, differentiable in `weights`."""
    maps = []
    for prefix, channels in (('img_backbone', 3), ('pts_middle_encoder', 2)):
        layers = getattr(model, prefix)
        values = nn.functional.conv2d(torch.ones(2, channels, 6, 6).double(), weights[f'{prefix}.0.weight'], padding=1)
        values = values * layers[1].weight.abs().view(-1, 1, 1)
        maps.append(nn.functional.conv2d(values, weights[f'{prefix}.3.weight'], layers[3].bias.abs(), padding=1))
    values = nn.functional.conv2d(torch.cat(maps, 1), weights['fusion_layer.0.weight'], padding=1)
    values = (values * model.fusion_layer[1].weight.abs().view(-1, 1, 1)).mean((2, 3))
    return nn.functional.linear(values, weights['bbox_head.weight'], model.bbox_head.bias.abs()).sum()


class Attentive(nn.Module):
    """Attention over raw features; named so that nothing is known of it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 2)

    def forward(self, inputs: Tensor, mode: str = 'tensor') -> Any:
        features = self.embed(inputs)
        outputs = self.head(self.attention(features, features, features)[0])
        return {'scores': [outputs]} if mode == 'predict' else None


ATTENTIVE = FusionMap(dict(fusion=('embed', 'attention', 'head')), head='head')


@pytest.mark.parametrize('rounds', [1, 3])
def test_queries_and_keys_are_ranked_among_themselves(rounds):
    torch.manual_seed(0)
    model = Attentive()
    found, without = flow_scores(model, dict(inputs=torch.randn(2, 5, 3)), ATTENTIVE, 0.75, rounds, keep_masks)
    assert without == {'attention.in_proj_weight': 2 * 8 * 8}
    masks = keep_masks(found, 0.75)
    kept = masks['attention.in_proj_weight'][:16]
    assert int(kept.sum()) == 32
    sizes = model.attention.in_proj_weight[:16].detach().abs()
    assert sizes[kept].min() > sizes[~kept].max()
    total = sum(mask.numel() for mask in masks.values())
    assert sum(int(mask.sum()) for mask in masks.values()) == total - round(0.75 * total)


def test_networks_whose_end_is_not_found():
    model = Attentive()
    batch = dict(inputs=torch.randn(2, 5, 3))
    for head, message in ((None, "gives no tensors in mode='tensor': set head="), ('spare', 'did not run when')):
        model.spare = nn.Identity()
        with linear_flow(model), pytest.raises(ValueError, match=message):
            flow_outputs(model, batch, FusionMap(ATTENTIVE.groups, head=head))
