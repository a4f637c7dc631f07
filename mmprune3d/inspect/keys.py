"""How much of the attention of later decoder layers falls on the keys that tgGBC keeps.

tgGBC chooses keys by the attention of one decoder layer and removes the others from all later layers. That is harmless
as far as the attention of these layers falls on the keys that stay. It is measured on the unpruned detector.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from mmprune3d.adapters import petr
from mmprune3d.layers.attention import AttentionRecord, Keys
from mmprune3d.layers.key_pruning import Kept, ScoreFunction
from mmprune3d.pruning.selection import gather_tokens, top_indices
from mmprune3d.pruning.tggbc import TgGBCPlan, confident_queries, query_confidence

VOTERS = 175
"""Queries whose attention makes keys important, the `k` of a tgGBC plan, unless another number is given."""
SHOWN = 20
"""Queries whose attention is measured: the most confident ones of the last layer but one."""


class Listener:
    """A key pruner that removes nothing and records what it is given after every decoder layer but the last.

    Attributes:
        confidence: Per layer, [B, N_q], the confidence of the queries.
        records: Per layer, the projected inputs of its cross-attention.
    """

    plan = TgGBCPlan(r=0)

    def __init__(self) -> None:
        self.confidence: list[Tensor] = []
        self.records: list[AttentionRecord] = []

    def __call__(self, layer: int, query: Tensor, keys: Keys, record: AttentionRecord, score_fn: ScoreFunction) -> Kept:
        """Records confidence and attention, and keeps all keys; see `layers.tggbc.KeyPruner`."""
        self.confidence.append(query_confidence(score_fn(layer, query)))
        self.records.append(record)
        return Kept(keys)


def attention_kept(listener: Listener, share: float, voters: int = VOTERS) -> Tensor:
    """How much of each layer's attention falls on the keys that tgGBC keeps by another layer.

    Args:
        listener: After one forward pass of a decoder with L layers.
        share: Share of the keys that stays, 0..1.
        voters: Queries by whose attention keys are chosen; 0 means all.

    Returns:
        [L - 1, L - 1]: row j, column l is the mean attention that the `SHOWN` most confident queries pay in layer l to
        the keys that stay by the importance of layer j.
    """
    attention, table = shown_attention(listener), []
    for confidence, record in zip(listener.confidence, listener.records, strict=True):
        importance = record.importance(*confident_queries(confidence, voters))
        stay = top_indices(importance, round(share * importance.shape[1]))
        table.append(torch.stack([gather_tokens(rows, stay).sum(1).mean() for rows in attention]))
    return torch.stack(table)


def attention_on(listener: Listener, kept: Sequence[Tensor]) -> Tensor:
    """How much of each layer's attention falls on the keys that a plan leaves it.

    Args:
        listener: After one forward pass of the unpruned decoder with L layers.
        kept: Per layer, [B, N_k] ids of the keys that it attends to under the plan, for the same samples.

    Returns:
        [L - 1]: per layer but the last, the mean attention that the `SHOWN` most confident queries pay to these keys.
    """
    return torch.stack([gather_tokens(rows, ids).sum(1).mean() for rows, ids in zip(shown_attention(listener), kept)])


def shown_attention(listener: Listener) -> list[Tensor]:
    """Per layer, the attention [B, N_k, `SHOWN`] of the most confident queries, averaged over heads."""
    _, shown = confident_queries(listener.confidence[-1], SHOWN)
    return [record.rows(shown).transpose(1, 2) for record in listener.records]


@contextmanager
def listening(model: nn.Module) -> Iterator[Callable[[], Listener | None]]:
    """Records the attention of a detector in forward passes inside the block.

    Args:
        model: The detector, unpruned.

    Yields:
        A function to call before every forward pass: it returns the `Listener` of that pass, or None if the detector is
        not our PETR, which alone tells its attention.
    """
    decoder = petr.find(model)
    before = None if decoder is None else decoder.key_pruner

    def fresh() -> Listener | None:
        if decoder is None:
            return None
        decoder.key_pruner = made = Listener()
        return made

    try:
        yield fresh
    finally:
        if decoder is not None:
            decoder.key_pruner = before


@torch.no_grad()
def mean_attention_kept(model: nn.Module, calls: Iterable[Callable[[], object]], share: float) -> Tensor | None:
    """Mean of `attention_kept` over forward passes.

    Args:
        model: The detector, unpruned.
        calls: Each runs one forward pass of it.
        share: Share of the keys that stays.

    Returns:
        [L - 1, L - 1], or None if there are no calls, or the detector is not our PETR, which alone tells its
        attention.
    """
    tables = []
    with listening(model) as fresh:
        for call in calls:
            listener = fresh()
            if listener is None:
                return None
            call()
            tables.append(attention_kept(listener, share))
    return torch.stack(tables).mean(0) if tables else None


def markdown(table: Tensor, share: float, samples: int, voters: int = VOTERS) -> Iterator[str]:
    """The table of `mean_attention_kept` as lines of Markdown."""
    yield from ('## Do later layers look at the keys that earlier ones keep?', '')
    yield f'Share of the attention of the {SHOWN} most confident queries, in percent, that falls on the keys that tgGBC'
    stay = f'{100 * share:.3g}'
    yield f'keeps by one layer (k = {voters}, {stay} % stay); chance is {stay}. {samples} samples.'
    yield from ('', '| kept by layer | ' + ' | '.join(f'seen by layer {i + 1}' for i in range(len(table))) + ' |')
    yield '|---|' + '---:|' * len(table)
    for i, row in enumerate(table.tolist()):
        yield f'| {i + 1} | ' + ' | '.join(f'{100 * value:.0f}' for value in row) + ' |'
    yield ''
