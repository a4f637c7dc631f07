"""Layers of sparse regional attention against torch's own attention, and against their equations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from mmprune3d.layers.sst_block import HeadProjections, SSTBlock, SSTEncoderLayer
from mmprune3d.models.sst.input_layer import WindowedTokens
from mmprune3d.ops.windows import WindowPlan, plan_windows
from tests.test_models.test_sst.slow_sst import slow_layer
from tests.test_models.test_sst.small_sst import WIDTH, scene, stir

OPTIONS = [
    dict(),
    dict(post_norm=False),
    dict(cosine=True),
    dict(cosine=True, post_norm=False, tau_min=0.9),
    dict(cosine=True, non_shared_tau=True),
    dict(activation='relu'),
    dict(head_dims=3),
    dict(head_dims=11, cosine=True),
    dict(backend='explicit'),
    dict(backend='explicit', cosine=True, post_norm=False),
]


def plans_of(tokens: WindowedTokens) -> tuple[WindowPlan, ...]:
    return tuple(plan_windows(ids) for ids in tokens.window_ids)


def block(**options: Any) -> SSTBlock:
    return stir(SSTBlock(WIDTH, 2, 24, **options)).double().eval()


def some_weights(tokens: WindowedTokens) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    soft, live = (torch.rand(len(tokens.feats), generator=generator, dtype=torch.float64) for _ in '12')
    return (soft * (live < 0.6)).requires_grad_()


def close(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize('weighted', [False, True])
@pytest.mark.parametrize('options', OPTIONS, ids=str)
def test_block_equals_the_equations(options: dict, weighted: bool) -> None:
    tokens, module = scene((90, 40)), block(**options)
    feats = tokens.feats.requires_grad_()
    parts = (some_weights(tokens), some_weights(tokens) ** 2) if weighted else (None, None)
    expected = feats
    for layer, position, ids, weight in zip(module.encoder_list, tokens.positions, tokens.window_ids, parts):
        expected = slow_layer(layer, expected, position, ids, weight)
    found = module(feats, tokens.positions, plans_of(tokens), parts)
    close(found, expected)
    inputs = [feats, *module.parameters()]
    factor = torch.randn(found.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for one, other in zip(*(torch.autograd.grad((out * factor).sum(), inputs) for out in (found, expected))):
        close(one, other)
    with torch.no_grad():
        close(module(feats, tokens.positions, plans_of(tokens), parts), expected)


@pytest.mark.parametrize('heads', [1, 4])
def test_attention_equals_that_of_torch_with_its_weights(heads: int) -> None:
    tokens = scene((80,))
    theirs = stir(nn.MultiheadAttention(WIDTH, heads, batch_first=True)).double().eval()
    ours = HeadProjections(WIDTH, heads).double()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    query = tokens.feats + tokens.positions[0]
    found = ours(query, tokens.feats, plan_windows(tokens.window_ids[0]))
    for window in tokens.window_ids[0].unique():
        rows = tokens.window_ids[0] == window
        q, v = query[None, rows], tokens.feats[None, rows]
        close(found[rows], theirs(q, q, v)[0][0])


def test_positions_do_not_enter_values() -> None:
    tokens, module = scene((60,)), block()
    alone = plan_windows(torch.arange(60))  # every token sees itself only, so that attention is the value
    attend = module.encoder_list[0].win_attn
    found = attend(tokens.feats, tokens.positions[0], alone)
    assert torch.equal(found, attend(tokens.feats, 5 * tokens.positions[1], alone))
    other = plan_windows(tokens.window_ids[0])
    assert (attend(tokens.feats, tokens.positions[0], other) - attend(tokens.feats, 0, other)).abs().max() > 1e-2


def test_temperature_stops_at_its_limit() -> None:
    tokens = scene((60,))
    module = block(cosine=True, tau_min=0.3)
    with torch.no_grad():
        outs = []
        for tau in (-1.0, 0.1, 0.3, 0.4):
            for layer in module.encoder_list:
                layer.win_attn.self_attn.tau.fill_(tau)
            outs.append(module(tokens.feats, tokens.positions, plans_of(tokens)))
    assert torch.equal(outs[0], outs[2]) and torch.equal(outs[1], outs[2])
    assert (outs[3] - outs[2]).abs().max() > 1e-3


def test_second_layer_sees_the_shifted_windows() -> None:
    tokens, module = scene((90,)), block()
    plans = plans_of(tokens)
    out = module(tokens.feats, tokens.positions, plans)
    for wrong in ((plans[0], plans[0]), plans[::-1]):
        assert (module(tokens.feats, tokens.positions, wrong) - out).abs().max() > 1e-2


def test_weights_of_one_and_no_weights_are_the_same() -> None:
    tokens, module = scene((90, 30)), block()
    ones = torch.ones(120, dtype=torch.float64)
    one = module(tokens.feats, tokens.positions, plans_of(tokens), (ones, ones))
    close(one, module(tokens.feats, tokens.positions, plans_of(tokens)))


def test_batch_norm_over_tokens() -> None:
    tokens, module = scene((60,)), block(use_bn=True)
    layer = module.encoder_list[0]
    assert layer.norm1.eps == 1e-3 and layer.norm1.momentum == 0.01
    plan = plans_of(tokens)[0]

    def norm(bn: nn.BatchNorm1d, x: Tensor) -> Tensor:
        return (x - bn.running_mean) / (bn.running_var + bn.eps).sqrt() * bn.weight + bn.bias

    x = norm(layer.norm1, tokens.feats + layer.win_attn(tokens.feats, tokens.positions[0], plan))
    hidden = nn.functional.gelu(layer.linear1(x))
    close(layer(tokens.feats, tokens.positions[0], plan), norm(layer.norm2, x + layer.linear2(hidden)))


@pytest.mark.parametrize('option', ['dropout', 'mlp_dropout'])
def test_dropout_only_in_training(option: str) -> None:
    tokens, module = scene((60,)), block(**{option: 0.5})
    module.load_state_dict(block().state_dict())
    args = tokens.feats, tokens.positions, plans_of(tokens)
    assert torch.equal(module(*args), block()(*args))
    module.train()
    torch.manual_seed(0)
    assert (module(*args) - module(*args)).abs().max() > 1e-2


def test_first_parameters() -> None:
    torch.manual_seed(0)
    layer = SSTEncoderLayer(32, 4, 64, cosine=True)
    own = layer.win_attn.self_attn
    for weight in (own.in_proj_weight, layer.linear1.weight, layer.linear2.weight):
        limit = (6 / sum(weight.shape)) ** 0.5
        assert 0.95 * limit < weight.abs().max() <= limit
    assert not own.in_proj_bias.any() and not own.out_proj.bias.any() and (own.tau == 1).all()


class Waits(TorchDispatchMode):
    """Counts what waits for the device: single numbers, and results whose size depends on the data."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        waiting = ('_local_scalar_dense', 'nonzero', 'unique', 'masked_select', 'is_nonzero')
        self.count += any(part in func.name() for part in waiting)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize('options', [dict(), dict(cosine=True, backend='explicit')], ids=str)
def test_layers_do_not_wait_for_the_device(options: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan is made once, and holds all numbers that layers need. (On a CPU, where nothing waits, they may look.)"""
    monkeypatch.setattr(Tensor, 'is_cuda', True, raising=False)
    tokens, module = scene((90, 40)), block(**options)
    with Waits() as waits:
        plans = plans_of(tokens)
    assert waits.count <= 2
    parts = some_weights(tokens), some_weights(tokens)
    with Waits() as waits:
        module(tokens.feats, tokens.positions, plans, parts).sum().backward()
    assert waits.count == 0


def test_no_token() -> None:
    tokens, module = scene((0, 0)), block()
    out = module(tokens.feats, tokens.positions, plans_of(tokens))
    assert out.shape == (0, WIDTH)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(activation='swish'), "unknown activation 'swish'; valid are relu, gelu"),
        (dict(backend='flash'), "unknown attention backend 'flash'; valid are sdpa, explicit"),
        (dict(num_heads=3), '3 heads do not divide a width of 16; set head_dims'),
    ],
    ids=str,
)
def test_errors_name_what_is_valid(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SSTBlock(**{**dict(embed_dims=WIDTH, num_heads=2, feedforward_channels=24), **options})
