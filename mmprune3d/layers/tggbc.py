"""tgGBC at work between the layers of a decoder."""

from __future__ import annotations

from functools import cache, partial

import torch
from mmengine.logging import print_log
from torch import Tensor

from mmprune3d.pruning.selection import compose, gather_tokens, keep_highest
from mmprune3d.pruning.tggbc import TgGBCPlan, confident_queries, most_important, most_important_each, query_confidence

from .attention import AttentionRecord, Keys
from .key_pruning import Kept, KeyPruner, ScoreFunction, register


@register(TgGBCPlan.method)
class TgGBCKeyPruner(KeyPruner):
    """Removes the keys that confident queries attend to least, after each of the first n layers.

    All tensors of `Keys` are gathered by the same per-sample indices.

    Args:
        plan: The plan of tgGBC.
        num_layers: Number of decoder layers.
        record: See `KeyPruner`.
    """

    def __init__(self, plan: TgGBCPlan, num_layers: int, record: bool = False) -> None:
        super().__init__(plan, num_layers, record)
        self.plan: TgGBCPlan = plan
        self.query_removals = plan.query_removals(num_layers)
        self._removals: list[tuple[int, ...]] = []

    def __call__(self, layer: int, query: Tensor, keys: Keys, record: AttentionRecord, score_fn: ScoreFunction) -> Kept:
        """See `KeyPruner`.

        The choice is made without gradients; what stays is gathered with them.

        Raises:
            ValueError: If the plan leaves no key, or no query.
        """
        if layer == 0:
            self._begin(keys)
        removed, lost = max(counts[layer] for counts in self._removals), self.query_removals[layer]
        if not (removed or lost):
            self.record_same()
            return Kept(keys)
        num = query.shape[1]
        if lost >= num:
            raise ValueError(
                f'tgGBC: q={self.plan.q} removes {lost} of {num} queries after layer {layer}; one at least must be left'
            )
        if not torch.compiler.is_compiling():  # a captured graph cannot log
            log_clamp(self.plan.k, num)
        confidence = self._confidence(layer, query, score_fn)
        if removed:
            keys = self._trim(layer, keys, record.importance(*confident_queries(confidence, self.plan.k)))
        else:
            self.record_same()
        self.has_pruned = True
        return Kept(keys, partial(gather_tokens, index=keep_highest(confidence, num - lost)) if lost else None)

    def _begin(self, keys: Keys) -> None:
        """Fixes the numbers of keys to remove in this forward pass, for each sample if they depend on its padding.

        A plan with a count need not read the padding mask: padded keys have the lowest importance and are removed
        first. Shares and the threshold `t` refer to valid keys, whose number only the mask knows; from a sample without
        valid keys nothing is removed.
        """
        num = keys.key.shape[1]
        if keys.padding_mask is not None and (self.plan.is_share or self.plan.t):
            valid = (~keys.padding_mask).sum(1).tolist()
            none = (0,) * self.num_layers
            self._removals = [self.plan.removals(self.num_layers, count) if count else none for count in valid]
            self._left = valid
        else:
            self._removals = [self.plan.removals(self.num_layers, num)]
            self._left = [num]
        self.begin_record(keys)

    @torch.no_grad()
    def _confidence(self, layer: int, query: Tensor, score_fn: ScoreFunction) -> Tensor:
        if self.plan.score == 'none':
            return query.new_ones(query.shape[:2])
        return query_confidence(score_fn(layer, query), self.plan.activation, self.plan.score)

    def _trim(self, layer: int, keys: Keys, importance: Tensor) -> Keys:
        self._left = [left - counts[layer] for left, counts in zip(self._left, self._removals, strict=True)]
        if len(self._left) == 1:
            index, surplus = most_important(importance, self._left[0], keys.attention_mask), None
        else:
            index, surplus = most_important_each(importance, self._left, keys.attention_mask)
        if self.record:
            ids = compose(self.kept[-1], index)
            self.recorded.other(ids if surplus is None else ids.masked_fill(surplus, -1))
        keys = keys.select(index)
        return keys if surplus is None else keys._replace(padding_mask=keys.padding_mask | surplus)


@cache  # a training makes a pruner per iteration
def log_clamp(k: int, num_queries: int) -> None:
    """Logs, once, that a decoder has fewer than `k` queries."""
    if k > num_queries:
        print_log(f'tgGBC: k={k} exceeds the {num_queries} queries; all of them count', logger='current')
