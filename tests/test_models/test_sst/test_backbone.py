"""The backbone without halting: against its layers written slowly, and what must not matter to it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmprune3d.models.sst.backbone import SSTBackbone
from mmprune3d.models.sst.input_layer import SSTInputLayer, WindowedTokens
from mmprune3d.ops.windows import GPU_SIZES

from .slow_sst import slow_layer
from .small_sst import GRID, WIDTH, WINDOW, backbone, coords_of, scene

ROWS, COLUMNS = GRID[1], GRID[0]
DILATED = [dict(kernel_size=3, padding=1), dict(kernel_size=3, padding=2, dilation=2)]
OPTIONS = [
    dict(),
    dict(num_attached_conv=0),
    dict(num_attached_conv=2, conv_kwargs=DILATED, conv_shortcut=True),
    dict(num_attached_conv=2, conv_out_channel=12, conv_shortcut=True),  # only the second one has a shortcut
    dict(num_attached_conv=2, conv_shortcut=False, activation='relu'),
    dict(layer_cfg=dict(post_norm=False)),
    dict(layer_cfg=dict(cosine=True, tau_min=0.05, use_bn=False)),
    dict(layer_cfg=dict(head_dims=5, backend='explicit')),
    dict(num_blocks=1),
]


def close(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def slow_tokens(model: SSTBackbone, tokens: WindowedTokens) -> Tensor:
    x = model.linear0(tokens.feats) if hasattr(model, 'linear0') else tokens.feats
    for block in model.block_list:
        for layer, position, ids in zip(block.encoder_list, tokens.positions, tokens.window_ids):
            x = slow_layer(layer, x, position, ids)
    return x


def slow_map(model: SSTBackbone, x: Tensor, tokens: WindowedTokens) -> Tensor:
    canvas = x.new_zeros(tokens.batch_size, x.shape[1], ROWS, COLUMNS)
    for row, (b, _, y, column) in enumerate(tokens.coords.tolist()):
        canvas[b, :, y, column] = x[row]
    for conv, bn, _ in getattr(model, 'conv_layer', ()):
        y = F.conv2d(canvas, conv.weight, None, conv.stride, conv.padding, conv.dilation)
        normed = (y - bn.running_mean[:, None, None]) / (bn.running_var + bn.eps)[:, None, None].sqrt()
        y = (normed * bn.weight[:, None, None] + bn.bias[:, None, None]).clamp(min=0)
        canvas = y + canvas if model.conv_shortcut and y.shape == canvas.shape else y
    return canvas


@pytest.mark.parametrize('options', OPTIONS, ids=str)
def test_map_equals_the_slow_one(options: dict) -> None:
    model, tokens = backbone(**options), scene((110, 0, 60))
    (found,) = model(tokens)
    close(found, slow_map(model, slow_tokens(model, tokens), tokens))
    assert found.shape == (3, options.get('conv_out_channel', WIDTH), ROWS, COLUMNS)


def test_tokens_instead_of_a_map() -> None:
    """With a linear layer in front, so that tokens come in with another width."""
    model = backbone(in_channel=10, to_bev=False)
    coords = coords_of((70, 20))
    feats = torch.randn(90, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    tokens = SSTInputLayer(WINDOW, (*GRID, 1), pos_dims=WIDTH)(feats, coords, 2)
    (found,) = model(tokens)
    close(found, slow_tokens(model, tokens))
    assert 'linear0.weight' in model.state_dict() and 'linear0.weight' not in backbone().state_dict()


@pytest.mark.parametrize('grid', [(18, 20), (17, 21), (5, 4)], ids=str)
@pytest.mark.parametrize('window', [(6, 6, 1), (7, 5, 1), (4, 9, 1), (3, 3, 1)], ids=str)
def test_grids_and_windows(grid: tuple[int, int], window: tuple[int, ...]) -> None:
    tokens = scene((15, 20), grid=grid, window=window)
    model = backbone(output_shape=[grid[1], grid[0]], num_attached_conv=0)
    (found,) = model(tokens)
    b, _, y, x = tokens.coords.unbind(1)
    expected = slow_tokens(model, tokens)
    close(found[b, :, y, x], expected)
    assert torch.equal(found.abs().sum(), found[b, :, y, x].abs().sum()) or found.count_nonzero() == expected.numel()


def test_samples_do_not_see_each_other() -> None:
    model, tokens = backbone(), scene((110, 0, 60))
    (together,) = model(tokens)
    for sample in range(3):
        own = tokens.select((tokens.coords[:, 0] == sample).nonzero().squeeze(1))
        coords = own.coords.clone()
        coords[:, 0] = 0
        (alone,) = model(SSTInputLayer(WINDOW, (*GRID, 1))(own.feats, coords, 1))
        close(together[sample], alone[0])


def test_samples_without_tokens_have_a_map() -> None:
    model = backbone()
    empty = model(scene((0,)))[0]
    for sizes in ((0, 40, 0), (40, 0), (0, 0)):
        (found,) = model(scene(sizes))
        assert len(found) == len(sizes) and found.isfinite().all()
        for sample, size in enumerate(sizes):
            assert size or torch.equal(found[sample], empty[0])
    assert backbone(to_bev=False)(scene((0, 0)))[0].shape == (0, WIDTH)


def test_order_of_tokens_does_not_matter() -> None:
    model, tokens = backbone(), scene((110, 60))
    order = torch.randperm(170, generator=torch.Generator().manual_seed(0))
    close(model(tokens.select(order)), model(tokens))


@pytest.mark.parametrize('sizes', [GPU_SIZES, (3,), (1, 2, 40)], ids=str)
def test_sizes_of_buckets_do_not_matter(sizes: tuple[int, ...]) -> None:
    close(backbone(bucket_sizes=sizes)(scene((110, 60))), backbone()(scene((110, 60))))


def test_single_precision() -> None:
    exact = backbone()(scene((110, 60)))[0]
    single = backbone(dtype=torch.float32)(scene((110, 60), dtype=torch.float32))[0]
    torch.testing.assert_close(single.double(), exact, rtol=1e-5, atol=1e-5 * exact.abs().max().item())


def run_with_gradients(model: nn.Module, tokens: WindowedTokens) -> list[Tensor]:
    tokens.feats.requires_grad_()
    (out,) = model(tokens)
    out.square().sum().backward()
    return [out, tokens.feats.grad, *(value.grad for value in model.parameters())]


@pytest.mark.parametrize('blocks', [(0,), (0, 2), (0, 1, 2)], ids=str)
def test_recomputed_activations_give_the_same_gradients(blocks: tuple[int, ...]) -> None:
    plain, recomputed = backbone().train(), backbone(checkpoint_blocks=blocks).train()
    calls: list[int] = []
    for number, block in enumerate(recomputed.block_list):
        block.register_forward_pre_hook(lambda *_, number=number: calls.append(number))
    for one, other in zip(*(run_with_gradients(model, scene((50, 30))) for model in (plain, recomputed)), strict=True):
        assert torch.equal(one, other)
    assert sorted(calls) == sorted([0, 1, 2, *blocks])
    calls.clear()
    with torch.no_grad():
        recomputed(scene((50, 30)))
    assert calls == [0, 1, 2]


def test_passes_leave_nothing_behind() -> None:
    model = backbone()
    before = set(vars(model))
    first = model(scene((50, 30)))[0]
    model(scene((20,), seed=3))
    assert torch.equal(model(scene((50, 30)))[0], first) and set(vars(model)) == before


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(layer_cfg=dict(cosin=True)), r"layer_cfg has unknown keys \['cosin'\]; valid are use_bn, cosine"),
        (dict(d_model=[WIDTH] * 2), 'd_model has 2 entries for 3 blocks'),
        (dict(nhead=[2]), 'nhead has 1 entries for 3 blocks'),
        (dict(dim_feedforward=[]), 'dim_feedforward has 0 entries for 3 blocks'),
        (dict(num_attached_conv=3, conv_kwargs=DILATED), 'conv_kwargs has 2 entries for 3 convolutions'),
    ],
    ids=str,
)
def test_errors_name_what_is_wrong(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        backbone(**options)
