from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mmprune3d.pruning import tggbc
from mmprune3d.pruning.schedules import split_over_layers
from mmprune3d.pruning.tggbc import (
    BLOCK,
    REMOVED_FIRST,
    attention_rows,
    choose_keys,
    confident_queries,
    fused_key_importance,
    key_importance,
    most_important,
    most_important_each,
    needed_keys,
    query_confidence,
)
from tests.reference import load, reference_files
from tests.test_pruning.choices import assert_same_choice, full_map

B, HEADS, QUERIES, DIM = 2, 3, 6, 8


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


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


def test_the_comparison_of_choices_sees_a_wrong_one() -> None:
    values = torch.tensor([[0.9, 0.5, 0.5, 0.1]])
    for right in ([0, 1], [2, 0]):
        assert_same_choice(torch.tensor([right]), values)
    for wrong in ([0, 3], [1, 2], [0, 0]):
        with pytest.raises(AssertionError):
            assert_same_choice(torch.tensor([wrong]), values)


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


def plain_confidence(logits: list[float], activation: str, score: str) -> float:
    """Eq. 5 and Table 5 for one query."""
    values = torch.tensor(logits, dtype=torch.float64)
    if score == 'none':
        return 1.0
    if activation == 'softmax':
        values = (values.exp() / values.exp().sum())[:-1]
    reduced = {'max': max, 'min': min, 'mean': lambda v: sum(v) / len(v)}[score](values.tolist())
    return reduced if activation == 'softmax' else float(torch.tensor(reduced).sigmoid())


@pytest.mark.parametrize(('activation', 'score'), product(('sigmoid', 'softmax'), ('max', 'mean', 'min', 'none')))
def test_confidence_of_every_kind(activation: str, score: str) -> None:
    logits = 3 * random(B, QUERIES, 4)
    expected = [[plain_confidence(query.tolist(), activation, score) for query in sample] for sample in logits]
    torch.testing.assert_close(query_confidence(logits, activation, score), torch.tensor(expected))


def test_background_of_a_softmax_head_never_counts() -> None:
    logits = torch.tensor([[[0.0, 1.0, 9.0], [2.0, 1.0, -9.0]]])
    assert query_confidence(logits, 'softmax').argmax() == 1
    assert query_confidence(logits, 'sigmoid').argmax() == 0


@pytest.mark.parametrize('padded', [False, True])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize('keys', [1, 7, 8, 9, 21])
def test_blockwise_importance_equals_that_of_the_full_map(
    monkeypatch: pytest.MonkeyPatch, keys: int, dtype: torch.dtype, padded: bool
) -> None:
    """Fewer keys than a block, a whole number of blocks, a rest; and the choice, for every number of keys to remove."""
    monkeypatch.setattr(tggbc, 'BLOCK', 8)
    query, key = 3 * random(B, HEADS, QUERIES, DIM), random(B, HEADS, keys, DIM, seed=1)
    query, key = query.to(dtype), key.to(dtype)
    padding = None
    if padded:
        padding = torch.zeros(B, keys, dtype=torch.bool)
        padding[0, 1::3] = padding[1, -(keys // 2) :] = keys > 1
    attention, log_sum = full_map(query, key, None if padding is None else padding[:, None])
    for k in range(1, QUERIES + 1):
        confidence = random(B, k, seed=k).sigmoid()
        expected = torch.einsum('bk,bkn->bn', confidence.double(), attention[:, :k]).float()
        if padding is not None:
            expected[padding] = REMOVED_FIRST
        found = fused_key_importance(confidence, query[:, :, :k], key, log_sum[..., :k], padding)
        rows = attention_rows(query[:, :, :k], key, None if padding is None else padding[:, None])
        for importance in (found, key_importance(confidence, rows, padding)):
            assert importance.dtype == torch.float32
            torch.testing.assert_close(importance, expected, atol=1e-6, rtol=1e-5)
            for remove in range(keys):
                assert_same_choice(most_important(importance, keys - remove), expected)


def test_the_last_block_may_be_short() -> None:
    keys = BLOCK + 5
    query, key = random(1, 1, 2, DIM), random(1, 1, keys, DIM, seed=1)
    attention, log_sum = full_map(query, key)
    found = fused_key_importance(torch.ones(1, 2), query, key, log_sum)
    torch.testing.assert_close(found, attention.sum(1).float(), atol=1e-7, rtol=1e-4)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_autocast_does_not_coarsen_importance(dtype: torch.dtype) -> None:
    query, key = 3 * random(B, HEADS, QUERIES, DIM), random(B, HEADS, 20, DIM, seed=1)
    confidence, log_sum = torch.rand(B, QUERIES), full_map(query, key)[1]

    def both() -> list[Tensor]:
        rows = attention_rows(query, key)
        return [fused_key_importance(confidence, query, key, log_sum), key_importance(confidence, rows)]

    with torch.autocast('cpu', dtype=dtype):
        under_autocast = both()
    for found, expected in zip(under_autocast, both(), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize('fused', [True, False])
def test_padded_keys_that_attract_attention_go_first(fused: bool) -> None:
    """Keys without an image may have scores far beyond what the softmax saw."""
    query, key = torch.full((1, 1, 2, DIM), 30.0), random(1, 1, 5, DIM)
    key[:, :, 3:] = 30.0
    padding = torch.tensor([[False, False, False, True, True]])
    log_sum = full_map(query, key, padding[:, None])[1]
    confidence = torch.tensor([[1.0, 0.0]])
    if fused:
        importance = fused_key_importance(confidence, query, key, log_sum, padding)
    else:
        importance = key_importance(confidence, attention_rows(query, key, padding[:, None]), padding)
    assert torch.equal(importance == REMOVED_FIRST, padding)
    assert importance.isfinite().all()
    assert set(most_important(importance, 3)[0].tolist()) == {0, 1, 2}


def test_padding_is_removed_before_keys_without_attention() -> None:
    padding = torch.tensor([[False, True, False, True], [False, False, False, True]])
    importance = key_importance(torch.zeros(2, 1), torch.full((2, 1, 4), 0.25), padding)
    assert torch.equal(importance == REMOVED_FIRST, padding)
    assert set(most_important(importance, 2)[0].tolist()) == {0, 2}


def test_a_query_that_may_attend_to_nothing_counts_nothing() -> None:
    query, key = random(1, 2, 2, DIM), random(1, 2, 4, DIM, seed=1)
    forbidden = torch.tensor([[[False, False, True, False], [True, True, True, True]]])
    rows = attention_rows(query, key, forbidden)
    torch.testing.assert_close(rows.sum(-1), torch.tensor([[1.0, 0.0]]))
    assert (rows[forbidden] == 0).all()
    assert key_importance(torch.ones(1, 2), rows).isfinite().all()


@pytest.mark.parametrize('keep', [7, 0, -1])
def test_removing_all_keys_is_refused(keep: int) -> None:
    with pytest.raises(ValueError, match=f'cannot keep {keep} of 6 keys; valid are 1 to 6'):
        most_important(torch.rand(1, 6), keep)


@pytest.mark.parametrize('seed', range(6))
def test_every_query_keeps_its_best_key(seed: int) -> None:
    """Against loops: the best allowed keys stay, the remaining places go to the most important keys."""
    keys, queries, batch = 12, 5, 3
    importance = random(batch, keys, seed=seed).sigmoid()
    forbidden = random(batch, queries, keys, seed=seed + 100) > -0.8
    forbidden[0] = True  # nobody may attend to anything
    forbidden[1, 0] = True
    padding = random(batch, keys, seed=seed + 200) > 1
    importance[padding] = REMOVED_FIRST
    needs = []
    for b in range(batch):
        reachable = [[j for j in range(keys) if not (row[j] or padding[b, j])] for row in forbidden[b]]
        needs.append({max(mine, key=lambda j, b=b: importance[b, j]) for mine in reachable if mine})
    needed = needed_keys(importance, forbidden)
    assert [set(row.nonzero().flatten().tolist()) for row in needed] == needs
    for remove in (0, 3, 8, keys - 1):
        kept = most_important(importance, keys - remove, forbidden)
        assert kept.shape[1] == max(keys - remove, *map(len, needs))
        for b, mine in enumerate(needs):
            others = sorted(set(range(keys)) - mine, key=lambda j, b=b: -importance[b, j])
            expected = mine | set(others[: kept.shape[1] - len(mine)])
            worth = sorted(float(importance[b, j]) for j in expected)
            assert mine <= set(kept[b].tolist())
            assert sorted(importance[b, kept[b]].tolist()) == pytest.approx(worth)


def test_samples_may_keep_different_numbers_of_keys() -> None:
    """As many places as the largest number; what a sample has too many is marked, and is its least important."""
    importance, forbidden = random(3, 12, seed=5).sigmoid(), random(3, 5, 12, seed=6) > 0
    needed = needed_keys(importance, forbidden).sum(1).tolist()
    for keep, mask in (([4, 12, 1], None), ([4, 7, 1], forbidden)):
        counts = keep if mask is None else [max(pair) for pair in zip(keep, needed, strict=True)]
        index, surplus = most_important_each(importance, keep, mask)
        assert index.shape == surplus.shape == (3, max(counts))
        for b, count in enumerate(counts):
            alone = most_important(importance[b : b + 1], keep[b], None if mask is None else mask[b : b + 1])
            assert set(index[b, ~surplus[b]].tolist()) == set(alone[0].tolist())
            assert surplus[b].tolist() == [False] * count + [True] * (max(counts) - count)


@pytest.mark.parametrize('score', ['max', 'none'])
@pytest.mark.parametrize('activation', ['sigmoid', 'softmax'])
@pytest.mark.parametrize('k', [0, 1, 4])
def test_the_whole_algorithm_equals_its_equations_one_number_at_a_time(k: int, activation: str, score: str) -> None:
    logits, attention = 2 * random(B, QUERIES, 4, seed=k), random(B, QUERIES, 15, seed=k + 1).softmax(-1)
    padding = torch.zeros(B, 15, dtype=torch.bool)
    padding[0, 3:6] = True
    importance = torch.zeros(B, 15)
    for b in range(B):
        scores = [plain_confidence(query.tolist(), activation, score) for query in logits[b]]
        voters = sorted(range(QUERIES), key=lambda q: (-scores[q], q))[: k or None]
        for j in range(15):
            importance[b, j] = -1 if padding[b, j] else sum(scores[q] * float(attention[b, q, j]) for q in voters)
    for keep in (1, 7, 14):
        assert_same_choice(choose_keys(logits, attention, keep, k, activation, score, padding), importance)
    assert torch.equal(choose_keys(logits, attention, 15, k), torch.arange(15).expand(B, 15))


@pytest.mark.reference
@pytest.mark.parametrize('path', reference_files('prune', 'tggbc_kept_keys*.pt'))
def test_kept_keys_are_those_of_the_official_code(path: Path) -> None:
    data = load(path)
    logits, attention = data['inputs']['cls_logits'], data['inputs']['attn_mean_over_heads']
    for case in data['outputs']:
        kept = choose_keys(logits, attention, attention.shape[2] - case['r'], max(case['k'], 0))
        assert torch.equal(kept.sort(1).values, case['kept']), f'r={case["r"]}, k={case["k"]}'


@pytest.mark.reference
@pytest.mark.parametrize('path', reference_files('prune', 'tggbc_schedules*.json'))
def test_schedules_are_those_of_the_official_code(path: Path) -> None:
    for case in json.loads(path.read_text()):
        removed = split_over_layers(case['r'], case['n'], case['layers'])
        assert list(removed) == case['keys_removed_after_each_layer'], case


def test_peaked_attention_has_no_denormal_weights() -> None:
    generator = torch.Generator().manual_seed(0)
    query, key = (8 * torch.randn(1, 2, count, 8, generator=generator) for count in (6, 50))
    confidence = torch.rand(1, 6, generator=generator)
    scores = query @ key.transpose(-2, -1) * 8**-0.5
    assert (scores - scores.logsumexp(-1, keepdim=True) < -120).any()  # their exponentials would be denormal or 0
    found = fused_key_importance(confidence, query, key, scores.logsumexp(-1))
    assert found.min() > torch.finfo(torch.float32).tiny
    expected = key_importance(confidence, scores.softmax(-1).mean(1))
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)
    real = expected > 1e-25
    torch.testing.assert_close(found[real].log(), expected[real].log(), atol=1e-3, rtol=0)
