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

FLOOR = 1e-20
"""Added to weights before the logarithm, as a share of the largest in the window: a key of weight 0 keeps its gradient
and loses all but 1e-20 of its say."""

LARGEST_EXPONENT = 30.0
"""How far a key without weight may rise above the others before the explicit form cuts its gradient."""


def window_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    plan: WindowPlan,
    weights: Tensor | None = None,
    scale: float | None = None,
    backend: str = 'sdpa',
    dropout: float = 0.0,
) -> Tensor:
    """Attention of each token to the tokens of its window.

    Args:
        query: [N, heads, D].
        key: [N, heads, D].
        value: [N, heads, D].
        plan: The tokens' windows.
        weights: [N] of the keys, at least 0; None: all 1.
        scale: Factor of the logits; None: 1 / sqrt(D).
        backend: ``'sdpa'``: torch's fused kernels. A key of weight 0 is left with 1e-20 of its share, which matters if
            its logit exceeds those of the others by 30 or more (cosine attention with a small temperature).
            ``'explicit'``: the formula itself, exact at any logit, slower and with all logits in memory.
        dropout: Probability of dropping an attention weight.

    Returns:
        [N, heads, D].

    Raises:
        ValueError: If `backend` is unknown.
    """
    if backend not in BACKENDS:
        raise ValueError(f'unknown attention backend {backend!r}; valid are {", ".join(BACKENDS)}')
    attend = _fused if backend == 'sdpa' else _explicit
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    at_places = [to_places(tokens, plan) for tokens in (query, key, value)]
    placed_weights = None if weights is None else to_places(weights, plan)
    results = []
    for bucket in plan.buckets:
        shape = (bucket.windows, bucket.size)
        q, k, v = (tokens[bucket.places].unflatten(0, shape).transpose(1, 2) for tokens in at_places)
        w = None if placed_weights is None else placed_weights[bucket.places].view(bucket.windows, bucket.size)
        if w is not None and bucket.padding is not None:
            w = w.masked_fill(bucket.padding, 0)
        if bucket.size == 1 and dropout == 0:
            out = v  # a softmax over one key
        else:
            out = attend(q, k, v, w, bucket.padding, scale, dropout)
        if w is not None:
            live = (w > 0).any(dim=1)
            if w.is_cuda or not live.all():  # asking a GPU would take longer than the product
                out = out * live[:, None, None, None]
        results.append(out.transpose(1, 2).flatten(0, 1))
    return from_places(torch.cat(results), plan) if results else value


def _fused(
    q: Tensor, k: Tensor, v: Tensor, w: Tensor | None, padding: Tensor | None, scale: float, dropout: float
) -> Tensor:
    bias = None
    if w is not None:
        largest = w.detach().amax(dim=1, keepdim=True).clamp(min=torch.finfo(w.dtype).tiny)
        bias = (w / largest + FLOOR).log().to(q.dtype)  # a common factor changes nothing
    elif padding is not None:
        bias = q.new_zeros(padding.shape)
    if bias is not None:
        if padding is not None:
            bias = bias.masked_fill(padding, float('-inf'))
        bias = bias[:, None, None]
    if q.device.type == 'cpu' and torch.is_grad_enabled():
        # For windows, the backward pass of torch's fused CPU kernel takes several times as long as these products.
        logits = q * scale @ k.transpose(-1, -2)
        return F.dropout((logits if bias is None else logits + bias).softmax(dim=-1), dropout) @ v
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout, scale=scale)


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
