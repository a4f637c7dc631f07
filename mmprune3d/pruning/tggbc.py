"""tgGBC: trim keys gradually, Guided By Classification scores.

Paper: "Accelerate 3D Object Detection Models via Zero-Shot Attention Key Pruning", section 3. A key is worth the
attention that confident queries pay to it:

    C_q = activation(max over classes of the logits of query q)                   Eq. 5
    S_j = sum over the k most confident queries q of C_q * A[q, j]                Eq. 7-9

where A is the cross-attention of one decoder layer, averaged over heads. The keys with the lowest S are removed before
the next layer. `choose_keys` is this algorithm as it is written. Only k rows of A enter the sum, so a decoder never
needs the full map, and its attention can stay fused: see `attention_rows` and `fused_key_importance`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .key_plan import KeyAndQueryPlan
from .selection import gather_tokens, keep_highest, top_indices

REMOVED_FIRST = -1.0
"""Importance of padded keys: below every attention weight, so that they go before any key that carries an image."""
BLOCK = 1024
"""Keys per block of the importance on the CPU; the scores of a block stay in the cache."""

LOWEST = -80.0
"""Logarithm of the smallest weight that counts. Trained attention is peaked, and the denormal numbers that lie below
are many times slower to multiply on a CPU."""


@dataclass(frozen=True)
class TgGBCPlan(KeyAndQueryPlan):
    """How many cross-attention keys tgGBC removes, when, and by which queries (paper section 3.3).

    Attributes:
        k: Number of queries whose scores count, the most confident ones; 0 means all of them (as in the official
            command line). None means 175, or all with `score='none'`.
        activation: 'sigmoid' for focal-loss heads, 'softmax' for heads with a background column (the last one, left
            out).
        score: 'max', 'mean' or 'min' over classes (Table 5), or 'none': all queries count alike (Eq. 10).
        t: A layer that attends to `t` valid keys or fewer is not followed by pruning (the threshold of appendix D.5).
        q: Number of queries to remove in total over the `n` layers, the least confident ones (appendix D.2).
    """

    method: ClassVar[str] = 'tggbc'
    title: ClassVar[str] = 'tgGBC'
    example: ClassVar[str] = 'r=12000,n=2,k=175'
    activations: ClassVar[tuple[str, ...]] = ('sigmoid', 'softmax')
    scores: ClassVar[tuple[str, ...]] = ('max', 'mean', 'min', 'none')

    k: int | None = None
    activation: str = 'sigmoid'
    score: str = 'max'
    t: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_choice('activation', self.activations)
        self.check_choice('score', self.scores)
        if self.k is None:
            self.set('k', 0 if self.score == 'none' else 175)
        for name in ('k', 't'):
            self.check_count(name)
        if self.score == 'none' and (self.k or self.q):
            raise ValueError("tgGBC: score='none' has no confident queries (Eq. 10 sums over all): k and q must be 0")

    def limited(self, counts: tuple[int, ...], num_keys: int) -> tuple[int, ...]:
        """The counts of removed keys, set to 0 after layers that attend to `t` keys or fewer; see `KeyPlan.limited`."""
        left, kept = num_keys, []
        for count in counts:
            kept.append(count if left > self.t else 0)
            left -= kept[-1]
        return super().limited(tuple(kept), num_keys)


def choose_keys(
    logits: Tensor,
    attention: Tensor,
    keep: int,
    k: int = 175,
    activation: str = 'sigmoid',
    score: str = 'max',
    padding_mask: Tensor | None = None,
    attention_mask: Tensor | None = None,
) -> Tensor:
    """Which keys stay after one decoder layer: the whole of tgGBC, from the full attention map.

    The decoders of this package come to the same choice without the map, see ``layers.tggbc.TgGBCKeyPruner``. To prune
    in a decoder that has the map, call this after each layer, gather keys, values, positions and masks by the indices
    (`selection.gather_tokens`), and go on with them.

    Args:
        logits: [B, N_q, classes], raw classification outputs of the layer's head, without denoising queries.
        attention: [B, N_q, N_k], cross-attention weights of the same queries, averaged over heads.
        keep: How many keys stay, 1 <= keep <= N_k.
        k: Number of queries that count, the most confident ones; 0 means all.
        activation: 'sigmoid' or 'softmax', see `query_confidence`.
        score: 'max', 'mean', 'min' or 'none', see `query_confidence`.
        padding_mask: [B, N_k] bool, True where a key is padding, or None. Padding is removed first.
        attention_mask: [B, N_q, N_k] bool, True where a query may not attend, or None; see `most_important`.

    Returns:
        [B, keep] int64, most important first (with `attention_mask` possibly more).

    Raises:
        ValueError: If `keep` lies outside 1..N_k.
    """
    confidence = query_confidence(logits, activation, score)  # Eq. 5
    confidence, queries = confident_queries(confidence, k)  # Eq. 8
    importance = key_importance(confidence, gather_tokens(attention, queries), padding_mask)  # Eq. 7 and 9
    return most_important(importance, keep, attention_mask)


def query_confidence(logits: Tensor, activation: str = 'sigmoid', score: str = 'max') -> Tensor:
    """The confidence of each query, its score of being an object (Eq. 5).

    Args:
        logits: [B, N_q, classes], raw classification outputs.
        activation: 'sigmoid', or 'softmax' over all columns of which the last one is background and does not count.
        score: What stands for the classes of a query: 'max', 'mean' or 'min' (the ablation of Table 5), or 'none',
            where all queries count alike (Eq. 10). With a sigmoid, logits are reduced and then activated, as in the
            official code.

    Returns:
        [B, N_q] in 0..1, float32 or better: in half precision many queries would have the same confidence.
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
        k: Number of queries; 0, or more than there are, means all.

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
    """Importance of every key (Eq. 7 and 9) in one pass over the keys, without any row of the attention map in memory.

    An attention weight is exp(q k_j / sqrt(D) - log_sum_q), and the fused kernel has computed log_sum_q already. So the
    weights of a block of keys can be computed without the other keys.

    Args:
        confidence: [B, k] of the chosen queries.
        query: [B, heads, k, D], projected.
        key: [B, heads, N_k, D], projected.
        log_sum: [B, heads, k] float32, logarithms of the softmax' denominators, see `ops.attention.fused_attention`.
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


def most_important(importance: Tensor, keep: int, attention_mask: Tensor | None = None) -> Tensor:
    """Indices of the `keep` most important keys of every sample.

    Args:
        importance: [B, N_k].
        keep: How many keys stay, 1 <= keep <= N_k.
        attention_mask: [B, N_q, N_k] bool, True where a query may not attend, or None. The keys that `needed_keys`
            names stay in any case, so that more than `keep` may stay, the same number in every sample.

    Returns:
        [B, keep] int64, most important first (with `attention_mask` possibly more); all keys stay in their order.

    Raises:
        ValueError: If `keep` lies outside 1..N_k.
    """
    num = importance.shape[1]
    if not 1 <= keep <= num:
        raise ValueError(f'tgGBC: cannot keep {keep} of {num} keys; valid are 1 to {num}')
    importance, counts = _needed_first(importance, [keep], attention_mask)
    return keep_highest(importance, max(counts))


def most_important_each(
    importance: Tensor, keep: Sequence[int], attention_mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Indices of the most important keys, another number of them in every sample.

    Args:
        importance: [B, N_k].
        keep: How many keys stay in each of the B samples.
        attention_mask: See `most_important`.

    Returns:
        Indices [B, K] int64, most important first, where K is the largest number of keys that stay in a sample; and
        [B, K] bool, True for the last indices of samples that keep fewer, which must be masked.
    """
    importance, counts = _needed_first(importance, keep, attention_mask)
    index = top_indices(importance, max(counts))
    return index, torch.arange(max(counts), device=index.device) >= index.new_tensor(counts)[:, None]


def _needed_first(
    importance: Tensor, keep: Sequence[int], attention_mask: Tensor | None
) -> tuple[Tensor, Sequence[int]]:
    """Importance with the needed keys above all others, and how many keys stay in each sample so that all of them do.

    Args:
        importance: [B, N_k].
        keep: How many keys shall stay, one number for all samples or one for each.
        attention_mask: See `most_important`.
    """
    if attention_mask is None:
        return importance, keep
    needed = needed_keys(importance, attention_mask)
    counts = needed.sum(1).tolist()
    wanted = list(keep) * len(counts) if len(keep) == 1 else keep
    return importance.masked_fill(needed, float('inf')), [max(pair) for pair in zip(wanted, counts, strict=True)]


def needed_keys(importance: Tensor, attention_mask: Tensor) -> Tensor:
    """For every query, the most important key it may attend to: a query without any key would get no output.

    Args:
        importance: [B, N_k].
        attention_mask: [B, N_q, N_k] bool, True where a query may not attend. Queries that may attend to nothing, or
            to padding only, need nothing.

    Returns:
        [B, N_k] bool, True for the keys that must stay.
    """
    value, best = importance[:, None].masked_fill(attention_mask, float('-inf')).max(-1)
    needed = torch.zeros_like(importance)
    return needed.scatter_add_(1, best, (value > REMOVED_FIRST).to(needed.dtype)) > 0
