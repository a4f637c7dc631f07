from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mmprune3d.pruning import tome
from mmprune3d.pruning.tome import bipartite_matching, merge_tokens
from tests.reference import load, reference_files


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def merge_slowly(metric: Tensor, tokens: Tensor, sizes: list[float], r: int) -> tuple[Tensor, list[float]]:
    """One sample, one pair at a time: the r most similar of all sources, each to its best destination."""
    sources, destinations = range(0, len(metric), 2), range(1, len(metric), 2)
    similarity = F.cosine_similarity(metric[:, None], metric[None], dim=-1)
    best = {i: max(destinations, key=lambda j, i=i: similarity[i, j]) for i in sources}
    order = sorted(sources, key=lambda i: -similarity[i, best[i]])
    sums = {j: tokens[j] * sizes[j] for j in range(len(metric))}
    sizes = dict(enumerate(sizes))
    for i in order[:r]:
        sums[best[i]] = sums[best[i]] + sums[i]
        sizes[best[i]] += sizes[i]
    left = [*order[r:], *destinations]
    return torch.stack([sums[j] / sizes[j] for j in left]), [sizes[j] for j in left]


@pytest.mark.parametrize('num', [3, 9, 10])
def test_merging_twice_equals_the_slow_obvious_way(num: int) -> None:
    """The second merge weighs tokens by how many they stand for."""
    tokens, metrics = random(2, num, 3), [random(2, num, 4, seed=s) for s in (1, 2)]
    found, size = tokens, None
    slow = [(sample, [1.0] * num) for sample in tokens]
    for metric in metrics:
        metric = metric[:, : found.shape[1]]
        r = found.shape[1] // 2
        found, size = merge_tokens(found, bipartite_matching(metric, r), size)
        slow = [merge_slowly(metric[b], *slow[b], r) for b in range(2)]
        torch.testing.assert_close(found, torch.stack([sample for sample, _ in slow]))
        assert size.squeeze(-1).tolist() == [sizes for _, sizes in slow]
        torch.testing.assert_close((found * size).sum(1), tokens.sum(1))


@pytest.mark.parametrize('value', [0.0, 1.0])
def test_of_equally_similar_pairs_the_first_ones_merge(value: float) -> None:
    """Also where all tokens are zeros, which have no direction."""
    matching = bipartite_matching(torch.full((2, 100, 4), value), 20)
    assert matching.merge.tolist() == [list(range(20))] * 2
    assert matching.stay.tolist() == [list(range(20, 50))] * 2
    assert (matching.into == 0).all()


def test_a_token_of_zeros_changes_nothing_for_the_others() -> None:
    metric = random(1, 40, 5)
    metric[:, 7] = 0
    matching, others = bipartite_matching(metric, 6), metric.clone()
    others[:, 7] = -metric[:, ::2].mean(1)  # like hardly any
    assert torch.equal(matching.merge, bipartite_matching(others, 6).merge)
    assert not (matching.into == 3).any()


def test_merging_nothing_changes_the_order_only() -> None:
    tokens = random(2, 7, 3)
    merged, size = merge_tokens(tokens, bipartite_matching(tokens, 0))
    assert torch.equal(merged.sort(1).values, tokens.sort(1).values)
    assert (size == 1).all()


def test_blocks_of_sources_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    metric = random(2, 21, 5)
    whole = bipartite_matching(metric, 6)
    monkeypatch.setattr(tome, 'BLOCK', 4)
    assert all(map(torch.equal, bipartite_matching(metric, 6), whole))


def test_half_precision_counts_and_sums_exactly() -> None:
    """601 tokens that meet in one: bfloat16 knows no number between 600 and 604."""
    tokens = random(1, 1200, 1).bfloat16()
    matching = bipartite_matching(torch.ones(1, 1200, 2), 600)
    merged, size = merge_tokens(tokens, matching)
    assert int(size.max()) == 601
    assert merged.dtype == torch.bfloat16
    assert torch.equal(merged, merge_tokens(tokens.float(), matching)[0].bfloat16())


@pytest.mark.parametrize('r', [-1, 4])
def test_more_pairs_than_there_are_is_refused(r: int) -> None:
    with pytest.raises(ValueError, match=f'cannot merge {r} of 7 tokens; valid are 0 to 3'):
        bipartite_matching(random(1, 7, 2), r)


@pytest.mark.reference
@pytest.mark.parametrize('path', reference_files('prune', 'tome_merge*.pt'))
def test_merged_tokens_are_those_of_the_official_code(path: Path) -> None:
    data = load(path)
    metric, tokens = data['inputs']['metric'], data['inputs']['x']
    for case in data['outputs']:
        merged, _ = merge_tokens(tokens, bipartite_matching(metric, case['r']))
        torch.testing.assert_close(merged, case['merged_mean'], atol=1e-6, rtol=0)
