"""The oracle of key pruning: a decoder that prunes one sample at a time, with full maps, full sorts and loops."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mmprune3d.layers.attention import Keys
from mmprune3d.layers.key_pruning import KeyPruner, ScoreFunction
from mmprune3d.pruning.tggbc import TgGBCPlan

Inputs = tuple[Tensor, Keys, Tensor]
"""Queries, keys, positions of queries, as ``PETR3DDecoder`` takes them."""


class Slow(NamedTuple):
    """One sample: normed outputs of every layer, the ids of its queries, the ids of the real keys that it saw."""

    outputs: list[Tensor]
    queries: list[list[int]]
    keys: list[set[int]]


def sample_of(data: Inputs, b: int) -> Inputs:
    keys = Keys(*(None if part is None else part[b : b + 1] for part in data[1]))
    return data[0][b : b + 1], keys, data[2][b : b + 1]


def run_layer(layer: nn.Module, query: Tensor, keys: Keys, query_pos: Tensor) -> tuple[Tensor, Tensor]:
    """A decoder layer by ``nn.MultiheadAttention``, with the full map."""
    query = layer.norms[0](layer.attentions[0].reference(query, Keys(query + query_pos, query), query_pos)[0])
    query, attention = layer.attentions[1].reference(query, keys, query_pos)
    return layer.norms[2](layer.ffns[0](layer.norms[1](query))), attention


def confidence_of(logits: Tensor, plan: TgGBCPlan) -> Tensor:
    if plan.score == 'none':
        return torch.ones(len(logits))
    if plan.activation == 'softmax':
        logits = logits.softmax(-1)[:, :-1]
    reduced = torch.stack([{'max': max, 'min': min}.get(plan.score, torch.mean)(row) for row in logits])
    return reduced if plan.activation == 'softmax' else reduced.sigmoid()


def decode_one(decoder: nn.Module, score_fn: ScoreFunction, plan: TgGBCPlan, data: Inputs) -> Slow:
    """One sample, by itself. Where a plan is about valid keys, padded ones are cut off before anything else."""
    query, keys, query_pos = data
    ids, who, slow = torch.arange(keys.key.shape[1]), torch.arange(query.shape[1]), Slow([], [], [])
    padded = keys.padding_mask[0] if keys.padding_mask is not None else torch.zeros(len(ids), dtype=torch.bool)
    if plan.is_share or plan.t:
        keys, ids = Keys(keys.key[:, ~padded], keys.value[:, ~padded]), ids[~padded]
    removals = plan.removals(len(decoder.layers), len(ids))
    for index, layer in enumerate(decoder.layers):
        slow.keys.append({i for i in ids.tolist() if not padded[i]})
        slow.queries.append(who.tolist())
        query, attention = run_layer(layer, query, keys, query_pos)
        slow.outputs.append(decoder.post_norm(query)[0])
        if index == len(decoder.layers) - 1:
            break
        confidence = confidence_of(score_fn(index, slow.outputs[-1][None])[0], plan)
        order = confidence.argsort(descending=True)
        if removals[index]:
            best = order[: plan.k or None]
            importance = (confidence[best, None] * attention[0][best]).sum(0)
            if keys.padding_mask is not None:
                importance[keys.padding_mask[0]] = -1
            stay = importance.argsort()[removals[index] :].sort().values
            keys, ids = keys.map(lambda part, stay=stay: part[:, stay]), ids[stay]
        lost = plan.query_removals(len(decoder.layers))[index]
        if lost:
            stay = order[: len(order) - lost].sort().values
            query, query_pos, who = query[:, stay], query_pos[:, stay], who[stay]
    return slow


def decode(decoder: nn.Module, score_fn: ScoreFunction, plan: TgGBCPlan, data: Inputs) -> list[Slow]:
    """All samples."""
    return [decode_one(decoder, score_fn, plan, sample_of(data, b)) for b in range(len(data[0]))]


class Spy:
    """A pruner that remembers what it was given and what it left."""

    def __init__(self, pruner: KeyPruner, before: Callable[..., None] | None = None) -> None:
        self.pruner = pruner
        self.before = before
        self.left: list[Keys] = []

    def __call__(self, layer: int, *args: object) -> tuple:
        if self.before is not None:
            self.before(layer, *args)
        kept = self.pruner(layer, *args)
        self.left.append(kept.keys)
        return kept

    def seen(self, keys: Keys) -> list[list[set[int]]]:
        """Ids of the keys that each layer saw, without masked ones: layers x samples. `keys` are those of the start."""
        result = []
        for ids, tokens in zip(self.pruner.kept, [keys, *self.left], strict=True):
            mask = torch.zeros_like(ids, dtype=torch.bool) if tokens.padding_mask is None else tokens.padding_mask
            result.append([set(row[~gone].tolist()) for row, gone in zip(ids, mask, strict=True)])
        return result
