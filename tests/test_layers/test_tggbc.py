from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mmprune3d.layers.attention import AttentionRecord, Keys
from mmprune3d.layers.key_pruning import ScoreFunction, make_pruner
from mmprune3d.layers.tggbc import TgGBCKeyPruner, log_clamp
from mmprune3d.models.petr import PETR3DDecoder
from mmprune3d.pruning.key_plan import KeyPlan
from mmprune3d.pruning.tggbc import REMOVED_FIRST, TgGBCPlan, choose_keys
from mmprune3d.pruning.tome import ToMePlan
from tests.test_layers.slow_decoder import Inputs, Spy, decode
from tests.test_pruning.choices import assert_same_choice, full_map
from tests.test_pruning.test_tome import merge_slowly

from .small_decoder import CLASSES, HEADS, KEYS, LAYERS, QUERIES, WIDTH, inputs, score_by


def check(decoder: PETR3DDecoder, branches: nn.ModuleList, plan: TgGBCPlan, data: Inputs) -> None:
    """Runs the pruned decoder and compares everything with the slow obvious way."""
    slow = decode(decoder, score_by(branches), plan, data)
    decoder.key_pruner = spy = Spy(TgGBCKeyPruner(plan, LAYERS, record=True))
    outputs = decoder(*data, score_fn=score_by(branches)).queries
    expected = torch.stack([torch.stack(sample.outputs) for sample in slow], 1)
    assert spy.pruner.has_pruned == any(sample.keys[0] != sample.keys[-1] for sample in slow)
    assert len(spy.pruner.kept) == LAYERS
    for layer, seen in enumerate(spy.seen(data[1])[:LAYERS]):
        assert seen == [sample.keys[layer] for sample in slow], f'layer {layer}'
    torch.testing.assert_close(outputs, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize('valid', [(), (40, 37, 34)], ids=['full', 'padded'])
@pytest.mark.parametrize('batch', [1, 3])
@pytest.mark.parametrize(('r', 'n', 'k'), [(17, 1, 4), (30, 3, 0), (33, 2, 10), (1, 1, 99), ([3, 0, 20], None, 3)])
def test_counts(
    decoder: PETR3DDecoder,
    branches: nn.ModuleList,
    r: int | list[int],
    n: int | None,
    k: int,
    batch: int,
    valid: tuple[int, ...],
) -> None:
    plan, data = TgGBCPlan(r=r, n=n, k=k), inputs(batch, valid)
    check(decoder, branches, plan, data)
    kept = decoder.key_pruner.pruner.kept
    assert [ids.shape[1] for ids in kept] == list(plan.keys_per_layer(KEYS, LAYERS))


@torch.no_grad()
@pytest.mark.parametrize('valid', [(), (40, 29, 12), (25, 25, 25), (9, 40, 40)], ids=str)
@pytest.mark.parametrize('batch', [1, 3])
@pytest.mark.parametrize(
    'settings',
    [
        dict(r=0.5, n=2, k=4),
        dict(r=0.9, n=1),
        dict(r=0.6, n=3, score='none'),
        dict(r=(0.3, 0.0, 0.3), score='mean'),
        dict(r=(0.4, 0.2), activation='softmax', score='min'),
        dict(r=0.5, n=2, t=20),
        dict(r=[5, 5, 5], t=24, k=2),
        dict(r=30, n=1, t=36),
    ],
    ids=str,
)
def test_each_sample_keeps_what_it_would_keep_alone(
    decoder: PETR3DDecoder, branches: nn.ModuleList, settings: dict, batch: int, valid: tuple[int, ...]
) -> None:
    """Shares and thresholds are about valid keys: padding must change nothing, neighbours in the batch neither."""
    check(decoder, branches, TgGBCPlan(**settings), inputs(batch, valid))


@torch.no_grad()
@pytest.mark.parametrize('valid', [(), (40, 37, 34)], ids=['full', 'padded'])
@pytest.mark.parametrize(
    'settings', [dict(k=4), dict(k=0, score='none'), dict(activation='softmax', score='mean', k=7)], ids=str
)
def test_keys_are_those_of_the_algorithm_written_down_as_in_the_paper(
    decoder: PETR3DDecoder, branches: nn.ModuleList, settings: dict, valid: tuple[int, ...]
) -> None:
    """`choose_keys` has the whole attention map; the pruner never has."""
    plan, data, expected = TgGBCPlan(r=30, n=3, **settings), inputs(3, valid), []

    def choose(layer: int, query: Tensor, keys: Keys, record: AttentionRecord, score_fn: ScoreFunction) -> None:
        keep = plan.keys_per_layer(KEYS, LAYERS)[layer + 1]
        attention = record.rows(torch.arange(QUERIES).expand(len(query), -1))
        logits = score_fn(layer, query)
        expected.append(choose_keys(logits, attention, keep, plan.k, plan.activation, plan.score, record.padding_mask))

    decoder.key_pruner = spy = Spy(TgGBCKeyPruner(plan, LAYERS, record=True), choose)
    decoder(*data, score_fn=score_by(branches))
    assert [index.shape[1] for index in expected] == [30, 20, 10]
    for layer, index in enumerate(expected):
        before, after = spy.pruner.kept[layer : layer + 2]
        assert torch.equal(before.gather(1, index).sort(1).values, after.sort(1).values)


@torch.no_grad()
@pytest.mark.parametrize('make', [TgGBCPlan, ToMePlan])
def test_the_record_says_which_layers_got_other_keys(
    decoder: PETR3DDecoder, branches: nn.ModuleList, make: type[KeyPlan]
) -> None:
    decoder.key_pruner = pruner = make_pruner(make(r=[3, 0, 5]), LAYERS, record=True)
    for _ in range(2):  # the second forward pass begins anew
        decoder(*inputs(2), score_fn=score_by(branches))
        assert pruner.recorded.changed == [1, 3]
        assert [ids.shape[1] for ids in pruner.recorded.kept] == [40, 37, 37, 32]
    decoder.key_pruner = pruner = make_pruner(make(r=[3, 0, 5]), LAYERS)
    decoder(*inputs(2), score_fn=score_by(branches))
    assert pruner.kept == pruner.recorded.changed == []
    pruner.record = True
    decoder(*inputs(2), score_fn=score_by(branches))
    assert pruner.recorded.changed == [1, 3]


@torch.no_grad()
def test_a_forward_pass_forgets_the_one_before(decoder: PETR3DDecoder, branches: nn.ModuleList) -> None:
    decoder.key_pruner = pruner = TgGBCKeyPruner(TgGBCPlan(r=0.5, n=2), LAYERS, record=True)
    for batch, valid in ((3, (40, 20, 7)), (1, (33,)), (2, ())):
        decoder(*inputs(batch, valid), score_fn=score_by(branches))
        left = max(count - count // 2 for count in valid or (KEYS,))
        assert [ids.shape for ids in (pruner.kept[0], pruner.kept[-1])] == [(batch, KEYS), (batch, left)]
        assert len(pruner.kept) == LAYERS


@torch.no_grad()
@pytest.mark.parametrize('plan', [TgGBCPlan(r=0), TgGBCPlan(r=0.01), TgGBCPlan(r=39, t=KEYS), ToMePlan(r=0)], ids=str)
def test_removing_nothing_is_bit_identical(decoder: PETR3DDecoder, branches: nn.ModuleList, plan: KeyPlan) -> None:
    data = inputs(2, (40, 31) if plan.method == 'tggbc' else ())
    before = decoder(*data, score_fn=None).queries
    decoder.key_pruner = pruner = make_pruner(plan, LAYERS)
    assert torch.equal(decoder(*data, score_fn=None).queries, before)
    assert not pruner.has_pruned


@torch.no_grad()
def test_all_tensors_of_the_keys_are_trimmed_alike() -> None:
    batch, remove = 2, 25
    numbered = torch.arange(KEYS, dtype=torch.float32).expand(batch, KEYS)
    content = numbered[..., None].repeat(1, 1, WIDTH)
    keys = Keys(content + 1000, content, numbered > 30)
    pruner = TgGBCKeyPruner(TgGBCPlan(r=remove, n=1, k=3), LAYERS)
    torch.manual_seed(0)
    trimmed = pruner(
        0,
        torch.randn(batch, QUERIES, WIDTH),
        keys,
        AttentionRecord(torch.randn(batch, 1, QUERIES, 4), torch.randn(batch, 1, KEYS, 4)),
        lambda layer, query: query[..., :CLASSES],
    ).keys
    ids = trimmed.value[..., 0]
    assert ids.shape == (batch, KEYS - remove)
    assert torch.equal(trimmed.key[..., 0], ids + 1000)
    assert torch.equal(trimmed.padding_mask, ids > 30)


@torch.no_grad()
@pytest.mark.parametrize('settings', [dict(r=30, n=1), dict(r=0.9, n=1), dict(r=5, n=1)], ids=str)
def test_queries_with_few_allowed_keys_keep_their_best_one(settings: dict) -> None:
    """Two samples, one of them padded; every query may attend to three keys only, some of them padding."""
    generator = torch.Generator().manual_seed(7)
    places = torch.rand(2, QUERIES, KEYS, generator=generator).argsort(-1)
    padding = torch.arange(KEYS).expand(2, KEYS) >= torch.tensor([[KEYS], [30]])
    numbered = torch.arange(KEYS, dtype=torch.float32).expand(2, KEYS)[..., None]
    keys = Keys(numbered, numbered, padding, places >= 3)
    record = AttentionRecord(
        torch.randn(2, 1, QUERIES, 4, generator=generator),
        torch.randn(2, 1, KEYS, 4, generator=generator),
        padding,
        attention_mask=keys.attention_mask,
    )
    logits = torch.randn(2, QUERIES, CLASSES, generator=generator)
    pruner = TgGBCKeyPruner(TgGBCPlan(**settings, k=4), LAYERS)
    left = pruner(0, torch.zeros(2, QUERIES, WIDTH), keys, record, lambda layer, query: logits).keys
    forbidden = keys.attention_mask | padding[:, None]
    assert left.attention_mask.shape == (2, QUERIES, left.key.shape[1])
    for b in range(2):
        ids = left.value[b, :, 0].long()
        assert torch.equal(left.attention_mask[b], keys.attention_mask[b][:, ids])
        can, could = ~(left.attention_mask[b] | left.padding_mask[b]), ~forbidden[b]
        assert torch.equal(can.any(-1), could.any(-1))


@torch.no_grad()
@pytest.mark.parametrize('settings', [dict(r=0, q=3, n=1), dict(r=10, q=7, n=2), dict(r=0.5, q=9, n=3)], ids=str)
@pytest.mark.parametrize('valid', [(), (40, 22)], ids=str)
def test_query_pruning(decoder: PETR3DDecoder, branches: nn.ModuleList, settings: dict, valid: tuple[int, ...]) -> None:
    plan, data = TgGBCPlan(**settings, k=4), inputs(2, valid)
    slow = decode(decoder, score_by(branches), plan, data)
    decoder.key_pruner = spy = Spy(TgGBCKeyPruner(plan, LAYERS, record=True))
    decoded = decoder(*data, score_fn=score_by(branches), all_layers=False)
    ids = decoded.reduce(torch.arange(QUERIES)[None, :, None].expand(len(decoded.queries[0]), -1, -1))[..., 0]
    order = ids.sort(1)
    assert order.values.tolist() == [sample.queries[-1] for sample in slow]
    assert ids.shape[1] == QUERIES - plan.q
    outputs = decoded.queries[0].gather(1, order.indices[..., None].expand(-1, -1, WIDTH))
    torch.testing.assert_close(outputs, torch.stack([sample.outputs[-1] for sample in slow]), atol=1e-5, rtol=1e-5)
    assert [list(sample) for sample in zip(*spy.seen(data[1]), strict=True)] == [sample.keys for sample in slow]
    assert spy.pruner.has_pruned


def test_query_pruning_needs_the_last_layer_alone(decoder: PETR3DDecoder, branches: nn.ModuleList) -> None:
    decoder.key_pruner = TgGBCKeyPruner(TgGBCPlan(r=0, q=3), LAYERS)
    with pytest.raises(ValueError, match='only with all_layers=False, the last layer alone'):
        decoder(*inputs(1), score_fn=score_by(branches))


def test_queries_under_a_mask_are_not_pruned(decoder: PETR3DDecoder, branches: nn.ModuleList) -> None:
    free = torch.zeros(QUERIES, QUERIES, dtype=torch.bool)
    decoder.key_pruner = TgGBCKeyPruner(TgGBCPlan(r=0, q=3), LAYERS)
    with pytest.raises(ValueError, match='cannot be pruned between layers where the self-attention has a mask'):
        decoder(*inputs(1), score_fn=score_by(branches), self_attn_mask=free, all_layers=False)
    decoder.key_pruner = None
    decoder(*inputs(1), score_fn=score_by(branches), self_attn_mask=free)
    with pytest.raises(ValueError, match=r'has the shape \[9, 9\], but there are 10 queries, of which 2 are denoising'):
        decoder(*inputs(1), score_fn=score_by(branches), self_attn_mask=free[1:, 1:], num_denoising=2)


@pytest.mark.parametrize(('q', 'n', 'message'), [(10, 1, '10 of 10'), (21, 2, '10 of 10'), (13, 2, '7 of 4')])
def test_a_plan_that_leaves_no_query_is_refused(
    decoder: PETR3DDecoder, branches: nn.ModuleList, q: int, n: int, message: str
) -> None:
    decoder.key_pruner = TgGBCKeyPruner(TgGBCPlan(r=0, q=q, n=n), LAYERS)
    with pytest.raises(ValueError, match=f'q={q} removes {message} queries after layer'):
        decoder(*inputs(1), score_fn=score_by(branches), all_layers=False)


@torch.no_grad()
@pytest.mark.parametrize('settings', [dict(r=KEYS, n=1), dict(r=[20, 25])], ids=str)
def test_a_plan_that_leaves_no_key_is_refused(decoder: PETR3DDecoder, branches: nn.ModuleList, settings: dict) -> None:
    decoder.key_pruner = TgGBCKeyPruner(TgGBCPlan(**settings), LAYERS)
    with pytest.raises(ValueError, match=f'valid are 0 to {KEYS - 1}'):
        decoder(*inputs(1), score_fn=score_by(branches))


@pytest.mark.parametrize('plan', [TgGBCPlan(r=10, n=LAYERS), ToMePlan(r=[1] * LAYERS)], ids=str)
def test_a_plan_with_too_many_layers_is_refused(plan: KeyPlan) -> None:
    with pytest.raises(ValueError, match=f'valid are 1 to {LAYERS - 1}'):
        make_pruner(plan, LAYERS)


def test_too_large_a_k_is_said_once(
    decoder: PETR3DDecoder, branches: nn.ModuleList, monkeypatch: pytest.MonkeyPatch
) -> None:
    log_clamp.cache_clear()
    said = []
    monkeypatch.setattr('mmprune3d.layers.tggbc.print_log', lambda message, **_: said.append(message))
    for _ in range(2):  # as in training, where every iteration attaches anew
        decoder.key_pruner = TgGBCKeyPruner(TgGBCPlan(r=10, k=QUERIES + 1), LAYERS)
        decoder(*inputs(1), score_fn=score_by(branches))
    assert said == ['tgGBC: k=11 exceeds the 10 queries; all of them count']


@torch.no_grad()
@pytest.mark.parametrize(
    'plan', [TgGBCPlan(r=0.5, n=2, k=4), TgGBCPlan(r=10, n=2, k=4, t=3), TgGBCPlan(r=30, n=2, k=4)]
)
@pytest.mark.parametrize('valid', [(40, 0), (0, 33), (0, 0)])
def test_a_sample_without_any_valid_key_changes_nothing_for_the_others(
    decoder: PETR3DDecoder, branches: nn.ModuleList, plan: TgGBCPlan, valid: tuple[int, int]
) -> None:
    query, keys, query_pos = inputs(2, valid)
    decoder.key_pruner = pruner = TgGBCKeyPruner(plan, LAYERS, record=True)
    outputs = decoder(query, keys, query_pos, score_fn=score_by(branches)).queries
    assert outputs.isfinite().all()
    together = pruner.kept
    for sample, count in enumerate(valid):
        alone = Keys(*(None if part is None else part[sample : sample + 1] for part in keys[:3]))
        one = slice(sample, sample + 1)
        found = decoder(query[one], alone, query_pos[one], score_fn=score_by(branches)).queries
        torch.testing.assert_close(outputs[:, one], found)
        if count:
            for both, own in zip(together, pruner.kept, strict=True):
                assert set(both[sample].tolist()) - {-1} == set(own[0].tolist()) - {-1}


@torch.no_grad()
def test_padded_keys_are_dropped_from_the_back(decoder: PETR3DDecoder, branches: nn.ModuleList) -> None:
    """They are all worth the same, so that the first ones stay."""
    query, keys, query_pos = inputs(2, (0, 40))
    decoder.key_pruner = pruner = TgGBCKeyPruner(TgGBCPlan(r=12, n=1, k=4), LAYERS, record=True)
    decoder(query, keys, query_pos, score_fn=score_by(branches))
    assert pruner.kept[1][0].tolist() == list(range(KEYS - 12))


@torch.no_grad()
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize('autocast', [False, True])
def test_half_precision_keeps_what_float32_would(
    decoder: PETR3DDecoder, branches: nn.ModuleList, dtype: torch.dtype, autocast: bool
) -> None:
    """The choice is that of importance in full precision, from the queries and keys that the kernel saw."""
    data, importance = inputs(2, (40, 30)), []

    def expect(layer: int, query: Tensor, keys: Keys, record: AttentionRecord, score_fn: object) -> None:
        confidence = branches[layer](query).float().max(-1).values.sigmoid()
        best = confidence.sort(dim=1, descending=True, stable=True)  # half precision has ties
        attention = full_map(record.query, record.key, record.padding_mask[:, None])[0]
        rows = torch.stack([attention[b, best.indices[b, :4]] for b in range(2)])
        weighed = torch.einsum('bk,bkn->bn', best.values[:, :4].double(), rows).float()
        importance.append(weighed.masked_fill(record.padding_mask, REMOVED_FIRST))

    plan = TgGBCPlan(r=28, n=2, k=4)
    decoder.key_pruner = spy = Spy(TgGBCKeyPruner(plan, LAYERS, record=True), expect)
    if autocast:
        with torch.autocast('cpu', dtype=dtype, enabled=dtype != torch.float32):
            outputs = decoder(*data, score_fn=lambda layer, query: branches[layer](query).float()).queries
    else:
        decoder.to(dtype), branches.to(dtype)
        data = (data[0].to(dtype), Keys(*(part.to(dtype) for part in data[1][:2]), data[1][2]), data[2].to(dtype))
        outputs = decoder(*data, score_fn=score_by(branches)).queries
    assert outputs.isfinite().all()
    before, after, last = spy.pruner.kept[:3]
    assert_same_choice(after, importance[0])
    again = [[(ids == one).nonzero().item() for one in chosen] for ids, chosen in zip(after, last, strict=True)]
    assert_same_choice(torch.tensor(again), importance[1])
    assert last.shape[1] == before.shape[1] - 28


@pytest.mark.parametrize('plan', [TgGBCPlan(r=20, n=2, k=4), TgGBCPlan(r=0.5, k=4), ToMePlan(r=20)], ids=str)
@pytest.mark.parametrize('with_cp', [False, True])
def test_gradients_reach_the_keys_through_every_layer(branches: nn.ModuleList, plan: KeyPlan, with_cp: bool) -> None:
    torch.manual_seed(3)
    decoder = PETR3DDecoder(LAYERS, WIDTH, HEADS, feedforward_channels=48, with_cp=with_cp).train()
    query, keys, query_pos = inputs(2, (40, 30) if plan.method == 'tggbc' else ())
    content = keys.value.requires_grad_()
    decoder.key_pruner = spy = Spy(make_pruner(plan, LAYERS))
    outputs = decoder(query, keys._replace(key=content + 1), query_pos, score_fn=score_by(branches)).queries
    loss = outputs[-1].square().sum()
    for left in spy.left:  # what the next layer saw
        for tokens in (left.key, left.value):
            gradient = torch.autograd.grad(loss, tokens, retain_graph=True)[0]
            assert gradient.isfinite().all()
            assert gradient.any()
    loss.backward()
    assert content.grad.isfinite().all()
    assert all(parameter.grad is None for parameter in branches.parameters())  # scoring trains nothing


@pytest.mark.parametrize('plan', [TgGBCPlan(r=20, n=1, k=4), ToMePlan(r=20, n=1)], ids=str)
def test_kept_keys_have_the_gradient_of_the_same_keys_chosen_by_hand(plan: KeyPlan) -> None:
    torch.manual_seed(0)
    content = torch.randn(1, KEYS, WIDTH, requires_grad=True)
    record = AttentionRecord(torch.randn(1, HEADS, QUERIES, 8), torch.randn(1, HEADS, KEYS, 8))
    pruner = make_pruner(plan, LAYERS, record=True)
    logits = torch.randn(1, QUERIES, CLASSES)
    left = pruner(0, torch.zeros(1, QUERIES, WIDTH), Keys(content, content), record, lambda *_: logits).keys
    assert left.key is left.value
    weights = torch.randn(left.key.shape)
    found = torch.autograd.grad((left.key * weights).sum(), content)[0]
    if plan.method == 'tggbc':
        ids = pruner.kept[-1][0]
        expected = torch.zeros_like(content)
        expected[0, ids] = weights[0]
    else:
        merged = merge_slowly(record.key.mean(1)[0], content[0], [1.0] * KEYS, 20)[0]
        expected = torch.autograd.grad((merged * weights[0]).sum(), content)[0]
    torch.testing.assert_close(found, expected)
