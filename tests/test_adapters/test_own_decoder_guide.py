"""The examples of the guide docs/user_guides/own_decoder.md run, and do what the guide says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from mmprune3d import adapters
from mmprune3d.pruning.tggbc import TgGBCPlan

GUIDE = Path(__file__).resolve().parents[2] / 'docs' / 'user_guides' / 'own_decoder.md'


@pytest.fixture
def guide(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """All that the guide's code defines, run from top to bottom."""
    monkeypatch.setattr(adapters, 'FAMILIES', list(adapters.FAMILIES))
    torch.manual_seed(0)
    names: dict[str, Any] = {}
    for block in re.findall(r'^```python\n(.*?)^```', GUIDE.read_text(), re.MULTILINE | re.DOTALL):
        exec(compile(block, str(GUIDE), 'exec'), names)
    return names


def test_the_example_does_what_it_says(guide: dict[str, Any]) -> None:
    assert guide['keys'] == [1000, 750, 500]
    assert torch.equal(guide['after'], guide['before']) and not torch.equal(guide['pruned'], guide['before'])


def test_it_keeps_the_keys_of_full_maps_and_heeds_padding(guide: dict[str, Any]) -> None:
    model, tokens, positions = guide['model'], guide['tokens'][:1], guide['positions'][:1]
    padding = torch.zeros(1, 1000, dtype=torch.bool)
    padding[:, 900:] = True
    adapters.attach(model, TgGBCPlan(r=500, n=1, k=4))
    with torch.no_grad():
        kept = adapters.kept_keys(model, lambda: model(tokens, positions, padding))
        adapters.detach(model)
        layer, query, keys = model.decoder.layers[0], model.queries[None], tokens + positions
        attention = layer.cross_attention(query, keys, tokens, key_padding_mask=padding)[1][0]
        confidence = model.classify(layer(query, keys, tokens, padding))[0].sigmoid().amax(-1)
    best = confidence.topk(4).indices
    importance = (confidence[best, None] * attention[best]).sum(0)
    assert torch.equal(kept[1][0].sort().values, importance.topk(500).indices.sort().values)


def test_a_decoder_with_a_place_for_the_pruner_needs_no_adapter(guide: dict[str, Any]) -> None:
    model, inputs = guide['PrunableDetector']().eval(), (guide['tokens'], guide['positions'])
    with torch.no_grad():
        before = model(*inputs)
        adapters.attach(model, TgGBCPlan(r=0.5, n=2, k=10))
        assert adapters.keys_per_layer(model, lambda: model(*inputs)) == [1000, 750, 500]
        adapters.detach(model)
        assert torch.equal(model(*inputs), before)


def test_every_name_of_the_table_exists() -> None:
    from mmprune3d.adapters.layer_hooks import HookedDecoder

    names = re.findall(r'^\| `(\w+)` \|', GUIDE.read_text(), re.MULTILINE)
    assert len(names) == 9
    assert all(hasattr(HookedDecoder, name) for name in names)
    assert HookedDecoder.__abstractmethods__ <= set(names)
