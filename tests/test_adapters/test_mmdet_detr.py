"""DETR and Conditional DETR of mmdet, pruned by the adapter and by hand."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from mmengine.registry import HOOKS
from torch import Tensor, nn

from mmprune3d import adapters
from mmprune3d.adapters import fused_attention
from mmprune3d.pruning.tggbc import TgGBCPlan
from mmprune3d.pruning.tome import ToMePlan

from . import small_detr as small
from .by_hand import assert_equal

ACTIVATIONS = {'DETR': 'softmax', 'ConditionalDETR': 'sigmoid'}
MODELS = {name: small.build(name == 'ConditionalDETR') for name in ACTIVATIONS}
KEYS = 48


@pytest.fixture(params=list(MODELS))
def model(request: pytest.FixtureRequest) -> nn.Module:
    return copy.deepcopy(MODELS[request.param])


def plan_for(model: nn.Module, **settings: object) -> TgGBCPlan:
    return TgGBCPlan(activation=ACTIVATIONS[type(model).__name__], **settings)


def same(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def prune(model: nn.Module, data: small.Batch, plan: object) -> tuple[tuple[Tensor, Tensor], list[Tensor]]:
    """Outputs and kept ids with the plan attached."""
    adapters.attach(model, plan)
    return small.outputs(model, data), adapters.kept_keys(model, lambda: small.outputs(model, data))


def assert_equal_to_hand(model: nn.Module, data: small.Batch, plan: TgGBCPlan) -> None:
    expected = small.by_hand(model, data, plan)
    (logits, _), kept = prune(model, data, plan)
    assert_equal(logits, kept, expected)


@pytest.mark.parametrize('size', [1, 2])
@pytest.mark.parametrize('settings', [dict(r=30, n=2, k=4), dict(r=0.6, n=2, k=0), dict(r=[0.2, 0.5], k=7)], ids=str)
def test_equals_pruning_by_hand(model: nn.Module, size: int, settings: dict) -> None:
    assert_equal_to_hand(model, small.batch(size), plan_for(model, **settings))


@pytest.mark.parametrize('size', [1, 2])
def test_equals_pruning_by_hand_where_kernels_tell_no_sums(
    model: nn.Module, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on GPUs: the rows of the map that count are made from queries and keys."""

    def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float) -> tuple[Tensor, None]:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout), None

    monkeypatch.setattr(fused_attention, 'fused_attention', attend)
    assert_equal_to_hand(model, small.batch(size), plan_for(model, r=30, n=2, k=4))


def test_a_share_is_of_the_valid_keys_of_each_image_and_small_images_stay_whole(model: nn.Module) -> None:
    data, plan = small.batch(2), plan_for(model, r=0.5, n=1, k=4, t=30)
    assert [len(ids) for ids in small.by_hand(model, data, plan)[1].kept] == [30, 30, 30]
    assert_equal_to_hand(model, data, plan)
    assert adapters.keys_per_layer(model, lambda: small.outputs(model, data)) == [48, 30, 30]
    assert adapters.keys_per_layer(model, lambda: small.outputs(model, small.batch(1))) == [48, 24, 24]


def test_the_background_column_does_not_count() -> None:
    model, data, plan = copy.deepcopy(MODELS['DETR']), small.batch(1), TgGBCPlan(r=30, n=1, k=2, activation='softmax')
    model.bbox_head.fc_cls.bias.data[-1] += 2.0  # as after training: most queries are background
    right, wrong = (small.by_hand(model, data, plan, background)[0].kept[1] for background in (False, True))
    assert not torch.equal(right, wrong)  # else the comparison would show nothing
    assert_equal_to_hand(model, data, plan)


@pytest.mark.parametrize('size', [1, 2])
def test_removing_nothing_and_detaching_are_bit_identical(model: nn.Module, size: int) -> None:
    data = small.batch(size)
    before, names = small.outputs(model, data), list(model.state_dict())
    adapters.attach(model, plan_for(model, r=0))
    assert adapters.is_attached(model) and same(small.outputs(model, data), before)
    for r in (20, 30):
        adapters.attach(model, plan_for(model, r=r, n=1))
        assert list(model.state_dict()) == names and not same(small.outputs(model, data), before)
    adapters.detach(model)
    assert not adapters.is_attached(model) and same(small.outputs(model, data), before)
    adapters.attach(model, plan_for(model, r=30, n=1))
    adapters.detach(model)
    assert same(small.outputs(model, data), before)
    assert 'forward' not in vars(model.decoder.layers[0].cross_attn) and not model.decoder.layers[0]._forward_hooks


def test_the_fused_kernel_changes_nothing_but_rounding(model: nn.Module) -> None:
    data = small.batch(2)
    before = small.outputs(model, data)
    adapters.attach(model, plan_for(model, r=30, n=1, t=KEYS))
    for found, expected in zip(small.outputs(model, data), before):
        torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-4)
    with pytest.raises(RuntimeError, match='nothing was pruned'):
        adapters.check_pruned(model, plan_for(model, r=30, n=1, t=KEYS))


def test_a_second_plan_replaces_the_first_and_a_refused_one_does_not(model: nn.Module) -> None:
    data = small.batch(1)
    adapters.attach(model, plan_for(model, r=20, n=1))
    adapters.attach(model, plan_for(model, r=6, n=1))
    assert adapters.keys_per_layer(model, lambda: small.outputs(model, data)) == [48, 42, 42]
    with pytest.raises(ValueError, match='valid are 1 to 2'):
        adapters.attach(model, plan_for(model, r=6, n=3))
    assert adapters.keys_per_layer(model, lambda: small.outputs(model, data)) == [48, 42, 42]


def test_kept_keys_without_a_plan(model: nn.Module) -> None:
    data = small.batch(2)
    before = small.outputs(model, data)
    kept = adapters.kept_keys(model, lambda: small.outputs(model, data))
    assert [ids.tolist() for ids in kept] == [[list(range(KEYS))] * 2] * small.LAYERS
    assert not adapters.is_attached(model) and same(small.outputs(model, data), before)


def test_too_many_keys_are_refused_and_the_next_pass_is_not_harmed(model: nn.Module) -> None:
    adapters.attach(model, plan_for(model, r=48, n=2))
    with pytest.raises(ValueError, match='r=48 of 48 keys leaves none'):
        small.outputs(model, small.batch(1))
    adapters.attach(model, plan_for(model, r=47, n=2))
    assert adapters.keys_per_layer(model, lambda: small.outputs(model, small.batch(1))) == [48, 26, 1]


@pytest.mark.parametrize('size', [1, 2])
def test_keys_are_counted_in_passing_and_nothing_changes(model: nn.Module, size: int) -> None:
    """The second image is smaller: of the keys of the batch, those count that the larger one has."""
    data, heard = small.batch(size), []
    expected = small.outputs(model, data)
    for plan in (plan_for(model, r=KEYS - 1), plan_for(model, r=KEYS), ToMePlan(r=KEYS // 2 + 1, n=1)):
        handle = adapters.check_in_passing(model, plan)
        if plan.r == KEYS - 1:
            handle_too = adapters.family_of(model).hear_keys(model, heard.append)
            assert same(small.outputs(model, data), expected) and heard == [KEYS]
            handle_too.remove()
        else:
            with pytest.raises(ValueError, match=r'leaves none|at most'):
                small.outputs(model, data)
        handle.remove()
    assert same(small.outputs(model, data), expected) and not adapters.is_attached(model)


def test_an_activation_that_is_not_the_head_s_is_refused(model: nn.Module) -> None:
    right = ACTIVATIONS[type(model).__name__]
    wrong = {'sigmoid': 'softmax', 'softmax': 'sigmoid'}[right]
    with pytest.raises(ValueError, match=f"set activation='{right}'"):
        adapters.attach(model, TgGBCPlan(r=10, activation=wrong))
    assert not adapters.is_attached(model)
    adapters.attach(model, TgGBCPlan(r=10, score='none'))


def test_removing_queries_is_refused(model: nn.Module) -> None:
    with pytest.raises(ValueError, match=r'q=4 removes queries, but .*TransformerDecoder needs the same queries'):
        adapters.attach(model, plan_for(model, r=10, q=4))


def test_stages(model: nn.Module) -> None:
    stages = adapters.stages(model)
    assert list(stages) == ['backbone', 'neck', 'encoder', 'decoder']
    assert stages['decoder'] is model.decoder and stages['encoder'] is model.encoder


def test_tome_merges_keys_and_positions_alike(model: nn.Module) -> None:
    data = small.batch(1)
    _, kept = prune(model, data, ToMePlan(r=30, n=2))
    assert [ids.shape[1] for ids in kept] == [48, 34, 18]
    with pytest.raises(ValueError, match='ToMe knows no masks'):
        small.outputs(model, small.batch(2))


def test_tome_of_twins_changes_nothing() -> None:
    model, query = copy.deepcopy(MODELS['DETR']), torch.randn(2, 6, 32)
    tokens = torch.randn(2, 10, 32, generator=torch.Generator().manual_seed(0)).repeat_interleave(2, dim=1)
    inputs = (query, tokens, tokens, query, tokens.flip(2), None)
    with torch.no_grad():
        before = model.decoder(*inputs)
        adapters.attach(model, ToMePlan(r=10, n=1))
        torch.testing.assert_close(model.decoder(*inputs), before, atol=2e-4, rtol=1e-4)
        assert adapters.keys_per_layer(model, lambda: model.decoder(*inputs)) == [20, 10, 10]


def test_gradients_reach_the_decoder_while_it_prunes(model: nn.Module) -> None:
    adapters.attach(model.train(), plan_for(model, r=30, n=2))
    logits, boxes = model(*small.batch(2), mode='tensor')
    (logits.square().sum() + boxes.square().sum()).backward()
    for layer in model.decoder.layers:
        assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.cross_attn.parameters())
    assert model.encoder.layers[0].ffn.layers[0][0].weight.grad.abs().sum() > 0


def test_prunes_under_autocast(model: nn.Module) -> None:
    data = small.batch(2)
    adapters.attach(model, plan_for(model, r=0.5, n=2, k=4))
    with torch.autocast('cpu', torch.bfloat16):
        logits, _ = small.outputs(model, data)
        assert adapters.keys_per_layer(model, lambda: small.outputs(model, data)) == [48, 36, 24]
    assert logits.isfinite().all()


def test_a_copy_prunes_by_itself(model: nn.Module) -> None:
    data = small.batch(1)
    adapters.attach(model, plan_for(model, r=30, n=1))
    twin = copy.deepcopy(model)
    adapters.detach(model)
    small.outputs(twin, data)
    assert adapters.family_of(twin).has_pruned(twin) and not adapters.is_attached(model)


@pytest.mark.parametrize('heads', [1, 4])
def test_masked_cross_attention(heads: int) -> None:
    """Every query keeps a key, and what is left equals attention to these keys alone."""
    model = copy.deepcopy(MODELS['DETR'])
    decoder, generator = model.decoder, torch.Generator().manual_seed(1)
    key, query = torch.randn(2, 20, 32, generator=generator), torch.randn(2, 6, 32, generator=generator)
    allowed = torch.arange(20) % 6 == torch.arange(6)[:, None]  # three or four keys for each query, no key for two
    mask = ~allowed if heads == 1 else (~allowed).expand(2 * heads, -1, -1)
    inputs = dict(query=query, value=key, query_pos=query, key_padding_mask=None)
    with torch.no_grad():
        adapters.attach(model, TgGBCPlan(r=18, n=1, k=3, activation='softmax'))
        call = lambda: decoder(**inputs, key=key, key_pos=key + 1, cross_attn_mask=mask)  # noqa: E731
        found, kept = call(), adapters.kept_keys(model, call)
        adapters.detach(model)
        assert [ids.shape[1] for ids in kept] == [20, 6, 6]
        for i, ids in enumerate(kept[1]):
            assert allowed[:, ids].any(1).all()
            first = dict(key=key[i : i + 1], value=key[i : i + 1], key_pos=key[i : i + 1] + 1, cross_attn_mask=~allowed)
            left = {name: tokens[:, ids] for name, tokens in first.items() if name != 'cross_attn_mask'}
            state = query[i : i + 1]
            for layer, given in zip(decoder.layers, (first, *[{**left, 'cross_attn_mask': ~allowed[:, ids]}] * 2)):
                state = layer(state, query_pos=query[i : i + 1], **given)
            torch.testing.assert_close(found[-1, i], decoder.post_norm(state)[0], atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ('mask', 'message'),
    [
        (torch.zeros(6, 20), 'valid are bool masks'),
        (torch.arange(8)[:, None, None].expand(-1, 6, 20) == 0, 'differ between heads'),
    ],
)
def test_masks_that_cannot_be_pruned_are_refused(mask: Tensor, message: str) -> None:
    model = copy.deepcopy(MODELS['DETR'])
    adapters.attach(model, TgGBCPlan(r=5, n=1, activation='softmax'))
    key, query = torch.randn(2, 20, 32), torch.randn(2, 6, 32)
    with pytest.raises(ValueError, match=message):
        model.decoder(query, key, key, query, key, None, cross_attn_mask=mask)


def test_under_the_hook(model: nn.Module) -> None:
    runner, data = SimpleNamespace(model=model), small.batch(2)
    before = small.outputs(model, data)
    activation = ACTIVATIONS[type(model).__name__]
    hook = HOOKS.build(dict(type='TgGBCHook', r=0.5, n=1, k=4, t=20, activation=activation))
    hook.before_test_epoch(runner)
    assert not same(small.outputs(model, data), before)
    hook.after_test_epoch(runner)
    assert same(small.outputs(model, data), before)
