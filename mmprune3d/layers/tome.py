"""ToMe at work between the layers of a decoder."""

from __future__ import annotations

import torch
from torch import Tensor

from mmprune3d.pruning.selection import compose
from mmprune3d.pruning.tome import ToMePlan, bipartite_matching, merge_tokens

from .attention import AttentionRecord, Keys
from .key_pruning import Kept, KeyPruner, Reduce, ScoreFunction, register


@register(ToMePlan.method)
class ToMeKeyPruner(KeyPruner):
    """Merges the keys that are most similar, by ToMe's matching, after each of the first n layers.

    Similarity is that of the projected keys, averaged over heads, as in ToMe. Keys and values are merged alike,
    weighted by the number of keys that each one stands for. Queries are merged in the same way, by their projections,
    with their positions and reference points.

    Args:
        plan: The plan of ToMe.
        num_layers: Number of decoder layers.
        record: See `KeyPruner`; a merged key has the id of its destination.
    """

    def __init__(self, plan: ToMePlan, num_layers: int, record: bool = False) -> None:
        super().__init__(plan, num_layers, record)
        self.plan: ToMePlan = plan
        self.query_removals = plan.query_removals(num_layers)
        self._size: Tensor | None = None
        self._query_size: Tensor | None = None

    def __call__(self, layer: int, query: Tensor, keys: Keys, record: AttentionRecord, score_fn: ScoreFunction) -> Kept:
        """See `KeyPruner`.

        Raises:
            ValueError: If a layer would lose more than half of its keys or queries, or if keys are masked.
        """
        if keys.padding_mask is not None or keys.attention_mask is not None:
            raise ValueError(
                'ToMe knows no masks: a padded key would be merged into a key of an image. Valid are models without '
                'padding and attention masks; tgGBC takes both'
            )
        if layer == 0:
            self._size = self._query_size = None
            self._removals = self.plan.removals(self.num_layers, keys.key.shape[1])
            self.begin_record(keys)
        if self._removals[layer] or self.query_removals[layer]:
            self.has_pruned = True
        return Kept(self._merge_keys(layer, keys, record), self._merge_queries(layer, record))

    def _merge_queries(self, layer: int, record: AttentionRecord) -> Reduce | None:
        if not self.query_removals[layer]:
            return None
        metric, before = record.query.mean(1), self._query_size
        matching = bipartite_matching(metric, self.query_removals[layer])
        self._query_size = merge_tokens(metric[..., :1], matching, before)[1]
        return lambda tokens: merge_tokens(tokens, matching, before)[0]

    def _merge_keys(self, layer: int, keys: Keys, record: AttentionRecord) -> Keys:
        if not self._removals[layer]:
            self.record_same()
            return keys
        matching = bipartite_matching(record.key.mean(1), self._removals[layer])
        before = self._size
        merged = keys.map(lambda tokens: merge_tokens(tokens, matching, before)[0])
        self._size = merge_tokens(keys.key[..., :1], matching, before)[1]
        if self.record:
            sources, destinations = self.kept[-1][:, ::2], self.kept[-1][:, 1::2]
            self.recorded.other(torch.cat((compose(sources, matching.stay), destinations), dim=1))
        return merged
