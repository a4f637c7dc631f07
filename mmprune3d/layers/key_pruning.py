"""tgGBC between the layers of a decoder: the plan of `pruning.tggbc` applied to the keys of cross-attention."""

from __future__ import annotations

from collections.abc import Callable

import torch
from mmengine.logging import print_log
from torch import Tensor

from mmprune3d.pruning.plan import TgGBCPlan
from mmprune3d.pruning.selection import compose, gather_tokens
from mmprune3d.pruning.tggbc import confident_queries, keep_important, key_importance, query_confidence

from .attention import Keys


class TgGBCKeyPruner:
    """Removes the keys that confident queries look at least, after each of the first n layers.

    A decoder asks it between layers (the protocol is `KeyPruner` in `models.petr.decoder`). All tensors of `Keys` are
    gathered by the same per-sample indices.

    Args:
        plan: How many keys, over how many layers, by how many queries.
        num_layers: Layers of the decoder.
        record: Keep the original ids of the surviving keys in `kept`; off by default, it costs a gather per layer.

    Attributes:
        kept: With `record`, one [B, N_k] int64 per layer of the last forward pass: the keys which that layer attends
            to.
        times_pruned: How often keys were removed since the pruner was made.
    """

    def __init__(self, plan: TgGBCPlan, num_layers: int, record: bool = False) -> None:
        self.plan = plan
        self.removals = plan.removals(num_layers)
        self.record = record
        self.kept: list[Tensor] = []
        self.times_pruned = 0
        self._clamp_logged = False

    @torch.no_grad()
    def __call__(
        self,
        layer: int,
        query: Tensor,
        keys: Keys,
        *,
        attention_rows: Callable[[Tensor], Tensor],
        score_fn: Callable[[int, Tensor], Tensor],
    ) -> Keys:
        """The keys for the layer after `layer`.

        Args:
            layer: The layer that has just run, from 0.
            query: [B, N_q, C], its normed output.
            keys: What it attended to.
            attention_rows: Query indices [B, k] -> their head-averaged attention [B, k, N_k].
            score_fn: (layer, query) -> logits [B, N_q, classes].

        Raises:
            ValueError: If the plan leaves no key.
        """
        batch, num_keys = keys.content.shape[:2]
        if layer == 0:
            self.plan.keys_per_layer(num_keys, len(self.removals))
            self.kept = [torch.arange(num_keys, device=query.device).expand(batch, -1)] if self.record else []
        if not self.removals[layer]:
            self.kept += self.kept[-1:]
            return keys
        self._log_clamp(query.shape[1])
        confidence = query_confidence(score_fn(layer, query), self.plan.activation)
        confidence, chosen = confident_queries(confidence, self.plan.k)
        importance = key_importance(confidence, attention_rows(chosen), keys.padding_mask)
        index = keep_important(importance, self.removals[layer])
        if self.record:
            self.kept.append(compose(self.kept[-1], index))
        self.times_pruned += 1
        return keys.map(lambda tokens: gather_tokens(tokens, index))

    def _log_clamp(self, num_queries: int) -> None:
        if self.plan.k > num_queries and not self._clamp_logged:
            print_log(f'tgGBC: k={self.plan.k} exceeds the {num_queries} queries; all of them count', logger='current')
            self._clamp_logged = True
