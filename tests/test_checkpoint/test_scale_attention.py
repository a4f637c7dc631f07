"""Narrower attention from a trained one: what is removed, and that the smaller model computes what it should."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor

from mmprune3d.checkpoint.scale_attention import keep_head_channels, keep_heads
from mmprune3d.models.sst.backbone import SSTBackbone
from mmprune3d.models.sst.input_layer import SSTInputLayer, WindowedTokens

WIDTH, HEADS, DIMS, GRID = 24, 4, 6, (16, 12)
ATTENTION = 'block_list.{}.encoder_list.{}.win_attn.self_attn.'
LAYERS = [ATTENTION.format(block, shift) for block in (0, 1) for shift in (0, 1)]
KINDS = [dict(), dict(cosine=True), dict(cosine=True, non_shared_tau=True)]


def backbone(heads: int = HEADS, **layer_cfg: Any) -> SSTBackbone:
    """With random numbers in every parameter, biases and norms included."""
    torch.manual_seed(0)
    model = SSTBackbone(
        d_model=[WIDTH] * 2,
        nhead=[heads] * 2,
        num_blocks=2,
        dim_feedforward=[16] * 2,
        output_shape=GRID[::-1],
        num_attached_conv=1,
        conv_in_channel=WIDTH,
        conv_out_channel=8,
        layer_cfg=layer_cfg,
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.rand(parameter.shape) + 0.5 if parameter.dim() == 4 else torch.randn(parameter.shape))
    return model.double().eval()


def tokens() -> WindowedTokens:
    generator = torch.Generator().manual_seed(1)
    cells = torch.randperm(GRID[0] * GRID[1], generator=generator)[:90].sort().values
    coords = torch.stack((cells * 0, cells * 0, cells // GRID[0], cells % GRID[0]), 1)
    feats = torch.randn(len(cells), WIDTH, generator=generator, dtype=torch.float64)
    return SSTInputLayer((6, 6, 1), (*GRID, 1))(feats, coords, 1)


def by_head(state: dict[str, Tensor], name: str) -> tuple[Tensor, Tensor, Tensor]:
    """Views of in_proj_weight [3, H, D, E], in_proj_bias [3, H, D], out_proj.weight [E, H, D]."""
    return (
        state[name + 'in_proj_weight'].view(3, HEADS, DIMS, WIDTH),
        state[name + 'in_proj_bias'].view(3, HEADS, DIMS),
        state[name + 'out_proj.weight'].view(WIDTH, HEADS, DIMS),
    )


@torch.no_grad()
def output(model: SSTBackbone, state: dict[str, Tensor]) -> Tensor:
    model.load_state_dict(state, strict=True)
    return model(tokens())[0]


@pytest.mark.parametrize('layer_cfg', KINDS)
def test_keeping_everything_is_the_identity(layer_cfg: dict) -> None:
    state = backbone(**layer_cfg).state_dict()
    for made in (keep_heads(state, HEADS, HEADS), keep_head_channels(state, HEADS, DIMS)):
        assert list(made) == list(state) and all(made[key] is state[key] for key in state)
        assert made._metadata == state._metadata


@pytest.mark.parametrize('layer_cfg', KINDS)
@pytest.mark.parametrize('silent', ['out', 'values'])
def test_heads_that_add_nothing_go_first_and_without_a_trace(silent: str, layer_cfg: dict) -> None:
    """Another two in every layer; where values are 0 but for their bias, that stays."""
    model = backbone(**layer_cfg)
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    gone = {name: [number, (number + 2) % HEADS] for number, name in enumerate(LAYERS)}
    for name, heads in gone.items():
        weight, bias, out = by_head(state, name)
        if silent == 'out':
            out[:, heads] = 0
        else:
            weight[2, heads] = 0
            bias[2, heads] *= 30
    before = {key: tensor.clone() for key, tensor in state.items()}
    made = keep_heads(state, HEADS, 2)
    assert all(torch.equal(state[key], before[key]) for key in state)
    for name, heads in gone.items():
        kept = [head for head in range(HEADS) if head not in heads]
        assert torch.equal(made[name + 'in_proj_weight'], by_head(state, name)[0][:, kept].flatten(0, 2))
        assert torch.equal(made[name + 'out_proj.weight'], by_head(state, name)[2][:, kept].flatten(1))
        if layer_cfg.get('non_shared_tau'):
            assert torch.equal(made[name + 'tau'], state[name + 'tau'][:, kept])
    small = backbone(heads=2, head_dims=DIMS, **layer_cfg)
    torch.testing.assert_close(output(small, made), output(model, state), rtol=0, atol=1e-11)


@pytest.mark.parametrize('layer_cfg', KINDS)
@pytest.mark.parametrize('logits', ['queries', 'keys'])
@pytest.mark.parametrize('values', ['values', 'out'])
def test_channels_that_add_nothing_go_first_and_without_a_trace(values: str, logits: str, layer_cfg: dict) -> None:
    """Two channels of logits and other two of values in every head and layer; their biases do not save them."""
    model, generator = backbone(**layer_cfg), torch.Generator().manual_seed(2)
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    head = torch.arange(HEADS)[:, None]
    for name in LAYERS:
        weight, bias, out = by_head(state, name)
        pairs = torch.rand(2, HEADS, DIMS, generator=generator).argsort(-1)[..., :2]
        muted = [0, 1] if layer_cfg else [['queries', 'keys'].index(logits)]  # cosines depend on the other's length
        for part in muted:
            weight[part, head, pairs[0]] = 0
            bias[part, head, pairs[0]] *= 30 if part == 1 and not layer_cfg else 0
        if values == 'out':
            out[:, head, pairs[1]] = 0
        else:
            weight[2, head, pairs[1]] = 0
            bias[2, head, pairs[1]] *= 30
    made = keep_head_channels(state, HEADS, DIMS - 2)
    small = backbone(head_dims=DIMS - 2, **layer_cfg)
    torch.testing.assert_close(output(small, made), output(model, state), rtol=0, atol=1e-11)


def test_a_smaller_model_is_the_large_one_with_weak_heads_muted() -> None:
    """With no head at 0: the mean of a muted head's values, its bias, is all that stays of it."""
    model = backbone()
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    made = keep_heads(state, HEADS, 3)
    for name in LAYERS:
        weight, bias, out = by_head(state, name)
        strength = [
            sum(float(weight[2, head, d].norm() * out[:, head, d].norm()) for d in range(DIMS)) for head in range(HEADS)
        ]
        weakest = min(range(HEADS), key=lambda head: strength[head])
        state[name + 'out_proj.bias'] += out[:, weakest] @ bias[2, weakest]
        out[:, weakest] = 0
    torch.testing.assert_close(
        output(backbone(heads=3, head_dims=DIMS), made), output(model, state), rtol=0, atol=1e-11
    )


def test_equal_heads_and_channels_stay_in_order() -> None:
    state = {key: torch.ones_like(tensor) for key, tensor in backbone().state_dict().items()}
    name = LAYERS[0]
    marked = torch.arange(HEADS * DIMS, dtype=torch.float64)
    state[name + 'in_proj_bias'][2 * HEADS * DIMS :] = marked
    heads, channels = keep_heads(state, HEADS, 2), keep_head_channels(state, HEADS, 1)
    assert heads[name + 'in_proj_bias'][2 * 2 * DIMS :].tolist() == marked[: 2 * DIMS].tolist()
    assert channels[name + 'in_proj_bias'][2 * HEADS :].tolist() == marked[::DIMS].tolist()


def test_the_rest_of_a_detector_is_passed_on() -> None:
    state = {f'backbone.{key}': tensor for key, tensor in backbone().state_dict().items()}
    state['bbox_head.attn.in_proj_weight'] = torch.ones(3, 1)
    made = keep_heads(state, HEADS, 1)
    smaller = {key for key in state if made[key] is not state[key]}
    names = ('in_proj_weight', 'in_proj_bias', 'out_proj.weight', 'out_proj.bias')
    assert list(made) == list(state)
    assert smaller == {f'backbone.{layer}{name}' for layer in LAYERS for name in names}
    assert made[f'backbone.{LAYERS[0]}out_proj.weight'].shape == (WIDTH, DIMS)


@pytest.mark.parametrize('scale', [keep_heads, keep_head_channels])
def test_bad_input_is_named(scale: Any) -> None:
    state = backbone(cosine=True, non_shared_tau=True).state_dict()
    most = HEADS if scale is keep_heads else DIMS
    for keep in (0, most + 1):
        with pytest.raises(ValueError, match=f'keep={keep} .*valid are 1 to {most}'):
            scale(state, HEADS, keep)
    with pytest.raises(ValueError, match='not an attention with 5 heads'):
        scale(state, 5, 1)
    with pytest.raises(ValueError, match='tau is for 4 heads, not 2'):
        scale(state, 2, 1)
    with pytest.raises(ValueError, match='no attention layer of SST'):
        scale({'linear.weight': torch.ones(1)}, HEADS, 1)
    part = {key: tensor for key, tensor in state.items() if key != LAYERS[1] + 'out_proj.bias'}
    with pytest.raises(ValueError, match='the state dict has no ' + re.escape(LAYERS[1] + 'out_proj.bias')):
        scale(part, HEADS, 1)
