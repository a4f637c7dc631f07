"""Choosing tokens and carrying a choice through tensors: static sizes, top-k and gather only, fit for export."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

SHORT = 1024
"""Scores that a CPU sorts as fast as it looks for ties."""


def top_indices(scores: Tensor, k: int) -> Tensor:
    """Indices of the `k` highest scores along the last dimension, best first, the lowest index first among equals.

    ``Tensor.topk`` takes any of several equal scores, and other ones on another device: which keys, queries or boxes
    stay would be an accident wherever scores are saturated, rounded or padded. NaN counts as higher than any number, as
    in torch.

    On a CPU this is ``topk``, unless equal scores are met; elsewhere it is a stable sort, since a look at the scores
    would wait for the device. In a graph that is traced for export it is TopK, which ONNX defines like this.

    Args:
        scores: [..., N].
        k: Number of scores, 0 <= k <= N.

    Returns:
        [..., k] int64.

    Raises:
        ValueError: If `k` lies outside 0..N.
    """
    scores, num = scores.detach(), scores.shape[-1]
    if not 0 <= k <= num:
        raise ValueError(f'cannot take {k} of {num} scores: valid numbers are 0 to {num}')
    if torch.compiler.is_exporting() or torch.onnx.is_in_onnx_export() or torch.jit.is_tracing():
        return scores.topk(k, dim=-1).indices
    if k == num or num <= SHORT or scores.device.type != 'cpu' or torch.compiler.is_compiling():
        return scores.argsort(dim=-1, descending=True, stable=True)[..., :k]
    values, index = scores.topk(k + 1, dim=-1)  # one more tells whether equals were left out
    tied = ~(values[..., :-1] > values[..., 1:]).all(-1)
    index = index[..., :k]
    if tied.any():
        index = index.contiguous()
        for row in tied.nonzero():
            place = tuple(row.tolist())
            index[place] = _first_of_equals(scores[place], values[place][k - 1], k)
    return index


def _first_of_equals(scores: Tensor, least: Tensor, k: int) -> Tensor:
    """The `top_indices` of [N] scores whose `k`-th highest is `least`; only scores from `least` on are sorted."""
    candidates = (~(scores < least)).nonzero().squeeze(1)
    return candidates[scores[candidates].argsort(descending=True, stable=True)[:k]]


def keep_highest(scores: Tensor, keep: int) -> Tensor:
    """Indices of the `keep` highest scores of every sample, of equal ones those with the lowest indices.

    Args:
        scores: [B, N], any float dtype.
        keep: Number of scores to keep, 1 <= keep <= N.

    Returns:
        [B, keep] int64, best first (see `top_indices`). With keep == N this is 0..N-1 in order, so that keeping
        everything changes nothing, not even the order.

    Raises:
        ValueError: If `keep` lies outside 1..N.
    """
    num = scores.shape[1]
    if not 1 <= keep <= num:
        raise ValueError(f'cannot keep {keep} of {num} tokens: valid numbers are 1 to {num}')
    if keep == num:
        return torch.arange(num, device=scores.device).expand(scores.shape[0], num)
    return top_indices(scores, keep)


def gather_tokens(tokens: Tensor, index: Tensor) -> Tensor:
    """The rows `index` [B, K] of `tokens` [B, N, ...] in every sample: [B, K, ...].

    Copies whole rows, which is several times faster on CPUs than ``Tensor.gather`` with an expanded index.
    """
    batch, num = tokens.shape[:2]
    if batch > 1:
        index = index + torch.arange(batch, device=index.device)[:, None] * num
    rows = tokens.flatten(0, 1).index_select(0, index.flatten())
    return rows.unflatten(0, index.shape)


def once_per_tensor(change: Callable[[Tensor], Tensor]) -> Callable[[Tensor | None], Tensor | None]:
    """A version of `change` that changes a tensor once even if it is passed several times, and returns None for None.

    Decoders pass the same tensor as key and value; with this it is gathered once and stays the same tensor.
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
    """The original ids [B, K] of tokens that are chosen from those left by an earlier choice.

    Args:
        ids: [B, N], the original ids of the tokens that are left.
        index: [B, K], the choice, indices into these tokens.
    """
    return ids.gather(1, index)
