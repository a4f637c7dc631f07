from __future__ import annotations

import torch

from mmprune3d.inspect.keys import Listener, attention_kept, markdown
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
