"""Attention within windows, with a weight per key: the paper's weighted self-attention (Dynamic Token Halting, Eq. 6).

    out_i = sum_j exp(q_i k_j) w_j v_j / sum_j exp(q_i k_j) w_j

over the tokens j of i's window. A weight of 0 takes a key away; where no key of a window is left the output is 0.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .windows import WindowPlan, from_places, to_places

BACKENDS = ('sdpa', 'explicit')
HALTED_GRADIENTS = ('derivative', 'difference')

LARGEST_EXPONENT = 30.0
"""How far the logit of a key without weight may be above the others before its gradient is cut: e^30 is 1e13."""


def window_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    plan: WindowPlan,
    weights: Tensor | None = None,
    scale: float | None = None,
    backend: str = 'sdpa',
    dropout: float = 0.0,
    halted_gradient: str = 'derivative',
) -> Tensor:
    """Attention of each token to the tokens of its window.

    Args:
        query: [N, heads, D].
        key: [N, heads, D].
        value: [N, heads, D].
        plan: The tokens' windows.
        weights: [N] of the keys, at least 0; None: all 1.
        scale: Factor of the logits; None: 1 / sqrt(D).
        backend: ``'sdpa'``: torch's fused kernels, or as few products as they need. ``'explicit'``: the formula as it
            stands, to compare with.
        dropout: Probability of dropping an attention weight.
        halted_gradient: What a weight of 0 gets as its gradient. ``'derivative'``: that of Eq. 6, which grows as e^d
            where the key's logit is d above those with weight. ``'difference'``: what the output would gain if the
            weight were 1 (the secant instead of the tangent), which is bounded, and nearly the same where the key would
            not dominate. Only with ``'sdpa'``.

    Returns:
        [N, heads, D].

    Raises:
        ValueError: If `backend` or `halted_gradient` is unknown, or they do not go together.
    """
    check_choices(backend, halted_gradient)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    at_places = [to_places(tokens, plan) for tokens in (query, key, value)]
    placed_weights = None if weights is None else to_places(weights, plan)
    results = []
    for bucket in plan.buckets:
        shape = (bucket.windows, bucket.size)
        q, k, v = (tokens[bucket.places].unflatten(0, shape).transpose(1, 2) for tokens in at_places)
        w = None if placed_weights is None else placed_weights[bucket.places].view(shape)
        if w is not None and bucket.padding is not None:
            w = w.masked_fill(bucket.padding, 0)
        if bucket.size == 1 and dropout == 0:
            out = v  # a softmax over one key
        elif backend == 'explicit':
            out = _explicit(q, k, v, w, bucket.padding, scale, dropout)
        else:
            out = _fused(q, k, v, w, bucket.padding, scale, dropout, halted_gradient)
        if w is not None:
            live = (w > 0).any(dim=1)
            if w.is_cuda or not live.all():  # asking a GPU would take longer than the product
                out = out * live[:, None, None, None]
        results.append(out.transpose(1, 2).flatten(0, 1))
    return from_places(torch.cat(results), plan) if results else value


def check_choices(backend: str, halted_gradient: str) -> None:
    """Raises ValueError if `window_attention` has no such options."""
    if backend not in BACKENDS:
        raise ValueError(f'unknown attention backend {backend!r}; valid are {", ".join(BACKENDS)}')
    if halted_gradient not in HALTED_GRADIENTS:
        raise ValueError(f'unknown halted_gradient {halted_gradient!r}; valid are {", ".join(HALTED_GRADIENTS)}')
    if backend == 'explicit' and halted_gradient != 'derivative':
        raise ValueError(f'the explicit backend has no halted_gradient {halted_gradient!r}; valid is derivative')


def _fused(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    w: Tensor | None,
    padding: Tensor | None,
    scale: float,
    dropout: float,
    halted_gradient: str,
) -> Tensor:
    bias = _bias(w, padding, q.dtype)
    trains_weights = w is not None and w.requires_grad
    if trains_weights or (q.device.type == 'cpu' and torch.is_grad_enabled()):
        # For windows, the backward pass of torch's fused CPU kernel takes several times as long as these products.
        logits = q * scale @ k.transpose(-1, -2)
        attention = (logits if bias is None else logits + bias).softmax(dim=-1)
        out = F.dropout(attention, dropout).to(v.dtype) @ v
        if trains_weights:
            out = out + _nothing(logits.detach(), bias.detach(), v.detach(), out.detach(), w, padding, halted_gradient)
        return out
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout, scale=scale)


def _bias(w: Tensor | None, padding: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """What is added to logits [W, heads, T, T]: log w, -inf for keys without weight; None if nothing is."""
    if w is not None:
        absent = w <= 0
        if padding is None:  # in windows without any weight all keys stay, whose output is not used
            absent = absent & ~absent.all(dim=1, keepdim=True)
        else:
            absent = padding | absent & ~(absent | padding).all(dim=1, keepdim=True)
        bias = torch.where(w > 0, w, 1).log().to(dtype).masked_fill(absent, float('-inf'))
    elif padding is not None:
        bias = torch.zeros(padding.shape, dtype=dtype, device=padding.device).masked_fill(padding, float('-inf'))
    else:
        return None
    return bias[:, None, None]


def _nothing(
    logits: Tensor, bias: Tensor, v: Tensor, out: Tensor, w: Tensor, padding: Tensor | None, halted_gradient: str
) -> Tensor:
    """Zeros [W, heads, T, D] through which keys of weight 0 have a gradient.

    Of key j in the output of query i it is r (v_j - out_i), where r is exp(logit) over the sum of those with weight,
    the derivative of Eq. 6. With 1 instead of 0 as weight, the output would change by r / (1 + r) (v_j - out_i).
    """
    halted = w <= 0 if padding is None else (w <= 0) & ~padding
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    excess = logits - (logits + bias).logsumexp(dim=-1, keepdim=True)
    ratio = excess.sigmoid() if halted_gradient == 'difference' else excess.clamp(max=LARGEST_EXPONENT).exp()
    ratio = (ratio * halted[:, None, None]).to(v.dtype)
    share = ratio * torch.where(halted, w, 0)[:, None, None].to(v.dtype)
    return share @ v - share.sum(dim=-1, keepdim=True) * out


def _explicit(
    q: Tensor, k: Tensor, v: Tensor, w: Tensor | None, padding: Tensor | None, scale: float, dropout: float
) -> Tensor:
    logits = q * scale @ k.transpose(-1, -2)
    if w is None:
        w = torch.ones(k.shape[0], k.shape[2], dtype=q.dtype, device=q.device)
        w = w if padding is None else w.masked_fill(padding, 0)
    live = (w > 0)[:, None, None]
    peak = logits.detach().masked_fill(~live, float('-inf')).amax(dim=-1, keepdim=True)
    peak = peak.masked_fill(peak == float('-inf'), 0)  # no key is left: the caller makes the output 0
    share = (logits - peak).clamp(max=LARGEST_EXPONENT).exp() * w[:, None, None]
    attention = share / share.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(share.dtype).tiny)
    return F.dropout(attention.to(v.dtype), dropout) @ v  # weights may be more exact than tokens
