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

import torch
from torch import Tensor

from .selection import keep_highest

REMOVED_FIRST = -1.0
"""Importance of padded keys: below every attention weight, so that they go before any key that carries an image."""


def query_confidence(logits: Tensor, activation: str = 'sigmoid') -> Tensor:
    """How sure each query is of being an object (Eq. 5).

    Args:
        logits: [B, N_q, classes], raw classification outputs.
        activation: 'sigmoid', or 'softmax' over all columns of which the last one is background and does not count.

    Returns:
        [B, N_q] in 0..1.
    """
    if activation == 'softmax':
        return logits.softmax(-1)[..., :-1].amax(-1)
    return logits.amax(-1).sigmoid()


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


def key_importance(confidence: Tensor, attention: Tensor, padding_mask: Tensor | None = None) -> Tensor:
    """Importance of every key (Eq. 7 and 9).

    Args:
        confidence: [B, k] of the chosen queries.
        attention: [B, k, N_k], their attention weights, averaged over heads.
        padding_mask: [B, N_k] bool, True for padding, or None.

    Returns:
        [B, N_k] float32; `REMOVED_FIRST` where padded.
    """
    importance = torch.bmm(confidence.float().unsqueeze(1), attention.float()).squeeze(1)
    if padding_mask is not None:
        importance = importance.masked_fill(padding_mask, REMOVED_FIRST)
    return importance


def keep_important(importance: Tensor, remove: int) -> Tensor:
    """Indices of the keys that stay when the `remove` least important ones of every sample go.

    Args:
        importance: [B, N_k].
        remove: 0 <= remove < N_k.

    Returns:
        [B, N_k - remove] int64.

    Raises:
        ValueError: If no key would stay.
    """
    num = importance.shape[1]
    if not 0 <= remove < num:
        raise ValueError(f'tgGBC: cannot remove {remove} of {num} keys; valid are 0 to {num - 1}')
    return keep_highest(importance, num - remove)
