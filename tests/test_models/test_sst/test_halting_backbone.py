"""Both forward passes of dynamic token halting: equal to each other, and to the equations written slowly."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from mmengine.registry import MODELS as ROOT_MODELS
from torch import Tensor, nn

from mmprune3d.layers.halting import HaltingUNet
from mmprune3d.models.sst.halting_backbone import HaltingSST
from mmprune3d.models.sst.input_layer import SSTInputLayer, WindowedTokens
from mmprune3d.pruning.halting import HaltingRecord, keep_by_rank

from .small_sst import (
    GATES,
    GRID,
    LAYERS,
    MLP,
    SETTINGS,
    THREE,
    UNET,
    WIDTH,
    WINDOW,
    backbone,
    halting_sst,
    scene,
    table_gates,
)

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}
"""Of the difference between the paths, as a share of the largest value."""


def both(
    model: HaltingSST, tokens: WindowedTokens
) -> tuple[tuple[Tensor, HaltingRecord], tuple[Tensor, HaltingRecord]]:
    with torch.no_grad():
        (edf,), of_edf = model.forward_with_record(tokens, 'edf')
        (sparse,), of_sparse = model.forward_with_record(tokens, 'sparse')
    return (edf, of_edf), (sparse, of_sparse)


def difference(model: HaltingSST, tokens: WindowedTokens) -> float:
    """Largest difference of the results, as a share of the largest value."""
    (edf, _), (sparse, _) = both(model, tokens)
    return float((edf - sparse).abs().max() / edf.abs().max())


def assert_same_paths(model: HaltingSST, tokens: WindowedTokens) -> HaltingRecord:
    """Results and records are the same."""
    (edf, of_edf), (sparse, of_sparse) = both(model, tokens)
    assert edf.isfinite().all()
    atol = TOLERANCE[tokens.feats.dtype]
    assert (edf - sparse).abs().max() <= atol * edf.abs().max()
    for one, other in zip(of_edf.steps, of_sparse.steps, strict=True):
        assert one.layer == other.layer
        assert torch.equal(one.rows, other.rows) and torch.equal(one.keep, other.keep)
        torch.testing.assert_close(one.scores, other.scores, rtol=10 * atol, atol=10 * atol)
    return of_edf


# EDF = sparse


@pytest.mark.parametrize(
    ('layers', 'dtype'), [(each, torch.float64) for each in LAYERS] + [({}, torch.float32)], ids=str
)
@pytest.mark.parametrize('name', SETTINGS)
def test_paths_are_equal(name: str, layers: dict, dtype: torch.dtype) -> None:
    model = halting_sst(dtype=dtype, layer_cfg=layers, **SETTINGS[name])
    record = assert_same_paths(model, scene((60, 0, 40), dtype=dtype))
    shares = record.sparsity().tolist()
    assert shares == sorted(shares)
    if name == 'nothing halts':
        assert shares == [0] * 6
    elif 'all halt' in name:
        assert shares[2:] == [1] * 4 and (shares[0] == 1) == ('once' in name)
    elif name == 'late gates':
        assert shares[1] == 0 < shares[2] < shares[4] < 1
    else:
        assert 0 < shares[0] <= shares[2] < 1


@pytest.mark.parametrize('seed', range(4))
@pytest.mark.parametrize(
    ('grid', 'window', 'sizes'),
    [
        (GRID, WINDOW, (100,)),
        ((17, 21), (7, 5, 1), (60, 90)),
        ((22, 13), (4, 9, 1), (1, 2, 3, 100)),
        ((12, 12), (12, 12, 1), (144, 0)),
        ((9, 8), (2, 2, 1), (40, 0, 0, 7)),
        ((6, 7), (20, 20, 1), (10, 42)),
    ],
    ids=str,
)
def test_paths_are_equal_in_random_scenes(
    seed: int, grid: tuple[int, int], window: tuple[int, ...], sizes: tuple[int, ...]
) -> None:
    dtype = (torch.float64, torch.float32)[seed % 2]
    layers = LAYERS[seed]
    model = halting_sst(THREE, dtype, output_shape=[grid[1], grid[0]], layer_cfg=layers)
    assert_same_paths(model, scene(sizes, seed, dtype, grid, window))


@pytest.mark.parametrize('gates', [GATES, THREE], ids=['two', 'three'])
@pytest.mark.parametrize('sizes', [(0,), (0, 0), (1,), (1, 0), (0, 2)], ids=str)
def test_hardly_any_token(sizes: tuple[int, ...], gates: tuple) -> None:
    record = assert_same_paths(halting_sst(gates), scene(sizes))
    assert record.batch_size == len(sizes) and record.sparsity().shape == (6,)


def test_some_samples_halt_and_others_do_not() -> None:
    """Where a sample has no token left, others go on, and the first gate may empty what the second one sees."""
    model = halting_sst(table_gates(3, dict(bounds=(0, 1)), dict(bounds=(0, 1))))
    with torch.no_grad():
        model.halting[0].scorer.table[0] = 0.2  # sample 0 halts at once
        model.halting[1].scorer.table[1] = 0.2  # sample 1 halts later
    tokens = scene((40, 50, 60))
    record = assert_same_paths(model, tokens)
    expected = torch.tensor([0, 2, 6])[tokens.coords[:, 0]]
    assert torch.equal(record.halted_at(), expected)


@pytest.mark.parametrize('backend', ['explicit', 'sdpa'])
@pytest.mark.parametrize('tau', [0.01, 0.05])
def test_sharp_cosine_attention(tau: float, backend: str) -> None:
    """Logits of halted keys are up to 2 / tau above those of others."""
    model = halting_sst(layer_cfg=dict(cosine=True, tau_min=tau, backend=backend))
    for name, value in model.named_parameters():
        if name.endswith('tau'):
            nn.init.constant_(value, 0)
    assert difference(model, scene((90, 50))) <= 1e-12


# The paths do not depend on the mode


@pytest.mark.parametrize('path', ['edf', 'sparse'])
def test_the_path_is_an_argument_and_not_the_mode(path: str) -> None:
    """Without batch norms there is no difference at all between training and evaluation."""
    model = halting_sst(num_attached_conv=0)
    tokens = scene((90, 50))
    with torch.no_grad():
        (one,), (other,) = model.train()(tokens, path), model.eval()(tokens, path)
    assert torch.equal(one, other)
    ran: list[int] = []
    model.block_list[2].register_forward_pre_hook(lambda module, inputs: ran.append(len(inputs[0])))
    for mode in (True, False):
        model.train(mode)(tokens, path)
    assert ran[0] == ran[1] and (ran[0] == 140) == (path == 'edf')


def test_paths_are_equal_in_training_with_batch_norms() -> None:
    gates = (dict(GATES[0], module={**UNET, 'norm_cfg': None}), GATES[1])
    model, tokens = halting_sst(gates), scene((90, 50))
    evaluated = both(model, tokens)[0][0]
    assert_same_paths(model.train(), tokens)
    assert (both(model, tokens)[0][0] - evaluated).abs().max() > 1e-2


def test_sparse_is_the_default_and_other_paths_are_errors() -> None:
    model, tokens = halting_sst(), scene((30,))
    with torch.no_grad():
        assert torch.equal(model(tokens)[0], model.forward_with_record(tokens, 'sparse')[0][0])
        assert torch.equal(model(tokens)[0], model.forward_with_record(tokens)[0][0])
    with pytest.raises(ValueError, match="unknown path 'dense'; valid are edf, sparse"):
        model(tokens, 'dense')


def test_tokens_that_halted_are_not_computed() -> None:
    model, tokens, seen = halting_sst(THREE), scene((90, 50)), []
    for block in model.block_list:
        block.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    _, record = model.forward_with_record(tokens, 'sparse')
    assert seen == record.live().sum(1)[::2].tolist() and seen[0] > seen[1] > seen[2] > 0
    seen.clear()
    model.forward_with_record(tokens, 'edf')
    assert seen == [140] * 3


# Against the plain transformer


@pytest.mark.parametrize('scope', ['until_next', 'block', 'layer'])
@pytest.mark.parametrize('path', ['edf', 'sparse'])
def test_without_halting_and_with_scores_of_one_it_is_the_plain_backbone(path: str, scope: str) -> None:
    model = halting_sst(table_gates(2, dict(bounds=(0, 0)), dict(bounds=(0, 1))), score_scope=scope)
    plain, tokens = backbone(), scene((90, 50))
    plain.load_state_dict({key: value for key, value in model.state_dict().items() if 'halting' not in key})
    torch.testing.assert_close(model(tokens, path), plain(tokens), rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        model.halting[0].scorer.table -= 0.4 * torch.rand(model.halting[0].scorer.table.shape)
    assert (model(tokens, path)[0] - plain(tokens)[0]).abs().max() > 1e-3  # Eq. 6 needs the scores also then


def test_new_gates_leave_tokens_as_they_are() -> None:
    """Fusion and the map for halt++ begin at 0, so that a trained transformer can be fine-tuned."""
    torch.manual_seed(0)
    settings = dict(
        d_model=[WIDTH] * 2, nhead=[2] * 2, num_blocks=2, dim_feedforward=[24] * 2, output_shape=[GRID[1], GRID[0]],
        conv_in_channel=WIDTH, conv_out_channel=WIDTH,
    )  # fmt: skip
    model = HaltingSST(GATES, unet_to_bev=True, **settings)
    assert not any(model.halting[0].fuse.state_dict()[key].any() for key in ('weight', 'bias'))
    assert not model.to_bev_map.weight.any() and not model.to_bev_map.bias.any()
    assert model.halting[1].fuse is None
    assert [(gate.block, gate.threshold, gate.bounds) for gate in model.halting] == [
        (0, 0.5, (0.3, 0.6)),
        (1, 0.5, (0.5, 0.9)),
    ]


def test_halted_tokens_are_on_the_map_as_they_were() -> None:
    """All of a sample halt at the first gate: the map has their features with the U-Net's, or nothing."""
    gates = (dict(GATES[0], bounds=(1, 1)),)
    tokens = scene((90, 50))
    for path, recycle in itertools.product(('edf', 'sparse'), (True, False)):
        model = halting_sst(gates, num_attached_conv=0, recycle=recycle)
        gate, (out,) = model.halting[0], model(tokens, path)
        _, latent, _ = gate.scorer(tokens.feats, tokens.coords, 2, (GRID[1], GRID[0]))
        b, _, y, x = tokens.coords.unbind(1)
        expected = (tokens.feats + gate.fuse(latent)) * recycle
        torch.testing.assert_close(out[b, :, y, x], expected)
        assert out.count_nonzero() == (expected.numel() if recycle else 0)


def test_map_of_the_unet_is_added_for_halt_plus_plus() -> None:
    tokens, added = scene((90, 50)), halting_sst(unet_to_bev=True, num_attached_conv=0)
    plain = halting_sst(num_attached_conv=0)
    plain.load_state_dict({key: value for key, value in added.state_dict().items() if 'to_bev_map' not in key})
    _, _, unet = added.halting[0].scorer(tokens.feats, tokens.coords, 2, (GRID[1], GRID[0]))
    expected = plain(tokens)[0] + nn.functional.conv2d(unet, added.to_bev_map.weight, added.to_bev_map.bias)
    torch.testing.assert_close(added(tokens)[0], expected)


# Samples


@pytest.mark.parametrize('path', ['edf', 'sparse'])
@pytest.mark.parametrize('name', ['the paper', 'three gates', 'shares of the rest', 'U-Net behind a gate', 'halt++'])
def test_samples_do_not_see_each_other(name: str, path: str) -> None:
    model, tokens = halting_sst(**SETTINGS[name]), scene((90, 0, 50))
    (together,), record = model.forward_with_record(tokens, path)
    for sample in range(3):
        own = tokens.coords[:, 0] == sample
        coords = tokens.coords[own] * torch.tensor([0, 1, 1, 1])
        alone = SSTInputLayer(WINDOW, (*GRID, 1))(tokens.feats[own], coords, 1)
        (out,), of_one = model.forward_with_record(alone, path)
        torch.testing.assert_close(out[0], together[sample], rtol=1e-10, atol=1e-10)
        assert torch.equal(of_one.halted_at(), record.halted_at()[own])


@pytest.mark.parametrize('path', ['edf', 'sparse'])
def test_order_of_tokens_does_not_matter(path: str) -> None:
    """Unless scores are equal, where earlier tokens win."""
    model, tokens = halting_sst(), scene((90, 50))
    order = torch.randperm(140, generator=torch.Generator().manual_seed(0))
    (out,), record = model.forward_with_record(tokens, path)
    (moved,), of_moved = model.forward_with_record(tokens.select(order), path)
    torch.testing.assert_close(out, moved, rtol=1e-10, atol=1e-10)
    assert torch.equal(of_moved.halted_at(), record.halted_at()[order])


def test_bounds_are_shares_of_all_tokens_or_of_the_rest() -> None:
    tokens = scene((100, 60))
    for relative, expected in ((False, 0.5), (True, 0.75)):
        gates = (dict(GATES[0], bounds=(0.5, 0.5)), dict(GATES[1], bounds=(0.5, 0.5), relative=relative))
        record = halting_sst(gates).forward_with_record(tokens)[1]
        assert record.sparsity().tolist() == pytest.approx([0.5, 0.5, *[expected] * 4])
        assert record.mean_sparsity() == pytest.approx(0.5 + (expected - 0.5) * 2 / 3)


def test_decisions_are_those_of_the_rule() -> None:
    model, tokens = halting_sst(), scene((90, 50))
    _, record = model.forward_with_record(tokens, 'edf')
    totals = torch.tensor([90, 50])
    for step, gate in zip(record.steps, model.halting):
        sample = tokens.coords[step.rows, 0]
        assert torch.equal(step.keep, keep_by_rank(step.scores, sample, totals, gate.threshold, gate.bounds))
    first, second = record.steps
    assert (first.layer, second.layer) == (0, 2)
    assert torch.equal(second.rows, first.rows[first.keep]) and torch.equal(first.rows, torch.arange(140))
    assert first.scores.requires_grad and torch.equal(record.coords, tokens.coords) and record.num_layers == 6


# What would be noticed


@ROOT_MODELS.register_module()
class CarelessUNet(HaltingUNet):
    """Says that it looks at each token alone, so that halted tokens are not hidden from it."""

    token_wise = True


def unweighted(model: HaltingSST) -> None:
    """Eq. 5 as printed: plain attention at run time."""
    forward = model._sparse

    def sparse(tokens: WindowedTokens) -> Any:
        weights, model._weights = model._weights, lambda *_: (None, None)
        try:
            return forward(tokens)
        finally:
            model._weights = weights

    model._sparse = sparse


def only_first_layer(model: HaltingSST) -> None:
    """Scores forgotten in the shifted layer at run time."""
    weights = model._weights
    model._weights = lambda scores, live: weights(scores, live) if live is not None else (scores, None)


def pooled(model: HaltingSST) -> None:
    """Bounds for the batch instead of each sample."""
    for gate in model.halting:
        gate.decide = lambda scores, sample, totals, gate=gate: keep_by_rank(
            scores, torch.zeros_like(sample), totals.sum()[None], gate.threshold, gate.bounds
        )


@pytest.mark.parametrize('spoil', [unweighted, only_first_layer])
def test_paths_differ_where_one_forgets_the_scores(spoil: Callable[[HaltingSST], None]) -> None:
    model = halting_sst()
    spoil(model)
    assert difference(model, scene((90, 50))) > 1e-3


def test_paths_differ_if_a_module_sees_halted_tokens() -> None:
    kinds = {}
    for kind in ('HaltingUNet', 'CarelessUNet'):
        module = {**UNET, 'type': kind, 'token_channels': WIDTH}
        model = halting_sst((dict(GATES[0], module=MLP), dict(GATES[1], module=module)))
        kinds[kind] = difference(model, scene((90, 50)))
    assert kinds['HaltingUNet'] < 1e-12 and kinds['CarelessUNet'] > 1e-3


def test_samples_differ_if_bounds_are_for_the_batch() -> None:
    tokens, same = scene((90, 50)), []
    tokens.feats[90:] += 0.5  # scores of one sample differ from those of the other
    alone = tokens.select(torch.arange(90))
    for spoil in (lambda model: None, pooled):
        model = halting_sst(tuple(dict(gate, bounds=(0.5, 0.5)) for gate in GATES))
        spoil(model)
        together, apart = (model.forward_with_record(each)[1].halted_at() for each in (tokens, alone))
        same.append(torch.equal(together[:90], apart))
    assert same == [True, False]


# Errors


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (dict(gates=()), r'gates stand before blocks \[\]; give at least one, ascending, of \[0, 1, 2\]'),
        (dict(gates=GATES[::-1]), r'gates stand before blocks \[1, 0\]'),
        (dict(gates=(GATES[0], GATES[0])), r'gates stand before blocks \[0, 0\]'),
        (dict(gates=(dict(GATES[1], block=3),)), r'gates stand before blocks \[3\]'),
        (dict(gates=(dict(GATES[1], block=-1),)), 'block=-1 must be a whole number, 0 or more'),
        (dict(gates=(dict(block=0),)), r"a gate has keys \['block'\]; it needs block and module, valid: block, module"),
        (dict(gates=(dict(GATES[0], treshold=1),)), r'a gate has keys .*treshold.*valid: block, module, threshold'),
        (dict(gates=(dict(GATES[0], bounds=(0.9, 0.8)),)), 'halting bounds='),
        (dict(gates=(dict(GATES[0], threshold=2),)), 'halting threshold=2'),
        (dict(score_scope='forever'), "unknown score_scope 'forever'; valid are until_next, block, layer"),
        (dict(layer_cfg=dict(use_bn=True)), 'halting needs layer norm'),
        (
            dict(gates=(dict(GATES[1], block=0),), unet_to_bev=True),
            'unet_to_bev=True needs a gate whose module has a map',
        ),
    ],
    ids=str,
)
def test_errors_name_what_is_wrong(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        halting_sst(**settings)
