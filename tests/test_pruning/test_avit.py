"""The bookkeeping of adaptive computation time for tokens, against a loop over tokens and finite differences."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mmprune3d.pruning.avit import AViTRecord, check_eps, depth_prior_loss, ponder_cost, ponder_loss, ponder_step
from mmprune3d.pruning.halting import HaltingStep

UNITS, TOKENS = 4, 60


def table(tokens: int = TOKENS, shift: float = 0.0, seed: int = 0) -> Tensor:
    """Scores [UNITS - 1, tokens] that all tokens would have, halted or not."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(UNITS - 1, tokens, generator=generator, dtype=torch.float64) * 2 + shift).sigmoid()


def by_token(scores: list[float], eps: float) -> tuple[int, float, list[float]]:
    """N, remainder and weights of one token, from the equations."""
    spent, weights = 0.0, []
    for unit, h in enumerate([*scores, 1.0], start=1):
        if unit == UNITS or spent + h > 1 - eps:
            return unit, 1 - spent, weights + [1 - spent] + [0.0] * (UNITS - unit)
        weights.append(h)
        spent += h
    raise AssertionError


def run(scores: Tensor, eps: float = 0.01) -> tuple[AViTRecord, Tensor]:
    """What the sparse path does: the record, and the weights [UNITS, N]."""
    rows = torch.arange(scores.shape[1])
    spent, weights, steps, used = scores.new_zeros(len(rows)), [], [], []
    for unit in range(UNITS):
        h = scores[unit, rows] if unit < UNITS - 1 else None
        part, spent, keep = ponder_step(spent, h, eps)
        weights.append(scores.new_zeros(scores.shape[1]).index_add(0, rows, part))
        if h is not None:
            steps.append(HaltingStep(2 * unit + 2, rows, (1 - spent).clamp(min=0), keep))
            used.append(h)
            rows, spent = rows[keep], spent[keep]
    coords = torch.zeros(scores.shape[1], 4, dtype=torch.int64)
    return AViTRecord(tuple(steps), coords, 1, 2 * UNITS, tuple(used)), torch.stack(weights)


@pytest.mark.parametrize('shift', [-2.0, 0.0, 2.0])
@pytest.mark.parametrize('eps', [0.01, 0.3])
def test_equals_a_loop_over_tokens(shift: float, eps: float) -> None:
    scores = table(shift=shift)
    record, weights = run(scores, eps)
    expected = [by_token(scores[:, token].tolist(), eps) for token in range(TOKENS)]
    depth, remainder, shares = zip(*expected)
    assert len(set(depth)) > 1
    torch.testing.assert_close(ponder_cost(record), torch.tensor(depth) + torch.tensor(remainder, dtype=torch.float64))
    torch.testing.assert_close(weights.T, torch.tensor(shares, dtype=torch.float64))
    assert record.halted_at().tolist() == [2 * n for n in depth]
    assert float(ponder_loss(record)) == pytest.approx(sum(n + r for n, r, _ in expected) / TOKENS, rel=1e-12)


def test_half_precision_scores_are_added_up_exactly() -> None:
    """Autocast gives scores of 16 bits; a sum that is rounded at every unit would lose what is below 1 / 64."""
    units, scores = 10, torch.full((9, 3), 0.001953125).bfloat16()  # a number of bfloat16: 2^-9
    rows = torch.arange(3)
    steps = tuple(HaltingStep(2 * u + 2, rows, torch.ones(3), torch.ones(3, dtype=torch.bool)) for u in range(9))
    record = AViTRecord(steps, torch.zeros(3, 4, dtype=torch.int64), 1, 2 * units, tuple(scores))
    assert ponder_cost(record).tolist() == [2 + 9 * (1 - 2**-9)] * 3
    assert ponder_cost(record).dtype == torch.float32


def test_prior_counts_beyond_what_half_precision_can() -> None:
    """Sums 700 and 300 of 1000 scores each; bfloat16 knows neither 700 / 1000 nor their ratio."""
    rows, keep = torch.arange(1001), torch.ones(1001, dtype=torch.bool)
    first, second = (torch.zeros(1001, dtype=torch.bfloat16) for _ in range(2))
    first[:701], second[:301] = 1, 1
    steps = tuple(HaltingStep(2 * u + 2, rows, torch.ones(1001), keep) for u in range(2))
    coords = torch.zeros(1001, 4, dtype=torch.int64)
    found, wanted = (
        depth_prior_loss(AViTRecord(steps, coords, 1, 6, scores), 1.5)
        for scores in ((first, second), (first.double(), second.double()))
    )
    assert found.item() == pytest.approx(wanted.item(), rel=1e-5)


def test_weights_add_up_to_one_and_costs_have_their_bounds() -> None:
    record, weights = run(table())
    torch.testing.assert_close(weights.sum(0), torch.ones(TOKENS, dtype=torch.float64))
    assert (weights >= 0).all()
    cost = ponder_cost(record)
    assert (cost > 1).all() and (cost <= UNITS + 1).all()
    for step in record.steps:
        assert torch.equal(step.keep, step.scores >= 0.01)


@pytest.mark.parametrize(
    ('scores', 'kept'),
    [([0.5], True), ([0.5, 0.25], True), ([0.5, 0.375], False), ([1.0], False), ([0.0, 0.0], True), ([0.75], True)],
)
def test_the_threshold_is_the_largest_sum_that_goes_on(scores: list[float], kept: bool) -> None:
    """Sums are exact here: at 1 - eps = 0.75 a token goes on, above it halts with what is left."""
    spent = torch.zeros(1)
    for h in scores:
        before = spent
        weight, spent, keep = ponder_step(spent, torch.tensor([h]), eps=0.25)
    assert keep.tolist() == [kept] and spent.tolist() == [sum(scores)]
    assert weight.tolist() == ([scores[-1]] if kept else (1 - before).tolist())


def test_the_last_unit_takes_what_is_left() -> None:
    weight, spent, keep = ponder_step(torch.tensor([0.0, 0.25, 0.98]), None)
    assert torch.equal(weight, 1 - torch.tensor([0.0, 0.25, 0.98]))
    assert spent.tolist() == [1, 1, 1] and not keep.any()


def test_losses_have_the_derivatives_of_finite_differences() -> None:
    scores = table(12).requires_grad_()
    assert (scores.detach().cumsum(0) - 0.99).abs().min() > 1e-3  # no decision changes on the way

    def losses(values: Tensor) -> Tensor:
        record, weights = run(values)
        return torch.stack([ponder_loss(record), depth_prior_loss(record, 2.0), weights.square().sum()])

    assert torch.autograd.gradcheck(losses, scores)


def test_only_scores_that_did_not_halt_the_token_cost_something() -> None:
    """rho = N + 1 - sum of h before N: its derivative is -1 for these, 0 for the score that halts."""
    scores = torch.tensor([[0.2, 0.995], [0.3, 0.5], [0.9, 0.5]], dtype=torch.float64, requires_grad=True)
    record, _ = run(scores)
    ponder_cost(record).sum().backward()
    assert scores.grad.tolist() == [[-1, 0], [-1, 0], [0, 0]]


@pytest.mark.parametrize('width', [0.5, 1.0, 3.0])
def test_prior_is_the_divergence(width: float) -> None:
    record, _ = run(table(shift=-1.0))
    mean = [float(h.sum()) / TOKENS for h in record.halting_scores]
    q = [m / sum(mean) for m in mean]
    g = [math.exp(-((unit - 2.5) ** 2) / (2 * width**2)) for unit in (1, 2, 3)]
    expected = sum(a * math.log(a / (b / sum(g))) for a, b in zip(q, g))
    assert expected > 0.01
    assert float(depth_prior_loss(record, 2.5, width)) == pytest.approx(expected, rel=1e-9)


def test_prior_is_zero_at_the_prior_and_does_not_see_how_much_halts() -> None:
    shape = torch.tensor([-(1**2) / 2, 0, -(1**2) / 2], dtype=torch.float64).exp()[:, None].expand(-1, 5)
    found = [float(depth_prior_loss(run(shape * factor)[0], 2.0)) for factor in (0.3, 1e-4, 1e-12)]
    assert found == pytest.approx([0.0] * 3, abs=1e-9)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('case', ['no tokens', 'all halt at once', 'none halts', 'scores of 0'])
def test_extremes_are_finite(case: str, dtype: torch.dtype) -> None:
    logits = {'no tokens': 0.0, 'all halt at once': 50.0, 'none halts': -30.0, 'scores of 0': -2000.0}[case]
    leaf = torch.full((UNITS - 1, 0 if case == 'no tokens' else 5), logits, dtype=dtype, requires_grad=True)
    record, weights = run(leaf.sigmoid())
    loss = ponder_loss(record) + depth_prior_loss(record, 2.0)
    (loss + weights.sum()).backward()
    assert loss.isfinite() and leaf.grad.isfinite().all()
    cost = {'no tokens': 0, 'all halt at once': 2, 'none halts': UNITS + 1, 'scores of 0': UNITS + 1}[case]
    assert float(ponder_loss(record).detach()) == pytest.approx(cost)
    assert record.mean_sparsity() == pytest.approx(0.75 if case == 'all halt at once' else 0)


def test_bad_input_is_named() -> None:
    for eps in (0, 1, -0.1, float('nan')):
        with pytest.raises(ValueError, match='eps='):
            check_eps(eps)
    check_eps(0.01)
    record, _ = run(table())
    with pytest.raises(ValueError, match='do not fit'):
        AViTRecord(record.steps, record.coords, 1, 8, record.halting_scores[:2])
    with pytest.raises(ValueError, match='do not fit'):
        AViTRecord(record.steps, record.coords, 1, 8, (torch.ones(1), *record.halting_scores[1:]))
