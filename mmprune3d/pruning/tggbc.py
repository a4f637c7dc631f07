"""tgGBC: trim keys gradually, Guided By Classification scores.

Paper: "Accelerate 3D Object Detection Models via Zero-Shot Attention Key Pruning", section 3. A key is worth the
attention that confident queries pay to it:

    C_q = activation(max over classes of the logits of query q)                   Eq. 5
    S_j = sum over the k most confident queries q of C_q * A[q, j]                Eq. 7-9

where A is the cross-attention of one decoder layer, averaged over heads. The keys with the lowest S are removed before
the next layer. Only k rows of A enter the sum, so the full map is never needed, and the attention itself can stay
fused.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .selection import keep_highest

REMOVED_FIRST = -1.0
"""Importance of padded keys: below every attention weight, so that they go before any key that carries an image."""
BLOCK = 1024
"""Keys per block of the importance on the CPU; the scores of a block stay in the cache."""

LOWEST = -80.0
"""Logarithm of the smallest weight that counts. Trained attention is peaked, and the denormal numbers that lie below
are many times slower to multiply on a CPU."""


def query_confidence(logits: Tensor, activation: str = 'sigmoid', score: str = 'max') -> Tensor:
    """How sure each query is of being an object (Eq. 5).

    Args:
        logits: [B, N_q, classes], raw classification outputs.
        activation: 'sigmoid', or 'softmax' over all columns of which the last one is background and does not count.
        score: What stands for the classes of a query: 'max', 'mean' or 'min' (the ablation of Table 5), or 'none',
            where all queries count alike (Eq. 10). With a sigmoid, logits are reduced and then activated, as in the
            official code.

    Returns:
        [B, N_q] in 0..1, float32 or better: in half precision many queries would be equally sure.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if score == 'none':
        return logits.new_ones(logits.shape[:2])
    reductions: dict[str, Callable[..., Tensor]] = {'max': torch.amax, 'mean': torch.mean, 'min': torch.amin}
    reduce = reductions[score]
    if activation == 'softmax':
        return reduce(logits.softmax(-1)[..., :-1], -1)
    return reduce(logits, -1).sigmoid()


def confident_queries(confidence: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k most confident queries of every sample (Eq. 8; exactly k, where the paper's threshold would keep ties).

    Args:
        confidence: [B, N_q].
        k: How many; 0, or more than there are, means all.

    Returns:
        Their confidence [B, k] and indices [B, k].
    """
    num = confidence.shape[1]
    k = min(k, num) if k > 0 else num
    index = keep_highest(confidence, k)
    return confidence.gather(1, index), index


def attention_rows(query: Tensor, key: Tensor, forbidden: Tensor | None = None) -> Tensor:
    """Rows of an attention map, averaged over heads (the A of Eq. 7).

    Args:
        query: [B, heads, k, D], projected queries.
        key: [B, heads, N_k, D], projected keys.
        forbidden: Bool, broadcastable to [B, k, N_k], True where a query may not attend, or None.

    Returns:
        [B, k, N_k] float32, whatever the inputs and autocast are: the border between kept and removed keys is a matter
        of small differences. Each row sums to 1; forbidden keys get 0, also where all keys of a query are forbidden.
    """
    with torch.autocast(query.device.type, enabled=False):
        scores = (query.float() * query.shape[-1] ** -0.5) @ key.float().transpose(-2, -1)
    if forbidden is None:
        return scores.softmax(-1).mean(1)
    weights = scores.masked_fill(forbidden[:, None], float('-inf')).softmax(-1).mean(1)
    return weights.masked_fill(forbidden, 0.0)


def key_importance(confidence: Tensor, attention: Tensor, padding_mask: Tensor | None = None) -> Tensor:
    """Importance of every key (Eq. 7 and 9) from attention weights.

    Args:
        confidence: [B, k] of the chosen queries.
        attention: [B, k, N_k], their attention weights, averaged over heads.
        padding_mask: [B, N_k] bool, True for padding, or None.

    Returns:
        [B, N_k] float32; `REMOVED_FIRST` where padded.
    """
    with torch.autocast(attention.device.type, enabled=False):
        importance = torch.bmm(confidence.float().unsqueeze(1), attention.float()).squeeze(1)
    if padding_mask is not None:
        importance = importance.masked_fill(padding_mask, REMOVED_FIRST)
    return importance


def fused_key_importance(
    confidence: Tensor, query: Tensor, key: Tensor, log_sum: Tensor, padding_mask: Tensor | None = None
) -> Tensor:
    """The same in one pass over the keys, block by block, without any row of the map in memory.

    A weight of the map is exp(q k_j / sqrt(D) - log_sum_q), and the fused kernel knows log_sum_q already. So a block of
    keys can be weighed without having seen the others.

    Args:
        confidence: [B, k] of the chosen queries.
        query: [B, heads, k, D], projected.
        key: [B, heads, N_k, D], projected.
        log_sum: [B, heads, k] float32, see `ops.attention.fused_attention`.
        padding_mask: [B, N_k] bool, True for padding, or None.

    Returns:
        [B, N_k] float32; `REMOVED_FIRST` where padded.
    """
    heads, num = key.shape[1:3]
    weights = (confidence.float() / heads)[:, None, None].expand(-1, heads, -1, -1).flatten(0, 1)
    scaled = (query.float() * query.shape[-1] ** -0.5).flatten(0, 1)
    log_sum = log_sum.float().flatten(0, 1).unsqueeze(-1)
    blocks = []
    for start in range(0, num, BLOCK):
        block = key[:, :, start : start + BLOCK].float().flatten(0, 1)
        with torch.autocast(key.device.type, enabled=False):
            weight = torch.bmm(scaled, block.transpose(1, 2)).sub_(log_sum).clamp_(min=LOWEST).exp_()
            blocks.append(torch.bmm(weights, weight).unflatten(0, (-1, heads)).sum((1, 2)))
    importance = torch.cat(blocks, dim=1)
    if padding_mask is not None:
        importance = importance.masked_fill(padding_mask, REMOVED_FIRST)
    return importance


def keep_important(importance: Tensor, remove: int, attention_mask: Tensor | None = None) -> Tensor:
    """Indices of the keys that stay when the `remove` least important ones of every sample go.

    Args:
        importance: [B, N_k].
        remove: 0 <= remove < N_k.
        attention_mask: [B, N_q, N_k] bool, True where a query may not attend, or None. The most important key that a
            query may attend to stays, however little it is worth: a query without any key would get no output.
            So more keys than asked for may stay, the same number in every sample.

    Returns:
        [B, N_k - remove] int64 (with `attention_mask` possibly more).

    Raises:
        ValueError: If no key would stay.
    """
    num = importance.shape[1]
    if not 0 <= remove < num:
        raise ValueError(f'tgGBC: cannot remove {remove} of {num} keys; valid are 0 to {num - 1}')
    keep = num - remove
    if attention_mask is not None:
        needed = needed_keys(importance, attention_mask)
        importance = importance.masked_fill(needed, float('inf'))
        keep = max(keep, int(needed.sum(1).max()))
    return keep_highest(importance, keep)


def needed_keys(importance: Tensor, attention_mask: Tensor) -> Tensor:
    """For every query, the most important key it may attend to: [B, N_k] bool.

    Args:
        importance: [B, N_k].
        attention_mask: [B, N_q, N_k] bool, True where a query may not attend. Queries that may attend to nothing, or
            to padding only, need nothing.
    """
    value, best = importance[:, None].masked_fill(attention_mask, float('-inf')).max(-1)
    needed = torch.zeros_like(importance)
    return needed.scatter_add_(1, best, (value > REMOVED_FIRST).to(needed.dtype)) > 0
