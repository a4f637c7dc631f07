from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mmprune3d.pruning.schedules import split_over_layers
from mmprune3d.pruning.tggbc import (
    REMOVED_FIRST,
    confident_queries,
    keep_important,
    key_importance,
    query_confidence,
)
from tests.reference import load, reference_files


def plain_importance(logits: Tensor, attention: Tensor, k: int) -> Tensor:
    """Eq. 5-9 one number at a time."""
    importance = torch.zeros(attention.shape[0], attention.shape[2])
    for b in range(attention.shape[0]):
        scores = [max(1 / (1 + (-c).exp()) for c in query) for query in logits[b]]
        chosen = sorted(range(len(scores)), key=lambda q: -scores[q])[:k]
        for j in range(attention.shape[2]):
            importance[b, j] = sum(scores[q] * attention[b, q, j] for q in chosen)
    return importance


def importance_of(logits: Tensor, attention: Tensor, k: int) -> Tensor:
    confidence, index = confident_queries(query_confidence(logits), k)
    rows = attention.gather(1, index.unsqueeze(-1).expand(-1, -1, attention.shape[2]))
    return key_importance(confidence, rows)


@pytest.mark.parametrize('k', [1, 4, 7])
def test_importance_equals_the_equations(k: int) -> None:
    generator = torch.Generator().manual_seed(k)
    logits, attention = torch.randn(2, 7, 3, generator=generator), torch.rand(2, 7, 11, generator=generator)
    torch.testing.assert_close(importance_of(logits, attention, k), plain_importance(logits, attention, k))


def test_k_zero_or_too_large_means_all_queries() -> None:
    confidence = torch.rand(2, 5)
    for k in (0, 5, 99):
        scores, index = confident_queries(confidence, k)
        assert torch.equal(index.sort(1).values, torch.arange(5).expand(2, 5))
        assert torch.equal(scores, confidence.gather(1, index))


def test_background_of_a_softmax_head_never_counts() -> None:
    logits = torch.tensor([[[0.0, 1.0, 9.0], [2.0, 1.0, -9.0]]])
    torch.testing.assert_close(query_confidence(logits, 'softmax'), logits.softmax(-1)[..., :2].amax(-1))


def test_padded_keys_go_first() -> None:
    padding = torch.tensor([[False, True, False, True], [False, False, False, True]])
    importance = key_importance(torch.ones(2, 1), torch.full((2, 1, 4), 0.25), padding)
    assert torch.equal(importance == REMOVED_FIRST, padding)
    assert set(keep_important(importance, 2)[0].tolist()) == {0, 2}


@pytest.mark.parametrize('remove', [-1, 6, 7])
def test_removing_all_keys_is_refused(remove: int) -> None:
    with pytest.raises(ValueError, match='valid are 0 to 5'):
        keep_important(torch.rand(1, 6), remove)


@pytest.mark.reference
@pytest.mark.parametrize('path', reference_files('prune', 'tggbc_kept_keys*.pt'))
def test_kept_keys_are_those_of_the_official_code(path: Path) -> None:
    data = load(path)
    logits, attention = data['inputs']['cls_logits'], data['inputs']['attn_mean_over_heads']
    for case in data['outputs']:
        kept = keep_important(importance_of(logits, attention, max(case['k'], 0)), case['r'])
        assert torch.equal(kept.sort(1).values, case['kept']), f'r={case["r"]}, k={case["k"]}'


@pytest.mark.reference
@pytest.mark.parametrize('path', reference_files('prune', 'tggbc_schedules*.json'))
def test_schedules_are_those_of_the_official_code(path: Path) -> None:
    for case in json.loads(path.read_text()):
        removed = split_over_layers(case['r'], case['n'], case['layers'])
        assert list(removed) == case['keys_removed_after_each_layer'], case
