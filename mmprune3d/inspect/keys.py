"""Do later decoder layers look where earlier ones looked?

tgGBC removes keys by the attention of one layer from all later ones. That is harmless as far as their attention falls
on the keys that stay; this module measures how much of it does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn

from mmprune3d.adapters import petr
from mmprune3d.layers.attention import AttentionRecord, Keys
from mmprune3d.layers.key_pruning import Kept, ScoreFunction
from mmprune3d.pruning.selection import gather_tokens, top_indices
from mmprune3d.pruning.tggbc import TgGBCPlan, confident_queries, query_confidence

VOTERS = 175
SHOWN = 20
"""Queries whose attention counts in the table: the most confident ones of the last layer that is asked."""


class Listener:
    """A pruner that removes nothing and remembers confidence and attention of every layer that asks it."""

    plan = TgGBCPlan(r=0)

    def __init__(self) -> None:
        self.confidence: list[Tensor] = []
        self.records: list[AttentionRecord] = []

    def __call__(self, layer: int, query: Tensor, keys: Keys, record: AttentionRecord, score_fn: ScoreFunction) -> Kept:
        """Remembers, and keeps all keys."""
        self.confidence.append(query_confidence(score_fn(layer, query)))
        self.records.append(record)
        return Kept(keys)


def attention_kept(listener: Listener, share: float) -> Tensor:
    """How much of each layer's attention falls on the keys that tgGBC keeps by another layer.

    Args:
        listener: After one forward pass of a decoder with L layers.
        share: Of the keys that stays, 0..1.

    Returns:
        [L - 1, L - 1]: row j, column l is the mean attention that the `SHOWN` most confident queries pay in layer l to
        the keys that stay by the importance of layer j (k = `VOTERS`).
    """
    _, shown = confident_queries(listener.confidence[-1], SHOWN)
    attention = [record.rows(shown).transpose(1, 2) for record in listener.records]
    table = []
    for confidence, record in zip(listener.confidence, listener.records, strict=True):
        importance = record.importance(*confident_queries(confidence, VOTERS))
        stay = top_indices(importance, round(share * importance.shape[1]))
        table.append(torch.stack([gather_tokens(rows, stay).sum(1).mean() for rows in attention]))
    return torch.stack(table)


@torch.no_grad()
def mean_attention_kept(model: nn.Module, calls: Iterable[Callable[[], object]], share: float) -> Tensor | None:
    """Mean of `attention_kept` over forward passes.

    Args:
        model: The detector, unpruned.
        calls: Each runs one forward pass of it.
        share: Of the keys that stays.

    Returns:
        [L - 1, L - 1], or None if the detector is not our PETR, which alone tells its attention.
    """
    decoder, tables = petr.find(model), []
    if decoder is None:
        return None
    before = decoder.key_pruner
    try:
        for call in calls:
            decoder.key_pruner = listener = Listener()
            call()
            tables.append(attention_kept(listener, share))
    finally:
        decoder.key_pruner = before
    return torch.stack(tables).mean(0)


def markdown(table: Tensor, share: float, samples: int) -> Iterator[str]:
    """Lines of the table."""
    yield from ('## Do later layers look at the keys that earlier ones keep?', '')
    yield f'Share of the attention of the {SHOWN} most confident queries, in percent, that falls on the keys that tgGBC'
    yield f'keeps by one layer (k = {VOTERS}, {100 * share:g} % stay); chance is {100 * share:g}. {samples} samples.'
    yield from ('', '| kept by layer | ' + ' | '.join(f'seen by layer {i + 1}' for i in range(len(table))) + ' |')
    yield '|---|' + '---:|' * len(table)
    for i, row in enumerate(table.tolist()):
        yield f'| {i + 1} | ' + ' | '.join(f'{100 * value:.0f}' for value in row) + ' |'
    yield ''
