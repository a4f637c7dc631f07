from __future__ import annotations

import pytest
import torch

from mmprune3d.inspect.keys import Listener, attention_kept, attention_on, listening, markdown, mean_attention_kept
from mmprune3d.layers.attention import Keys
from mmprune3d.models.petr import PETR3DDecoder

LAYERS, QUERIES, KEYS, WIDTH = 4, 30, 60, 32


@torch.no_grad()
def test_table_equals_sums_over_full_maps() -> None:
    torch.manual_seed(0)
    decoder, branch = PETR3DDecoder(LAYERS, WIDTH, 4, 48).eval(), torch.nn.Linear(WIDTH, 5)
    query, tokens = torch.randn(1, QUERIES, WIDTH), 3 * torch.randn(1, KEYS, WIDTH)
    decoder.key_pruner = listener = Listener()
    decoder(query, Keys(tokens + 1, tokens), query, lambda layer, normed: branch(normed))
    table = attention_kept(listener, 0.25)
    everything = torch.arange(QUERIES)[None]
    maps = [record.rows(everything)[0] for record in listener.records]
    shown = listener.confidence[-1][0].argsort(descending=True)[:20]
    for j in range(LAYERS - 1):
        importance = (listener.confidence[j][0][:, None] * maps[j]).sum(0)  # k exceeds the queries: all vote
        stay = importance.argsort(descending=True)[: KEYS // 4]
        for i in range(LAYERS - 1):
            torch.testing.assert_close(table[j, i], maps[i][shown][:, stay].sum(1).mean())
    assert (table.diagonal() >= 0.25).all()
    lines = list(markdown(table, 0.25, 1))
    assert sum(line.startswith('| ') for line in lines) == LAYERS


@torch.no_grad()
def test_attention_on_kept_keys_equals_a_sum_over_full_maps() -> None:
    torch.manual_seed(1)
    decoder, branch = PETR3DDecoder(LAYERS, WIDTH, 4, 48).eval(), torch.nn.Linear(WIDTH, 5)
    query, tokens = torch.randn(1, QUERIES, WIDTH), 3 * torch.randn(1, KEYS, WIDTH)
    with listening(decoder) as fresh:
        listener = fresh()
        decoder(query, Keys(tokens + 1, tokens), query, lambda layer, normed: branch(normed))
    assert decoder.key_pruner is None and len(listener.records) == LAYERS - 1
    kept = [torch.randperm(KEYS)[None, :count] for count in (KEYS, 20, 7, 7)]
    found = attention_on(listener, kept)
    shown = listener.confidence[-1][0].argsort(descending=True)[:20]
    for layer, record in enumerate(listener.records):
        attention = record.rows(torch.arange(QUERIES)[None])[0][shown]
        torch.testing.assert_close(found[layer], attention[:, kept[layer][0]].sum(1).mean())
    assert len(found) == LAYERS - 1 and float(found[0]) == pytest.approx(1)


def test_a_detector_that_tells_no_attention_is_left_alone() -> None:
    with listening(torch.nn.Linear(1, 1)) as fresh:
        assert fresh() is None
    assert mean_attention_kept(torch.nn.Linear(1, 1), [lambda: None], 0.5) is None
