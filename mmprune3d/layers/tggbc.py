"""Key pruning between the layers of a decoder: a plan of `pruning.plan` applied to the keys of cross-attention.

A decoder, or the adapter of one, makes a pruner by `make_pruner` and asks it after every layer but the last::

    kept = pruner(layer, query, keys, record, score_fn)

and goes on with ``kept.keys``, and with ``kept.reduce(queries)`` if that is not None.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import NamedTuple, Protocol

import torch
from mmengine.logging import print_log
from torch import Tensor

from mmprune3d.pruning import tome
from mmprune3d.pruning.key_plan import KeyPlan, TgGBCPlan, ToMePlan
from mmprune3d.pruning.selection import compose, gather_tokens, keep_highest, top_indices
from mmprune3d.pruning.tggbc import confident_queries, keep_important, needed_keys, query_confidence

from .attention import AttentionRecord, Keys

ScoreFunction = Callable[[int, Tensor], Tensor]
"""(layer, normed queries [B, N_q, C]) -> logits [B, N_q, classes] of that layer's classification branch."""


Reduce = Callable[[Tensor], Tensor]
"""From what belongs to all queries, [B, N_q, C], to the same of those that are left: chosen or merged ones."""


class Kept(NamedTuple):
    """What the next layer works on.

    Attributes:
        keys: Its keys.
        reduce: What becomes of the queries, or None if all stay.
    """

    keys: Keys
    reduce: Reduce | None = None


class KeyPruner(Protocol):
    """Chooses keys between decoder layers.

    Attributes:
        kept: With ``record=True``, one [B, N_k] int64 per layer of the last forward pass: the original ids of the keys
            which that layer attends to; -1 fills up samples that keep fewer than others.
        has_pruned: Whether anything was removed since the pruner was made.
    """

    plan: KeyPlan
    kept: list[Tensor]
    has_pruned: bool

    def __call__(self, layer: int, query: Tensor, keys: Keys, record: AttentionRecord, score_fn: ScoreFunction) -> Kept:
        """Returns what stays.

        Args:
            layer: The layer that has just run, from 0.
            query: [B, N_q, C], its normed output without denoising queries.
            keys: What it attended to.
            record: Of its cross-attention, for the same queries.
            score_fn: Logits of these queries.
        """


class TgGBCKeyPruner:
    """Removes the keys that confident queries look at least, after each of the first n layers.

    All tensors of `Keys` are gathered by the same per-sample indices.

    Args:
        plan: How many keys, over how many layers, by how many queries.
        num_layers: Layers of the decoder.
        record: Keep the original ids of the surviving keys in `kept`; off by default, it costs a gather per layer.
    """

    def __init__(self, plan: TgGBCPlan, num_layers: int, record: bool = False) -> None:
        plan.check(num_layers)
        self.plan = plan
        self.num_layers = num_layers
        self.query_removals = plan.query_removals(num_layers)
        self.record = record
        self.kept: list[Tensor] = []
        self.has_pruned = False
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
            self.kept += self.kept[-1:]
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
            self.kept += self.kept[-1:]
        self.has_pruned = True
        return Kept(keys, partial(gather_tokens, index=keep_highest(confidence, num - lost)) if lost else None)

    def _begin(self, keys: Keys) -> None:
        """Numbers of keys to remove in this forward pass, per sample if samples are padded and the plan depends on it.

        A plain count needs no look at the padding: padded keys are worth least and go first. Shares and thresholds are
        about valid keys, whose number only the mask knows; a sample without any has none to remove.
        """
        batch, num = keys.key.shape[:2]
        if keys.padding_mask is not None and (self.plan.is_share or self.plan.t):
            valid = (~keys.padding_mask).sum(1).tolist()
            none = (0,) * self.num_layers
            self._removals = [self.plan.removals(self.num_layers, count) if count else none for count in valid]
            self._left = valid
        else:
            self._removals = [self.plan.removals(self.num_layers, num)]
            self._left = [num]
        self.kept = [torch.arange(num, device=keys.key.device).expand(batch, -1)] if self.record else []

    @torch.no_grad()
    def _confidence(self, layer: int, query: Tensor, score_fn: ScoreFunction) -> Tensor:
        if self.plan.score == 'none':
            return query.new_ones(query.shape[:2])
        return query_confidence(score_fn(layer, query), self.plan.activation, self.plan.score)

    def _trim(self, layer: int, keys: Keys, importance: Tensor) -> Keys:
        self._left = [left - counts[layer] for left, counts in zip(self._left, self._removals, strict=True)]
        if len(self._left) > 1:
            index, surplus = self._choose_per_sample(importance, keys.attention_mask)
        else:
            index, surplus = keep_important(importance, keys.key.shape[1] - self._left[0], keys.attention_mask), None
        if self.record:
            ids = compose(self.kept[-1], index)
            self.kept.append(ids if surplus is None else ids.masked_fill(surplus, -1))
        keys = keys.select(index)
        return keys if surplus is None else keys._replace(padding_mask=keys.padding_mask | surplus)

    def _choose_per_sample(self, importance: Tensor, attention_mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Another number of keys in every sample: as many slots as the largest needs, the surplus of others masked."""
        left = self._left
        if attention_mask is not None:
            needed = needed_keys(importance, attention_mask)
            importance = importance.masked_fill(needed, float('inf'))
            left = [max(pair) for pair in zip(left, needed.sum(1).tolist(), strict=True)]
        index = top_indices(importance, max(left))
        return index, torch.arange(max(left), device=index.device) >= index.new_tensor(left)[:, None]


@cache  # a training makes a pruner per iteration
def log_clamp(k: int, num_queries: int) -> None:
    """Says once if there are fewer queries than should count."""
    if k > num_queries:
        print_log(f'tgGBC: k={k} exceeds the {num_queries} queries; all of them count', logger='current')


class ToMeKeyPruner:
    """Merges the keys that are most alike, by ToMe's matching, after each of the first n layers.

    Similarity is that of the projected keys, averaged over heads, as in ToMe. Keys and values are merged alike,
    weighted by the number of keys that each one stands for. Queries are merged in the same way, by their projections,
    with their positions and reference points.

    Args:
        plan: How many keys and queries, over how many layers.
        num_layers: Layers of the decoder.
        record: Keep ids in `kept`; a merged key has the id of its destination.
    """

    def __init__(self, plan: ToMePlan, num_layers: int, record: bool = False) -> None:
        plan.check(num_layers)
        self.plan = plan
        self.num_layers = num_layers
        self.record = record
        self.kept: list[Tensor] = []
        self.has_pruned = False
        self.query_removals = plan.query_removals(num_layers)
        self._size: Tensor | None = None
        self._query_size: Tensor | None = None

    def __call__(self, layer: int, query: Tensor, keys: Keys, record: AttentionRecord, score_fn: ScoreFunction) -> Kept:
        """See `KeyPruner`.

        Raises:
            ValueError: If a layer would lose more than half of its keys or queries, or if keys are masked.
        """
        if keys.padding_mask is not None or keys.attention_mask is not None:
            raise ValueError('ToMe knows no masks: a padded key would be merged into one that carries an image')
        batch, num = keys.key.shape[:2]
        if layer == 0:
            self._size = self._query_size = None
            self._removals = self.plan.removals(self.num_layers, num)
            self.kept = [torch.arange(num, device=keys.key.device).expand(batch, -1)] if self.record else []
        if self._removals[layer] or self.query_removals[layer]:
            self.has_pruned = True
        return Kept(self._merge_keys(layer, keys, record), self._merge_queries(layer, record))

    def _merge_queries(self, layer: int, record: AttentionRecord) -> Reduce | None:
        if not self.query_removals[layer]:
            return None
        metric, before = record.query.mean(1), self._query_size
        matching = tome.bipartite_matching(metric, self.query_removals[layer])
        self._query_size = tome.merge_tokens(metric[..., :1], matching, before)[1]
        return lambda tokens: tome.merge_tokens(tokens, matching, before)[0]

    def _merge_keys(self, layer: int, keys: Keys, record: AttentionRecord) -> Keys:
        if not self._removals[layer]:
            self.kept += self.kept[-1:]
            return keys
        matching = tome.bipartite_matching(record.key.mean(1), self._removals[layer])
        before = self._size
        merged = keys.map(lambda tokens: tome.merge_tokens(tokens, matching, before)[0])
        self._size = tome.merge_tokens(keys.key[..., :1], matching, before)[1]
        if self.record:
            sources, destinations = self.kept[-1][:, ::2], self.kept[-1][:, 1::2]
            self.kept.append(torch.cat((compose(sources, matching.stay), destinations), dim=1))
        return merged


PRUNERS: dict[str, type[KeyPruner]] = {TgGBCPlan.method: TgGBCKeyPruner, ToMePlan.method: ToMeKeyPruner}
"""Method -> pruner."""


def make_pruner(plan: KeyPlan, num_layers: int, record: bool = False) -> KeyPruner:
    """The pruner of `plan` for a decoder of `num_layers`; see `KeyPruner`.

    Raises:
        ValueError: If the plan does not fit the decoder.
    """
    return PRUNERS[plan.method](plan, num_layers, record)
