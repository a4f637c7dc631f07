"""Attention within windows, with weights, against its formula written window by window."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from mmprune3d.ops.window_attention import BACKENDS, window_attention
from mmprune3d.ops.windows import GPU_SIZES, plan_windows
from tests.test_models.test_sst.slow_sst import slow_attention

COUNTS = (1, 7, 1, 12, 3, 7, 30, 2)
N = sum(COUNTS)
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6}
SIZES = [None, GPU_SIZES, (5,), (50,), tuple(range(1, 31))]


def windows() -> Tensor:
    ids = torch.arange(len(COUNTS)).repeat_interleave(torch.tensor(COUNTS))
    return ids[torch.randperm(N, generator=torch.Generator().manual_seed(0))]


def tensors(dtype: torch.dtype = torch.float64, seed: int = 0) -> list[Tensor]:
    """Queries, keys and values [N, 2, 4]."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(N, 2, 4, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for _ in '123']


def weights(kind: str, dtype: torch.dtype = torch.float64) -> Tensor | None:
    """None; all 1; from 0 to 1; some of them 0; and all of them 0 in two windows, of one token and of twelve."""
    if kind == 'none':
        return None
    generator = torch.Generator().manual_seed(9)
    found = torch.ones(N) if kind == 'ones' else torch.rand(N, generator=generator).clamp(min=1e-3)
    if kind in ('halted', 'dead windows'):
        found *= torch.rand(N, generator=generator) < 0.4
    if kind == 'dead windows':
        found[(windows() == 3) | (windows() == 0)] = 0
    return found.to(dtype).requires_grad_()


KINDS = ['none', 'ones', 'soft', 'halted', 'dead windows']


def gradients(out: Tensor, inputs: list[Tensor | None]) -> list[Tensor]:
    factor = torch.randn(out.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64).to(out)
    return torch.autograd.grad((out * factor).sum(), [part for part in inputs if part is not None], allow_unused=True)


def close(found: Any, expected: Any, atol: float) -> None:
    torch.testing.assert_close(found, expected, rtol=atol, atol=atol, check_dtype=False)


@pytest.mark.parametrize('dtype', TOLERANCE, ids=str)
@pytest.mark.parametrize('sizes', SIZES, ids=['cpu', 'gpu', '5', '50', 'exact'])
@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('backend', BACKENDS)
def test_values_and_gradients_are_those_of_the_formula(
    backend: str, kind: str, sizes: tuple[int, ...] | None, dtype: torch.dtype
) -> None:
    """Gradients too of weights of 0, which training is all about; whatever the windows are padded to."""
    inputs, plan = [*tensors(dtype), weights(kind, dtype)], plan_windows(windows(), sizes)
    exact = [None if part is None else part.detach().double().requires_grad_() for part in inputs]
    wanted = slow_attention(*exact[:3], windows(), exact[3])
    found = window_attention(*inputs[:3], plan, inputs[3], backend=backend)
    assert found.dtype == dtype
    close(found, wanted, TOLERANCE[dtype])
    with torch.no_grad():  # other kernels
        close(window_attention(*inputs[:3], plan, inputs[3], backend=backend), wanted, TOLERANCE[dtype])
    for one, other in zip(gradients(found, inputs), gradients(wanted, exact), strict=True):
        close(one, other, 20 * TOLERANCE[dtype])
        assert one.isfinite().all()


def test_weights_of_zero_have_a_gradient() -> None:
    """The comparison above is one of zeros otherwise."""
    halted = weights('halted')
    inputs = tensors()
    for backend in BACKENDS:
        out = window_attention(*inputs, plan_windows(windows()), halted, backend=backend)
        gradient = gradients(out, [halted])[0]
        alone = (halted == 0) & (torch.tensor(COUNTS)[windows()] == 1)
        dead = torch.stack([~(halted[windows() == window] > 0).any() for window in range(len(COUNTS))])[windows()]
        assert (gradient[(halted == 0) & ~dead].abs() > 1e-6).all()
        assert not gradient[alone].any()


@pytest.mark.parametrize('backend', BACKENDS)
def test_gradients_match_finite_differences(backend: str) -> None:
    plan = plan_windows(windows(), (4, 100))
    inputs = [*tensors(), weights('soft')]
    assert torch.autograd.gradcheck(
        lambda *parts: window_attention(*parts[:3], plan, parts[3], backend=backend), inputs, fast_mode=True
    )


@pytest.mark.parametrize('grad', [False, True])
@pytest.mark.parametrize('backend', BACKENDS)
def test_windows_where_all_halted_give_zeros(backend: str, grad: bool) -> None:
    nothing = torch.zeros(N, dtype=torch.float64, requires_grad=True)
    inputs, plan = tensors(), plan_windows(windows())
    with torch.set_grad_enabled(grad):
        out = window_attention(*inputs, plan, nothing, backend=backend)
    assert not out.any()
    if grad:
        for gradient in gradients(out, [*inputs, nothing]):
            assert gradient.isfinite().all() and not gradient.any()


@pytest.mark.parametrize('backend', BACKENDS)
def test_common_factors_do_not_matter(backend: str) -> None:
    inputs, plan, soft = tensors(), plan_windows(windows()), weights('soft')
    factors = torch.tensor([1.0, 1e-6, 3, 1e3, 0.5, 1, 1e-2, 7], dtype=torch.float64)[windows()]
    one, other = (window_attention(*inputs, plan, part, backend=backend) for part in (soft, soft * factors))
    close(one, other, 1e-10)


@pytest.mark.parametrize('kind', ['none', 'soft'])
@pytest.mark.parametrize('value', [torch.nan, torch.inf, 1e30])
@pytest.mark.parametrize('backend', BACKENDS)
def test_what_is_in_a_window_stays_in_it(backend: str, value: float, kind: str) -> None:
    """Padding repeats a token of the own window: no value of another one can get in, nor a gradient."""
    plan, part = plan_windows(windows(), (5, 100)), weights(kind)
    clean, dirty = tensors(), tensors()
    hit = windows() == 4
    with torch.no_grad():
        for tensor in dirty:
            tensor[hit.nonzero()[0]] = value
    expected, found = (window_attention(*parts, plan, part, backend=backend) for parts in (clean, dirty))
    assert torch.equal(found[~hit], expected[~hit])
    for one, other in zip(gradients(found, dirty), gradients(expected, clean)):
        assert torch.equal(one[~hit], other[~hit])


@pytest.mark.parametrize('backend', BACKENDS)
def test_padding_has_no_say(backend: str) -> None:
    """The first token of a window, which padding repeats, counts once: a lone window of 3 in 100 places."""
    inputs = [part[:3] for part in tensors()]
    same = torch.zeros(3, dtype=torch.int64)
    pair = torch.cat((same, torch.ones(100, dtype=torch.int64)))
    among = [torch.cat((part, part.new_zeros(100, 2, 4))) for part in inputs]
    close(
        window_attention(*among, plan_windows(pair, (200,)), backend=backend)[:3],
        window_attention(*inputs, plan_windows(same), backend=backend),
        1e-14,
    )


@pytest.mark.parametrize('backend', BACKENDS)
def test_order_of_tokens_does_not_matter(backend: str) -> None:
    order = torch.randperm(N, generator=torch.Generator().manual_seed(3))
    inputs, halted = tensors(), weights('halted')
    expected = window_attention(*inputs, plan_windows(windows()), halted, backend=backend)[order]
    moved = (part[order] for part in inputs)
    close(window_attention(*moved, plan_windows(windows()[order]), halted[order], backend=backend), expected, 1e-13)


@pytest.mark.parametrize('backend', BACKENDS)
def test_scale_is_a_factor_of_the_logits(backend: str) -> None:
    (q, k, v), plan, soft = tensors(), plan_windows(windows()), weights('soft')
    out = window_attention(q, k, v, plan, soft, scale=0.3, backend=backend)
    close(out, slow_attention(0.3 * q, k, v, windows(), soft, scale=1.0), 1e-12)
    assert (out - window_attention(q, k, v, plan, soft, backend=backend)).abs().max() > 1e-2


def loud(halted_logit: float) -> tuple[list[Tensor], Tensor]:
    """One window of two tokens: one that counts, and a halted one with a large logit; queries are along the keys."""
    key = torch.zeros(2, 1, 4, dtype=torch.float64)
    key[1, 0, 0] = halted_logit
    query = torch.zeros_like(key)
    query[:, 0, 0] = 1
    value = torch.tensor([[[1.0, 2, 3, 4]], [[-5, 6, -7, 8]]], dtype=torch.float64)
    inputs = [part.requires_grad_() for part in (query, key, value)]
    return inputs, torch.tensor([0.5, 0.0], dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize('grad', [True, False])
@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('logit', [20.0, 200.0, 800.0])
def test_a_key_without_weight_has_no_say_at_any_logit(logit: float, backend: str, grad: bool) -> None:
    inputs, weight = loud(logit)
    plan = plan_windows(torch.zeros(2, dtype=torch.int64))
    with torch.set_grad_enabled(grad):
        found = window_attention(*inputs, plan, weight, scale=1.0, backend=backend)
    assert torch.equal(found, inputs[2][:1].expand(2, 1, 4))
    if grad:
        assert all(part.isfinite().all() for part in gradients(found, [*inputs, weight]))


@pytest.mark.parametrize('excess', [-5.0, 0.0, 5.0, 40.0])
def test_difference_is_what_weight_one_would_change(excess: float) -> None:
    """The secant, at any logit; the tangent only where the key would not dominate."""
    generator = torch.Generator().manual_seed(3)
    value = torch.randn(3, 1, 4, generator=generator, dtype=torch.float64)
    query, key = torch.ones(3, 1, 1, dtype=torch.float64), torch.tensor([[[0.3]], [[-0.2]], [[excess]]]).double()
    plan, cotangent = (
        plan_windows(torch.zeros(3, dtype=torch.int64)),
        torch.randn(3, 1, 4, generator=generator).double(),
    )

    def attend(last: float, kind: str) -> tuple[Tensor, Tensor]:
        weight = torch.tensor([0.7, 0.2, last], dtype=torch.float64, requires_grad=True)
        out = window_attention(query, key, value, plan, weight, scale=1.0, halted_gradient=kind)
        return out.detach(), torch.autograd.grad((out * cotangent).sum(), weight)[0]

    (without, secant), (_, tangent), (present, _) = (
        attend(0, 'difference'),
        attend(0, 'derivative'),
        attend(1, 'difference'),
    )
    torch.testing.assert_close(secant[2], ((present - without) * cotangent).sum())
    torch.testing.assert_close(secant[:2], tangent[:2])  # those with weight have the derivative in any case
    ratio = math.exp(excess) / (0.7 * math.exp(0.3) + 0.2 * math.exp(-0.2))
    if excess < 30:
        torch.testing.assert_close(tangent[2], secant[2] * (1 + ratio))


@pytest.mark.parametrize('backend', BACKENDS)
def test_dropout_is_that_of_attention_weights(backend: str) -> None:
    """Values are rows of the identity, so that outputs are attention weights."""
    for counts in ((8, 8, 5), (1, 1)):
        ids = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
        generator, tokens = torch.Generator().manual_seed(0), len(ids)
        q, k = (torch.randn(tokens, 2, tokens, generator=generator, dtype=torch.float64) for _ in '12')
        value = torch.eye(tokens, dtype=torch.float64)[:, None].expand(tokens, 2, tokens).contiguous()
        torch.manual_seed(0)
        sure, noisy = (
            window_attention(q, k, value, plan_windows(ids), backend=backend, dropout=p).requires_grad_()
            for p in (0.0, 0.25)
        )
        kept = noisy != 0
        close(noisy[kept], sure[kept] / 0.75, 1e-13)
        share = kept[sure != 0].double().mean()
        assert 0.6 < share < 0.9 if tokens > 2 else share in (0, 0.25, 0.5, 0.75, 1)
    assert not window_attention(q, k, value, plan_windows(ids), backend=backend, dropout=1.0).any()


@pytest.mark.parametrize('grad', [False, True])
@pytest.mark.parametrize('backend', BACKENDS)
def test_half_precision(backend: str, grad: bool) -> None:
    inputs, halted = tensors(), weights('dead windows')
    halves = [part.detach().bfloat16().requires_grad_(grad) for part in inputs]
    exact = slow_attention(*(part.double() for part in halves), windows(), halted)
    for weight in (halted.detach().bfloat16(), halted.detach().float()):  # under autocast scores may be either
        found = window_attention(*halves, plan_windows(windows()), weight, backend=backend)
        assert found.dtype == torch.bfloat16
        close(found, exact, 3e-2)
        if grad:
            assert all(part.isfinite().all() for part in gradients(found, halves))


@pytest.mark.parametrize('backend', BACKENDS)
def test_no_token(backend: str) -> None:
    nothing = torch.zeros(0, 2, 4, requires_grad=True)
    plan = plan_windows(torch.zeros(0, dtype=torch.int64))
    out = window_attention(nothing, nothing, nothing, plan, torch.zeros(0), backend=backend)
    assert out.shape == (0, 2, 4)
    out.sum().backward()


def test_unknown_backend() -> None:
    with pytest.raises(ValueError, match="unknown attention backend 'flash'; valid are sdpa, explicit"):
        window_attention(*tensors(), plan_windows(windows()), backend='flash')
