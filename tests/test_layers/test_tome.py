"""ToMe between the layers of a decoder, against loops over single tokens."""

from __future__ import annotations

import pytest
import torch

from mmprune3d.layers.attention import Keys
from mmprune3d.layers.key_pruning import make_pruner
from mmprune3d.layers.tome import ToMeKeyPruner
from mmprune3d.models.petr import PETR3DDecoder
from mmprune3d.pruning.tome import ToMePlan, bipartite_matching, merge_tokens
from tests.test_layers.slow_decoder import run_layer
from tests.test_pruning.test_tome import merge_slowly

from .small_decoder import HEADS, KEYS, LAYERS, QUERIES, WIDTH, inputs


@torch.no_grad()
@pytest.mark.parametrize('r', [[12], [20, 10], [15, 0, 11]], ids=str)
def test_tome_in_a_decoder_equals_the_slow_obvious_way(decoder: PETR3DDecoder, r: list[int]) -> None:
    """Similarity of projected keys, averaged over heads; keys and values merged alike, weighted by size."""
    data, removals = inputs(2), [*r, 0, 0, 0]
    decoder.key_pruner = pruner = ToMeKeyPruner(ToMePlan(r=r), LAYERS, record=True)
    outputs = decoder(*data, score_fn=None).queries
    for b in range(2):
        query, query_pos = data[0][b : b + 1], data[2][b : b + 1]
        key, value, sizes = data[1].key[b], data[1].value[b], [1.0] * KEYS
        for index, layer in enumerate(decoder.layers):
            query, _ = run_layer(layer, query, Keys(key[None], value[None]), query_pos)
            torch.testing.assert_close(outputs[index, b], decoder.post_norm(query)[0], atol=1e-5, rtol=1e-5)
            if index < LAYERS - 1 and removals[index]:
                attention = layer.attentions[1].attn
                part = slice(WIDTH, 2 * WIDTH)
                projected = key @ attention.in_proj_weight[part].T + attention.in_proj_bias[part]
                metric = projected.view(-1, HEADS, WIDTH // HEADS).mean(1)
                key, new_sizes = merge_slowly(metric, key, sizes, removals[index])
                value, sizes = merge_slowly(metric, value, sizes, removals[index])[0], new_sizes
    assert [ids.shape[1] for ids in pruner.kept] == list(ToMePlan(r=r).keys_per_layer(KEYS, LAYERS))
    assert all(len(set(ids[0].tolist())) == ids.shape[1] for ids in pruner.kept)
    assert pruner.has_pruned


def test_tome_refuses_padding(decoder: PETR3DDecoder) -> None:
    decoder.key_pruner = ToMeKeyPruner(ToMePlan(r=10), LAYERS)
    with pytest.raises(ValueError, match='ToMe knows no masks'):
        decoder(*inputs(2, (40, 30)), score_fn=None)


def test_tome_refuses_more_than_half(decoder: PETR3DDecoder) -> None:
    decoder.key_pruner = ToMeKeyPruner(ToMePlan(r=21, n=1), LAYERS)
    with pytest.raises(ValueError, match='cannot merge 21 of 40 keys in one layer; at most 20'):
        decoder(*inputs(2), score_fn=None)


@torch.no_grad()
@pytest.mark.parametrize('settings', [dict(r=0, q=3, n=1), dict(r=0, q=5, n=2), dict(r=10, q=6, n=2)], ids=str)
def test_merged_queries(decoder: PETR3DDecoder, settings: dict) -> None:
    """Layer by layer: the most similar projected queries become their mean, and go on as one."""
    plan, data = ToMePlan(**settings), inputs(2)
    decoder.key_pruner = make_pruner(plan, LAYERS)
    decoded = decoder(*data, score_fn=None, all_layers=False)
    assert decoded.queries.shape[2] == QUERIES - plan.q
    content, keys, query_pos = data
    query, size, key_size, belongs = content, None, None, torch.eye(QUERIES).expand(2, -1, -1)
    for index, layer in enumerate(decoder.layers):
        query, record = layer(query, keys, query_pos)
        removed, merged = plan.removals(LAYERS, keys.key.shape[1])[index], plan.query_removals(LAYERS)[index]
        if removed:
            matching, before = bipartite_matching(record.key.mean(1), removed), key_size
            key_size = merge_tokens(keys.key[..., :1], matching, before)[1]
            keys = keys.map(lambda tokens, m=matching, s=before: merge_tokens(tokens, m, s)[0])
        if merged:
            matching = bipartite_matching(record.query.mean(1), merged)
            query_pos, belongs = (merge_tokens(tokens, matching, size)[0] for tokens in (query_pos, belongs))
            query, size = merge_tokens(query, matching, size)
    torch.testing.assert_close(decoded.queries[-1], torch.nan_to_num(decoder.post_norm(query)))
    # a reference point of a merged query is the mean of those of its members
    points = torch.rand(2, QUERIES, 3)
    torch.testing.assert_close(decoded.reduce(points), belongs @ points)
    members = belongs > 0
    assert (members.sum(1) == 1).all() and members.sum() == 2 * QUERIES
