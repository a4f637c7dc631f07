"""Choosing tokens and carrying a choice through tensors: static sizes, top-k and gather only, fit for export."""

from __future__ import annotations

import torch
from torch import Tensor


def keep_highest(scores: Tensor, keep: int) -> Tensor:
    """Indices of the `keep` highest scores of every sample.

    Args:
        scores: [B, N], any float dtype.
        keep: How many to keep, 1 <= keep <= N.

    Returns:
        [B, keep] int64. With keep == N this is 0..N-1 in order, so that keeping everything changes nothing, not even
        the order.

    Raises:
        ValueError: If `keep` lies outside 1..N.
    """
    num = scores.shape[1]
    if not 1 <= keep <= num:
        raise ValueError(f'cannot keep {keep} of {num} tokens: valid numbers are 1 to {num}')
    if keep == num:
        return torch.arange(num, device=scores.device).expand(scores.shape[0], num)
    return scores.topk(keep, dim=1, sorted=False).indices


def gather_tokens(tokens: Tensor, index: Tensor) -> Tensor:
    """Rows `index` [B, K] of `tokens` [B, N, ...], per sample: [B, K, ...]."""
    index = index.reshape(index.shape + (1,) * (tokens.dim() - 2))
    return tokens.gather(1, index.expand(index.shape[:2] + tokens.shape[2:]))


def compose(ids: Tensor, index: Tensor) -> Tensor:
    """Original ids [B, K] of a choice among survivors: `ids` [B, N] of the survivors, `index` [B, K] into them."""
    return ids.gather(1, index)
