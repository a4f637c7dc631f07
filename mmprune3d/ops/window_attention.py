"""Attention within windows, with a weight per key: the paper's weighted self-attention (Dynamic Token Halting, Eq. 6).

    out_i = sum_j exp(q_i k_j) w_j v_j / sum_j exp(q_i k_j) w_j

over the tokens j of i's window. A key of weight 0 is ignored; where a window has no key left, its output is 0.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .windows import WindowPlan, from_places, to_places

BACKENDS = ('sdpa', 'explicit')
HALTED_GRADIENTS = ('derivative', 'difference')

LARGEST_EXPONENT = 30.0
"""Largest exponent in the gradient of a halted key, whose logit may be far above the others; e^30 is about 1e13."""


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
    """Computes the attention of each token to the tokens of its window.

    Args:
        query: Queries [N, heads, D].
        key: Keys [N, heads, D].
        value: Values [N, heads, D].
        plan: Layout of the tokens' windows.
        weights: Weights of the keys [N], at least 0; None: all 1.
        scale: Factor of the logits; None: 1 / sqrt(D).
        backend: ``'sdpa'`` for torch's fused kernels (or, where these are slower, as few products as possible);
            ``'explicit'`` for the formula as written above, for comparison.
        dropout: Probability that an attention weight is set to zero.
        halted_gradient: Gradient of the weights that are 0. ``'derivative'``: the derivative of Eq. 6, which grows as
            e^d where the key's logit is d above the logits of the keys with weight. ``'difference'``: the change of the
            output if the weight became 1 (a secant instead of the tangent), which is bounded, and nearly equal to the
            derivative where the key would not dominate the softmax. Only with ``'sdpa'``.

    Returns:
        Outputs [N, heads, D].

    Raises:
        ValueError: If `backend` or `halted_gradient` is unknown, or the two cannot be combined.
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
            out = v  # a softmax over one key is 1
        elif backend == 'explicit':
            out = _explicit(q, k, v, w, bucket.padding, scale, dropout)
        else:
            out = _fused(q, k, v, w, bucket.padding, scale, dropout, halted_gradient)
        if w is not None:
            live = (w > 0).any(dim=1)
            if w.is_cuda or not live.all():  # on a GPU, waiting for the answer would take longer than the product
                out = out * live[:, None, None, None]
        results.append(out.transpose(1, 2).flatten(0, 1))
    return from_places(torch.cat(results), plan) if results else value


def check_choices(backend: str, halted_gradient: str) -> None:
    """Checks the options of `window_attention`.

    Raises:
        ValueError: If `backend` or `halted_gradient` is unknown, or the two cannot be combined.
    """
    if backend not in BACKENDS:
        raise ValueError(f'unknown attention backend {backend!r}; valid are {", ".join(BACKENDS)}')
    if halted_gradient not in HALTED_GRADIENTS:
        raise ValueError(f'unknown halted_gradient {halted_gradient!r}; valid are {", ".join(HALTED_GRADIENTS)}')
    if backend == 'explicit' and halted_gradient != 'derivative':
        raise ValueError(
            f"backend 'explicit' supports only halted_gradient 'derivative', not {halted_gradient!r}; use 'sdpa'"
        )


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
        # For windows, the backward pass of torch's fused CPU kernel takes several times as long as these two products.
        logits = q * scale @ k.transpose(-1, -2)
        attention = (logits if bias is None else logits + bias).softmax(dim=-1)
        out = F.dropout(attention, dropout).to(v.dtype) @ v
        if trains_weights:
            out = out + _nothing(logits.detach(), bias.detach(), v.detach(), out.detach(), w, padding, halted_gradient)
        return out
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout, scale=scale)


def _bias(w: Tensor | None, padding: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """The term added to logits [W, heads, T, T]: log w, and -inf for keys of weight 0; None if nothing is added."""
    if w is not None:
        absent = w <= 0
        if padding is None:  # a window whose keys all have weight 0 keeps them, to avoid NaN; its output is not used
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
    """A term equal to zero, [W, heads, T, D], that gives keys of weight 0 a gradient.

    The derivative of the output of query i for the weight of key j is r (v_j - out_i), where r is exp(logit_j) divided
    by the softmax denominator over the keys with weight (Eq. 6). With the weight at 1 instead of 0, the output would
    change by r / (1 + r) (v_j - out_i).
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
    peak = peak.masked_fill(peak == float('-inf'), 0)  # no key has weight: the caller sets the output to 0
    share = (logits - peak).clamp(max=LARGEST_EXPONENT).exp() * w[:, None, None]
    attention = share / share.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(share.dtype).tiny)
    return F.dropout(attention.to(v.dtype), dropout) @ v  # the weights may have a wider dtype than the tokens
