"""Choosing tokens and carrying a choice through tensors: static sizes, top-k and gather only, fit for export."""

from __future__ import annotations

from collections.abc import Callable

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
    """Rows `index` [B, K] of `tokens` [B, N, ...], per sample: [B, K, ...].

    Copies whole rows, which is several times faster on CPUs than ``Tensor.gather`` with an expanded index.
    """
    batch, num = tokens.shape[:2]
    if batch > 1:
        index = index + torch.arange(batch, device=index.device)[:, None] * num
    rows = tokens.flatten(0, 1).index_select(0, index.flatten())
    return rows.unflatten(0, index.shape)


def once_per_tensor(change: Callable[[Tensor], Tensor]) -> Callable[[Tensor | None], Tensor | None]:
    """`change`, applied once to tensors that are passed several times, and never to None.

    Decoders pass one tensor as key and value; this keeps it one, and gathers it once.
    """
    done: dict[int, Tensor] = {}

    def apply(tensor: Tensor | None) -> Tensor | None:
        if tensor is None:
            return None
        if id(tensor) not in done:
            done[id(tensor)] = change(tensor)
        return done[id(tensor)]

    return apply


def compose(ids: Tensor, index: Tensor) -> Tensor:
    """Original ids [B, K] of a choice among survivors: `ids` [B, N] of the survivors, `index` [B, K] into them."""
    return ids.gather(1, index)
