"""The rule, the record and the straight-through estimator of token halting, against slow restatements."""

from __future__ import annotations

from fractions import Fraction
from math import ceil, floor

import pytest
import torch
from torch import Tensor

from mmprune3d.pruning.halting import (
    HaltingRecord,
    HaltingStep,
    check_halting_rule,
    keep_by_rank,
    straight_through,
    would_be_kept,
)

BOUNDS = [(0.8, 0.9), (0.9, 0.99), (0.3, 0.7), (0.5, 0.5), (0.0, 1.0), (0.0, 0.0), (1.0, 1.0)]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def numbers_kept(total: int, bounds: tuple[float, float]) -> tuple[int, int]:
    """Least and largest number of tokens that may be kept, in exact decimal arithmetic."""
    lower, upper = (Fraction(str(bound)) for bound in bounds)
    least, most = ceil(total * (1 - upper)), floor(total * (1 - lower))
    return least, max(least, most)


def keep_slowly(
    scores: list[float], sample: list[int], totals: list[int], threshold: float, bounds: tuple[float, float]
) -> list[bool]:
    keep = [False] * len(scores)
    for b, total in enumerate(totals):
        rows = [row for row, other in enumerate(sample) if other == b]
        least, most = numbers_kept(total, bounds)
        count = max(least, min(most, sum(scores[row] >= threshold for row in rows)))
        for row in sorted(rows, key=lambda row: (-scores[row], row))[:count]:
            keep[row] = True
    return keep


def batch(ties: bool, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Scores of samples of 37, 0, 1, 200 and 2 tokens, mixed in order; of sample 3 more tokens were halted before."""
    sizes = torch.tensor([37, 0, 1, 200, 2])
    sample = torch.arange(5).repeat_interleave(sizes)
    sample = sample[torch.randperm(len(sample), generator=torch.Generator().manual_seed(seed))]
    scores = random(len(sample), seed=seed + 1)
    return (scores * 8).round() / 8 if ties else scores, sample, sizes + torch.tensor([0, 3, 0, 800, 0])


@pytest.mark.parametrize('bounds', BOUNDS)
@pytest.mark.parametrize('threshold', [0.0, 0.01, 0.5, 0.85, 0.96, 1.0])
@pytest.mark.parametrize('ties', [False, True])
def test_rule_equals_the_slow_obvious_way(bounds: tuple[float, float], threshold: float, ties: bool) -> None:
    scores, sample, totals = batch(ties)
    found = keep_by_rank(scores, sample, totals, threshold, bounds)
    assert found.tolist() == keep_slowly(scores.tolist(), sample.tolist(), totals.tolist(), threshold, bounds)
    assert found.dtype == torch.bool


@pytest.mark.parametrize('bounds', [(0.8, 0.9), (0.9, 0.99), (0.3, 0.7), (0.7, 0.9)])
def test_bounds_are_meant_in_decimals(bounds: tuple[float, float]) -> None:
    """A tenth of 10 tokens is 1, although 10 * (1 - 0.9) is not."""
    for total in range(1, 200):
        scores, sample = random(total, seed=total), torch.zeros(total, dtype=torch.int64)
        least, most = numbers_kept(total, bounds)
        kept = [int(keep_by_rank(scores, sample, torch.tensor([total]), u, bounds).sum()) for u in (1.0, 0.0)]
        assert kept == [least, most]


@pytest.mark.parametrize('bounds', [(0.8, 0.9), (0.25, 0.5), (0.0, 0.95)])
@pytest.mark.parametrize('threshold', [0.01, 0.45, 0.82, 0.99])
def test_rule_without_ties_is_the_threshold_clamped_to_quantiles(bounds: tuple[float, float], threshold: float) -> None:
    scores = random(220, seed=3)
    ascending = scores.sort().values
    lower, upper = (Fraction(str(bound)) for bound in bounds)
    quantiles = ascending[ceil(220 * lower)], ascending[floor(220 * upper)]
    clamped = min(max(threshold, float(quantiles[0])), float(quantiles[1]))
    found = keep_by_rank(scores, torch.zeros(220, dtype=torch.int64), torch.tensor([220]), threshold, bounds)
    assert torch.equal(found, scores >= clamped)
    share = 1 - found.double().mean()
    assert bounds[0] - 1e-9 <= share <= bounds[1] + 1e-9


def test_inside_the_bounds_the_rule_is_the_threshold() -> None:
    scores = random(300, seed=5)
    found = keep_by_rank(scores, torch.arange(300) % 3, torch.tensor([100, 100, 100]), 0.5, (0.1, 0.9))
    assert torch.equal(found, scores >= 0.5)


@pytest.mark.parametrize(('value', 'kept'), [(0.0, 100), (1.0, 200)])
def test_equal_scores_cannot_escape_the_bounds(value: float, kept: int) -> None:
    """A clamp to quantiles would keep all 1000; the first ones in order are kept instead."""
    found = keep_by_rank(torch.full((1000,), value), torch.zeros(1000).long(), torch.tensor([1000]), 0.01, (0.8, 0.9))
    assert found.nonzero().flatten().tolist() == list(range(kept))


def test_samples_do_not_see_each_other() -> None:
    scores, sample, totals = batch(ties=True)
    together = keep_by_rank(scores, sample, totals, 0.9, (0.6, 0.9))
    for b in range(len(totals)):
        own = sample == b
        alone = keep_by_rank(scores[own], torch.zeros(int(own.sum())).long(), totals[b, None], 0.9, (0.6, 0.9))
        assert torch.equal(together[own], alone)


def test_no_token_at_all() -> None:
    empty = torch.zeros(0)
    assert keep_by_rank(empty, empty.long(), torch.tensor([0, 0]), 0.5, (0.8, 0.9)).shape == (0,)


def test_not_a_number_is_a_lowest_score() -> None:
    scores = torch.tensor([float('nan'), 0.2, 0.0, float('nan'), 0.9])
    sample, totals = torch.zeros(5, dtype=torch.int64), torch.tensor([5])
    for kept, rows in ((2, [1, 4]), (3, [1, 2, 4]), (4, [0, 1, 2, 4])):
        share = 1 - kept / 5
        assert keep_by_rank(scores, sample, totals, 1.0, (share, share)).nonzero().flatten().tolist() == rows


@pytest.mark.parametrize('bounds', [(0.9, 0.8), (-0.1, 0.5), (0.5, 1.1), (float('nan'), 0.9), (0.5,)])
def test_invalid_bounds(bounds: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match='0 <= lower <= upper <= 1'):
        check_halting_rule(0.01, bounds)
    with pytest.raises(ValueError, match='0 <= lower <= upper <= 1'):
        keep_by_rank(torch.rand(3), torch.zeros(3).long(), torch.tensor([3]), 0.01, bounds)


@pytest.mark.parametrize('threshold', [-0.01, 1.01, float('nan')])
def test_invalid_threshold(threshold: float) -> None:
    with pytest.raises(ValueError, match='must be a score'):
        check_halting_rule(threshold, (0.8, 0.9))


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.bfloat16])
def test_straight_through_is_exact_and_passes_gradients_on(dtype: torch.dtype) -> None:
    seeded = torch.Generator().manual_seed(7)
    scores = torch.rand(5000, generator=seeded, dtype=torch.float64).to(dtype).requires_grad_()
    keep = random(5000, seed=8) < 0.5
    number = straight_through(keep, scores)
    assert torch.equal(number.detach(), keep.to(dtype))
    summed_from_the_left = keep.to(dtype) + scores - scores.detach()
    assert not torch.equal(summed_from_the_left.detach(), keep.to(dtype))
    weights = random(5000, seed=9).to(dtype)
    assert torch.equal(torch.autograd.grad((number * weights).sum(), scores)[0], weights)


@pytest.mark.parametrize('bounds', [(0.8, 0.9), (0.3, 0.7), (1.0, 1.0)])
def test_halted_tokens_would_be_kept_above_the_least_score_kept(bounds: tuple[float, float]) -> None:
    scores, sample, totals = batch(ties=True)
    live = random(len(scores), seed=6) < 0.5
    decided = torch.zeros_like(live)
    decided[live] = keep_by_rank(scores[live], sample[live], totals, 0.5, bounds)
    found = would_be_kept(scores, sample, decided, len(totals))
    assert torch.equal(found[live], decided[live])
    for row in (~live).nonzero().flatten().tolist():
        kept = scores[decided & (sample == sample[row])]
        assert bool(found[row]) is (len(kept) > 0 and bool(scores[row] > kept.min()))


def record() -> HaltingRecord:
    """Samples of 6, 0 and 2 tokens, 6 layers: rows 1, 4 and 5 halt before layer 0, rows 2 and 7 before layer 2."""
    coords = torch.zeros(8, 4, dtype=torch.int64)
    coords[6:, 0] = 2
    coords[:, 3] = torch.arange(8)
    first, second = torch.arange(8), torch.tensor([0, 2, 3, 6, 7])
    steps = (
        HaltingStep(0, first, random(8), torch.tensor([1, 0, 1, 1, 0, 0, 1, 1]).bool()),
        HaltingStep(2, second, random(5), torch.tensor([1, 0, 1, 1, 0]).bool()),
    )
    return HaltingRecord(steps, coords, 3, 6)


def test_record_tells_when_each_token_was_halted() -> None:
    found = record()
    assert found.halted_at().tolist() == [6, 0, 2, 6, 0, 0, 6, 2]
    live = found.live()
    assert live.shape == (6, 8) and live.dtype == torch.bool
    for layer in range(6):
        assert live[layer].tolist() == [layer < halted for halted in [6, 0, 2, 6, 0, 0, 6, 2]]


def test_sparsity_is_the_share_of_halted_tokens() -> None:
    found = record()
    assert found.sparsity().tolist() == pytest.approx([3 / 8] * 2 + [5 / 8] * 4)
    assert found.mean_sparsity() == pytest.approx((2 * 3 / 8 + 4 * 5 / 8) / 6)
    of_the_last_sample = found.sparsity(found.coords[:, 0] == 2)
    assert of_the_last_sample.tolist() == pytest.approx([0] * 2 + [1 / 2] * 4)


def test_record_without_decisions_or_tokens() -> None:
    dense = HaltingRecord((), record().coords, 3, 4)
    assert dense.halted_at().tolist() == [4] * 8
    assert dense.sparsity().tolist() == [0] * 4 and dense.mean_sparsity() == 0
    none = torch.zeros(0, dtype=torch.int64)
    empty = HaltingRecord((HaltingStep(0, none, none.float(), none.bool()),), torch.zeros(0, 4).long(), 2, 4)
    assert empty.live().shape == (4, 0) and empty.mean_sparsity() == 0
    assert record().sparsity(torch.zeros(8).bool()).tolist() == [0] * 6


@pytest.mark.parametrize('layers', [(2, 0), (1, 1), (0, 6), (-1, 0)])
def test_steps_ascend_within_the_transformer(layers: tuple[int, int]) -> None:
    good = record()
    steps = tuple(HaltingStep(layer, s.rows, s.scores, s.keep) for layer, s in zip(layers, good.steps, strict=True))
    with pytest.raises(ValueError, match='must ascend'):
        HaltingRecord(steps, good.coords, 3, 6)


def test_a_step_has_one_score_and_decision_per_row() -> None:
    with pytest.raises(ValueError, match=r'rows, scores and keep'):
        HaltingStep(0, torch.arange(3), torch.rand(2), torch.ones(3).bool())
    with pytest.raises(ValueError, match=r'keep bool'):
        HaltingStep(0, torch.arange(3), torch.rand(3), torch.ones(3))
