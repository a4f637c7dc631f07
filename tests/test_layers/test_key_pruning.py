from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mmprune3d.layers.attention import AttentionRecord, Keys
from mmprune3d.layers.key_pruning import TgGBCKeyPruner
from mmprune3d.models.petr import PETR3DDecoder
from mmprune3d.pruning.plan import TgGBCPlan

LAYERS, WIDTH, QUERIES, KEYS, CLASSES = 4, 32, 10, 40, 5


@pytest.fixture
def decoder() -> PETR3DDecoder:
    torch.manual_seed(3)
    return PETR3DDecoder(LAYERS, WIDTH, num_heads=4, feedforward_channels=48).eval()


@pytest.fixture
def branches() -> torch.nn.ModuleList:
    torch.manual_seed(4)
    return torch.nn.ModuleList(torch.nn.Linear(WIDTH, CLASSES) for _ in range(LAYERS))


def inputs(batch: int, padded: bool) -> tuple[Tensor, Keys, Tensor]:
    generator = torch.Generator().manual_seed(batch)
    content, pos = (torch.randn(batch, KEYS, WIDTH, generator=generator) for _ in range(2))
    mask = torch.arange(KEYS) >= torch.tensor([[KEYS - 3 * b] for b in range(batch)]) if padded else None
    query, query_pos = (torch.randn(batch, QUERIES, WIDTH, generator=generator) for _ in range(2))
    return query, Keys(content + pos, content, mask), query_pos


def prune_one_sample_at_a_time(
    decoder: PETR3DDecoder, branches: torch.nn.ModuleList, plan: TgGBCPlan, data: tuple[Tensor, Keys, Tensor]
) -> tuple[Tensor, list[list[set[int]]]]:
    """The slow obvious way: full attention maps, a full sort, boolean indexing."""
    outputs, kept = [], []
    for b in range(len(data[0])):
        query, query_pos = data[0][b : b + 1], data[2][b : b + 1]
        keys = Keys(*(None if part is None else part[b : b + 1] for part in data[1]))
        ids, rows, sets = torch.arange(KEYS), [], []
        for index, layer in enumerate(decoder.layers):
            sets.append(set(ids.tolist()))
            query = layer.norms[0](layer.attentions[0].reference(query, Keys(query + query_pos, query), query_pos)[0])
            query, attention = layer.attentions[1].reference(query, keys, query_pos)
            query = layer.norms[2](layer.ffns[0](layer.norms[1](query)))
            rows.append(decoder.post_norm(query))
            remove = plan.removals(LAYERS, KEYS)[index]
            if not remove:
                continue
            score = branches[index](rows[-1]).max(-1).values.sigmoid()[0]
            best = score.argsort(descending=True)[: plan.k or None]
            importance = (score[best, None] * attention[0][best]).sum(0)
            if keys.padding_mask is not None:
                importance[keys.padding_mask[0]] = -1
            stay = importance.argsort()[remove:].sort().values
            keys, ids = keys.map(lambda part, stay=stay: part[:, stay]), ids[stay]
        outputs.append(torch.cat(rows))
        kept.append(sets)
    return torch.stack(outputs, 1), kept


@torch.no_grad()
@pytest.mark.parametrize('padded', [False, True])
@pytest.mark.parametrize('batch', [1, 3])
@pytest.mark.parametrize(('r', 'n', 'k'), [(17, 1, 4), (30, 3, 0), (39, 2, 10), (1, 1, 99)])
def test_pruned_decoder_equals_the_slow_obvious_way(
    decoder: PETR3DDecoder, branches: torch.nn.ModuleList, r: int, n: int, k: int, batch: int, padded: bool
) -> None:
    plan, data = TgGBCPlan(r=r, n=n, k=k), inputs(batch, padded)
    expected, kept = prune_one_sample_at_a_time(decoder, branches, plan, data)
    decoder.key_pruner = pruner = TgGBCKeyPruner(plan, LAYERS, record=True)
    outputs = decoder(*data, score_fn=lambda layer, query: branches[layer](query)).queries
    padding = data[1].padding_mask if padded else torch.zeros(batch, KEYS, dtype=torch.bool)
    for b in range(batch):
        # which of several padded keys goes first is nobody's business
        real = set((~padding[b]).nonzero().squeeze(1).tolist())
        assert [set(ids[b].tolist()) & real for ids in pruner.kept] == [ids & real for ids in kept[b]]
    torch.testing.assert_close(outputs, expected, atol=1e-5, rtol=1e-5)
    assert [ids.shape[1] for ids in pruner.kept] == list(plan.keys_per_layer(KEYS, LAYERS))
    assert pruner.has_pruned


@torch.no_grad()
def test_removing_nothing_is_bit_identical(decoder: PETR3DDecoder, branches: torch.nn.ModuleList) -> None:
    data = inputs(2, True)
    before = decoder(*data, score_fn=None).queries
    decoder.key_pruner = TgGBCKeyPruner(TgGBCPlan(r=0), LAYERS)
    assert torch.equal(decoder(*data, score_fn=lambda layer, query: branches[layer](query)).queries, before)


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
def test_a_plan_that_leaves_no_key_is_refused(decoder: PETR3DDecoder, branches: torch.nn.ModuleList) -> None:
    decoder.key_pruner = TgGBCKeyPruner(TgGBCPlan(r=KEYS, n=1), LAYERS)
    with pytest.raises(ValueError, match=f'valid are 0 to {KEYS - 1}'):
        decoder(*inputs(1, False), score_fn=lambda layer, query: branches[layer](query))


def test_a_plan_with_too_many_layers_is_refused() -> None:
    with pytest.raises(ValueError, match=f'valid are 1 to {LAYERS - 1}'):
        TgGBCKeyPruner(TgGBCPlan(r=10, n=LAYERS), LAYERS)
