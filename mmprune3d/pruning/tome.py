"""ToMe: token merging by bipartite soft matching, the run-time method that tgGBC is compared with.

Paper: "Token Merging: Your ViT But Faster" (ICLR 2023), section 3. Tokens at even positions are sources, tokens at odd
positions destinations. Every source finds its most similar destination; the r most similar pairs are merged into the
mean of all that meet in a destination.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from .key_plan import KeyAndQueryPlan
from .selection import gather_tokens, top_indices

BLOCK = 2048
"""Sources whose similarities are in memory at a time."""


@dataclass(frozen=True)
class ToMePlan(KeyAndQueryPlan):
    """Token merging on cross-attention keys, the method that tgGBC is compared with (paper section 4.3).

    Bipartite matching can merge half of a layer's keys, or queries, at most.

    Attributes:
        q: Number of queries to merge away in total over the `n` layers, as keys are merged: the comparison of the GPQ
            paper (its section 4.3.3).
    """

    method: ClassVar[str] = 'tome'
    title: ClassVar[str] = 'ToMe'
    example: ClassVar[str] = 'r=3000,n=2'

    def limited(self, counts: tuple[int, ...], num_keys: int) -> tuple[int, ...]:
        """The counts of merged keys, checked: no layer can lose more than half of its keys; see `KeyPlan.limited`."""
        left = num_keys
        for count in counts:
            if count > left // 2:
                raise ValueError(f'ToMe: cannot merge {count} of {left} keys in one layer; at most {left // 2}')
            left -= count
        return counts


class Matching(NamedTuple):
    """The pairs of tokens that are merged, by their numbers among sources and destinations.

    Attributes:
        stay: [B, ceil(N / 2) - r], sources (numbers among the sources) that are not merged, most similar first.
        merge: [B, r], sources that merge.
        into: [B, r], the destinations (numbers among the destinations) they merge into.
    """

    stay: Tensor
    merge: Tensor
    into: Tensor


def bipartite_matching(metric: Tensor, r: int) -> Matching:
    """Finds the r most similar pairs of a source and a destination; of equally similar ones those with lower numbers.

    Args:
        metric: [B, N, D], features whose cosine similarity is compared.
        r: Number of pairs to merge, 0 <= r <= N // 2.

    Raises:
        ValueError: If `r` is out of range.
    """
    num = metric.shape[1]
    if not 0 <= r <= num // 2:
        raise ValueError(f'ToMe: cannot merge {r} of {num} tokens; valid are 0 to {num // 2}')
    # A token of zeros is like no other: without the limit its NaN would be the similarity of all sources.
    metric = metric / metric.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(metric.dtype).tiny)
    sources, destinations = metric[:, ::2], metric[:, 1::2].transpose(1, 2)
    found = [(block @ destinations).max(-1) for block in sources.split(BLOCK, dim=1)]
    similarity, best = (torch.cat(parts, dim=1) for parts in zip(*found, strict=True))
    order = top_indices(similarity, similarity.shape[1])
    merge, stay = order[:, :r], order[:, r:]
    return Matching(stay, merge, best.gather(1, merge))


def merge_tokens(tokens: Tensor, matching: Matching, size: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Merges tokens as a matching says.

    Args:
        tokens: [B, N, C].
        matching: The matching of tokens at the same positions.
        size: [B, N, 1], the number of original tokens that each token stands for; None means one each.

    Returns:
        Merged tokens [B, N - r, C], means weighted by size: first the sources that were not merged, then all
        destinations. And their sizes [B, N - r, 1], float32: bfloat16 cannot count beyond 256.
    """
    if size is None:
        size = tokens.new_ones(*tokens.shape[:2], 1, dtype=torch.float32)
    weighted = [_merge(part, matching) for part in (tokens * size, size)]
    return (weighted[0] / weighted[1]).to(tokens.dtype), weighted[1]


def _merge(tokens: Tensor, matching: Matching) -> Tensor:
    sources, destinations = tokens[:, ::2], tokens[:, 1::2]
    merged = gather_tokens(sources, matching.merge)
    into = matching.into[..., None].expand_as(merged)
    return torch.cat((gather_tokens(sources, matching.stay), destinations.scatter_add(1, into, merged)), dim=1)
