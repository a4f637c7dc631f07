"""SST with A-ViT's tokens: two paths that agree, equal to a loop over tokens, and what trains them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mmprune3d.models.sst.avit_backbone import AViTGate, AViTSST
from mmprune3d.models.sst.backbone import SSTBackbone
from mmprune3d.models.sst.input_layer import WindowedTokens
from mmprune3d.pruning.avit import depth_prior_loss, ponder_loss
from mmprune3d.pruning.halting import HaltingRecord

from . import small_sst
from .slow_sst import slow_layer
from .small_sst import WIDTH, built, cloud, detector_config, scene

BLOCKS = 3


def backbone(dtype: torch.dtype = torch.float64, **options: Any) -> AViTSST:
    """With gates that let tokens halt at all depths."""
    return small_sst.backbone(AViTSST, dtype, **(dict(channels=12, gamma=8.0, beta=-1.0) | options))


def tokens(dtype: torch.dtype = torch.float64, count: int = 180) -> WindowedTokens:
    """Of samples 0 and 2; sample 1 has none."""
    return scene((count - count // 3, 0, count // 3), dtype=dtype)


def clear(record: HaltingRecord, eps: float = 0.01, margin: float = 2e-5) -> bool:
    """No token is so near to its threshold that rounding could decide."""
    return all(((step.scores - eps).abs() > margin)[step.scores > 0].all() for step in record.steps)


def same_decisions(a: HaltingRecord, b: HaltingRecord) -> bool:
    return len(a.steps) == len(b.steps) and all(
        x.layer == y.layer and torch.equal(x.rows, y.rows) and torch.equal(x.keep, y.keep)
        for x, y in zip(a.steps, b.steps)
    )


VARIANTS = [
    dict(),
    dict(output='hard'),
    dict(granularity='layer'),
    dict(granularity='layer', output='hard', layer_cfg=dict(cosine=True, post_norm=False)),
    dict(layer_cfg=dict(post_norm=False)),
    dict(layer_cfg=dict(cosine=True, non_shared_tau=True), gamma=12.0),
    dict(layer_cfg=dict(backend='explicit', head_dims=5)),
    dict(channels=3, in_channel=WIDTH, checkpoint_blocks=[1], gamma=20.0),
]


@pytest.mark.parametrize(('dtype', 'tolerance'), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize('options', VARIANTS)
def test_both_paths_agree_with_their_gradients(options: dict, dtype: torch.dtype, tolerance: float) -> None:
    model, given = backbone(dtype, **options), tokens(dtype)
    found = {}
    for path in ('edf', 'sparse'):
        model.zero_grad()
        (bev,), record = model.forward_with_record(given, path)
        target = torch.randn(bev.shape, generator=torch.Generator().manual_seed(1)).to(bev)
        ((bev * target).mean() + sum(model.regularization(record).values())).backward()
        found[path] = bev.detach(), record, [p.grad for p in model.parameters()]
    (edf, record, grads), (sparse, other, other_grads) = found['edf'], found['sparse']
    assert clear(record) and same_decisions(record, other)
    depths = set(record.halted_at().tolist())
    assert len(depths) == len(record.steps) + 1  # tokens halt at every decision, and some never
    assert (edf - sparse).abs().max() <= tolerance * edf.abs().max()
    for a, b in zip(record.steps, other.steps):
        torch.testing.assert_close(a.scores, b.scores, rtol=0, atol=10 * tolerance)
    for (name, _), a, b in zip(model.named_parameters(), grads, other_grads):
        assert a is not None and a.isfinite().all(), name
        b = torch.zeros_like(a) if b is None else b  # where the tokens that are left are alone in their windows
        assert (a - b).abs().max() <= 10 * tolerance * max(float(a.abs().max()), 1e-2), name


@torch.no_grad()
@pytest.mark.parametrize('path', ['edf', 'sparse'])
def test_scores_and_maps_are_added_up_in_float32_whatever_the_tokens_are(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = AViTGate(4, 5.0, -2.0).bfloat16()
    assert gate(torch.randn(3, 6).bfloat16()).dtype == torch.float32
    model, given, decided = backbone(torch.float32), tokens(torch.float32), []
    decide = AViTSST._decide
    monkeypatch.setattr(AViTSST, '_decide', lambda *args: decided.append(decide(*args)) or decided[-1])
    with torch.autocast('cpu', dtype=torch.bfloat16):
        (bev,), _ = model.forward_with_record(given, path)
    assert bev.dtype == torch.bfloat16
    assert {values.dtype for part, spent, _, _ in decided for values in (part, spent)} == {torch.float32}


def restated(model: AViTSST, given: WindowedTokens) -> tuple[Tensor, list[int], list[list[float]]]:
    """Token by token: what tokens leave on the map [N, C], depths, and all halting scores."""
    feats, count = given.feats.clone(), len(given.feats)
    spent, depth = [0.0] * count, [0] * count
    left_on_map, scores = torch.zeros_like(feats), [[] for _ in range(count)]
    layers = [layer for block in model.block_list for layer in block.encoder_list]
    per_unit = 2 if model.granularity == 'block' else 1
    for number, layer in enumerate(layers):
        alive = [token for token in range(count) if depth[token] == 0]
        rows = torch.tensor(alive)
        parts = feats[rows], given.positions[number % 2][rows], given.window_ids[number % 2][rows]
        feats = feats.index_copy(0, rows, slow_layer(layer, *parts))
        if (number + 1) % per_unit:
            continue
        unit = (number + 1) // per_unit
        for token in alive:
            h = 1.0
            if number < len(layers) - 1:
                gate = model.halting[unit - 1]
                logit = sum(float(w) * float(f) for w, f in zip(gate.weight, feats[token]))
                h = float(torch.tensor(gate.gamma * logit + gate.beta, dtype=torch.float64).sigmoid())
                scores[token].append(h)
            stops = number == len(layers) - 1 or spent[token] + h > 1 - model.eps
            share = 1 - spent[token] if stops else h
            if model.output == 'mean':
                left_on_map[token] += share * feats[token]
            elif stops:
                left_on_map[token] = feats[token]
            spent[token] += h
            depth[token] = unit if stops else 0
    return left_on_map, depth, scores


@pytest.mark.parametrize('options', VARIANTS[:3])
@torch.no_grad()
def test_equals_a_loop_over_tokens(options: dict) -> None:
    model, given = backbone(to_bev=False, **options), tokens(count=70)
    expected, depth, scores = restated(model, given)
    (found,), record = model.forward_with_record(given, 'sparse')
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    per_unit = 2 if model.granularity == 'block' else 1
    assert record.halted_at().tolist() == [n * per_unit for n in depth] and len(set(depth)) > 2
    rest = [1 - sum(h[: n - 1]) for n, h in zip(depth, scores)]
    assert float(ponder_loss(record)) == pytest.approx((sum(depth) + sum(rest)) / len(depth), rel=1e-12)
    losses = model.regularization(record)
    assert set(losses) == {'loss_ponder', 'loss_prior'}
    assert float(losses['loss_ponder']) == pytest.approx(5e-4 * float(ponder_loss(record)))
    centre = model.num_units * 2 / 3
    assert float(losses['loss_prior']) == pytest.approx(1e-3 * float(depth_prior_loss(record, centre)))


@pytest.mark.parametrize('path', ['edf', 'sparse'])
@pytest.mark.parametrize('options', VARIANTS[:2])
def test_losses_have_the_derivatives_of_finite_differences(options: dict, path: str) -> None:
    model, given = backbone(prior_weight=1.0, ponder_weight=1.0, **options), tokens(count=60)

    def losses() -> tuple[Tensor, HaltingRecord]:
        (bev,), record = model.forward_with_record(given, path)
        target = torch.randn(bev.shape, generator=torch.Generator().manual_seed(1)).to(bev)
        return (bev * target).sum() + sum(model.regularization(record).values()), record

    value, record = losses()
    value.backward()
    generator, step = torch.Generator().manual_seed(2), 1e-6
    for part in (list(model.halting.parameters()), list(model.block_list.parameters())):
        directions = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in part]
        expected = sum(float((p.grad * d).sum()) for p, d in zip(part, directions))
        values = []
        with torch.no_grad():
            for sign in (1, -2):
                for p, d in zip(part, directions):
                    p += sign * step * d
                moved, there = losses()
                assert same_decisions(record, there)
                values.append(float(moved))
            for p, d in zip(part, directions):
                p += step * d
        assert (values[0] - values[1]) / (2 * step) == pytest.approx(expected, rel=1e-5)


def test_mean_output_trains_gates_for_detection_and_hard_output_does_not() -> None:
    for output, trained in (('mean', True), ('hard', False)):
        model = backbone(output=output)
        model(tokens(), 'edf')[0].square().sum().backward()
        assert all((gate.weight.grad is not None) == trained for gate in model.halting)


@pytest.mark.parametrize('path', ['edf', 'sparse'])
@pytest.mark.parametrize('output', ['mean', 'hard'])
@torch.no_grad()
def test_without_halting_it_is_sst(output: str, path: str) -> None:
    model, given = backbone(beta=-2000.0, output=output), tokens()
    plain = small_sst.backbone(SSTBackbone)
    added = plain.load_state_dict(model.state_dict(), strict=False)
    assert not added.missing_keys and all(key.startswith('halting.') for key in added.unexpected_keys)
    maps, record = model.forward_with_record(given, path)
    if path == 'sparse':
        assert torch.equal(maps[0], plain(given)[0])
    torch.testing.assert_close(maps, plain(given), rtol=0, atol=1e-12)
    assert record.mean_sparsity() == 0


@pytest.mark.parametrize('path', ['edf', 'sparse'])
@pytest.mark.parametrize('count', [0, 1, 40])
@pytest.mark.parametrize('granularity', ['block', 'layer'])
def test_all_halt_after_the_first_unit(count: int, path: str, granularity: str) -> None:
    model, given = backbone(beta=2000.0, granularity=granularity, to_bev=False), tokens(count=count)
    (found,), record = model.forward_with_record(given, path)
    feats, plans = given.feats, model.plan(given)
    if granularity == 'block':
        expected = model.run_block(0, feats, given.positions, plans)
    else:
        expected = model.block_list[0].encoder_list[0](feats, given.positions[0], plans[0])
    assert torch.equal(found, expected)
    assert [len(step.rows) for step in record.steps] == [count] + [0] * (len(record.steps) - 1)
    (found.sum() + sum(model.regularization(record).values())).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    if path == 'edf':  # nothing is unused, which distributed training needs
        assert all(p.grad is not None for name, p in model.named_parameters() if 'conv_layer' not in name)


def test_record_of_a_step_is_the_layer_behind_the_unit() -> None:
    for granularity, layers in (('block', [2, 4]), ('layer', [1, 2, 3, 4, 5])):
        _, record = backbone(granularity=granularity).forward_with_record(tokens(), 'sparse')
        assert [step.layer for step in record.steps] == layers and record.num_layers == 6


def test_the_map_alone_is_the_same_in_either_mode() -> None:
    model, given = backbone(), tokens()
    model.requires_grad_(False)
    maps, _ = model.forward_with_record(given, 'sparse')
    assert torch.equal(model(given)[0], maps[0])
    model.train()
    model.conv_layer.eval()  # its batch norm
    assert torch.equal(model(given)[0], maps[0])


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(granularity='token'), 'valid are block, layer'),
        (dict(output='soft'), 'valid are mean, hard'),
        (dict(eps=0.0), 'eps='),
        (dict(channels=WIDTH + 1), 'between 1 and'),
        (dict(channels=0), 'between 1 and'),
        (dict(prior_width=0.0), 'prior_width'),
        (dict(layer_cfg=dict(use_bn=True)), 'layer norm'),
        (dict(num_blocks=1), 'at least 2'),
    ],
)
def test_bad_options_are_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        backbone(**options)
    with pytest.raises(ValueError, match='valid are edf, sparse'):
        backbone()(tokens(), 'dense')


def detector(**changes: Any) -> nn.Module:
    config = detector_config(**changes)
    del config['backbone']['halting']
    config['backbone'].update(type='AViTSST', channels=8, beta=-1.0)
    torch.manual_seed(0)
    return built(config)


def batch(model: nn.Module, training: bool) -> dict:
    sample = cloud(0)
    data = dict(inputs=dict(points=[sample['inputs']['points']]), data_samples=[sample['data_samples']])
    return model.data_preprocessor(data, training)


@pytest.mark.filterwarnings('ignore::UserWarning')
def test_detector_trains_it_with_its_own_losses() -> None:
    model, heard = detector().train(), []
    model.record_listeners.append(lambda record, boxes: heard.append((record, boxes)))
    losses = model(**batch(model, training=True), mode='loss')
    assert {'loss_ponder', 'loss_prior'} < set(losses) and 'loss_halting' not in losses
    assert 5e-4 < float(losses['loss_ponder'].detach()) <= 5e-4 * 3
    model.parse_losses(losses)[0].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    with torch.no_grad():
        model.eval()(**batch(model, training=False), mode='predict')
    assert [type(record) for record, _ in heard] == [HaltingRecord] * 2
    assert all(not step.scores.requires_grad for record, _ in heard for step in record.steps)


def test_detector_takes_no_losses_that_it_would_ignore() -> None:
    with pytest.raises(ValueError, match='AViTSST has its own losses'):
        detector(sparsity_loss=dict(kind='uniform'))
