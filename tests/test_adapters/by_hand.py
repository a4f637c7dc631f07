"""tgGBC as slowly and plainly as possible, for one sample of any decoder: what the adapters are compared with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mmprune3d.pruning.tggbc import TgGBCPlan


class ByHand(NamedTuple):
    """Of one sample: logits [layers, N_q, classes], and for each layer the ids of the keys it attends to, ascending."""

    logits: Tensor
    kept: list[Tensor]


@torch.no_grad()
def prune_by_hand(
    run: Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]],
    logits_of: Callable[[int, Tensor], Tensor],
    query: Tensor,
    padding: Tensor,
    plan: TgGBCPlan,
    num_layers: int,
    background: bool = False,
) -> ByHand:
    """Never shows a padded key to a layer, makes full attention maps, and sorts all keys.

    Args:
        run: (layer, queries, ids of the keys to attend to) -> queries and the map [N_q, N_k], averaged over heads.
        logits_of: (layer, queries) -> [N_q, classes].
        query: The first queries.
        padding: [N_k] bool, True for padding.
        plan: Its r, n, k, t and activation count.
        num_layers: Of the decoder.
        background: Wrongly let the background column count.
    """
    ids = (~padding).nonzero()[:, 0]
    counts = counts_of(plan, num_layers, len(ids), int(padding.sum()))
    logits, kept = [], []
    for layer in range(num_layers):
        kept.append(ids)
        query, attention = run(layer, query, ids)
        logits.append(logits_of(layer, query))
        confidence = scores(logits[-1], plan.activation, background)
        chosen = confidence.sort(descending=True).indices[: plan.k or None]
        importance = sum(confidence[q] * attention[q] for q in chosen)
        ids = ids[importance.sort().indices[counts[layer] :].sort().values]
    return ByHand(torch.stack(logits), kept)


def counts_of(plan: TgGBCPlan, num_layers: int, valid: int, padded: int) -> list[int]:
    """How many valid keys go after each layer. Padded keys go first where the plan counts keys and not shares."""
    if plan.is_share or plan.t:
        return list(plan.removals(num_layers, valid))
    counts = []
    for count in plan.removals(num_layers, valid + padded):
        counts.append(max(0, count - padded))
        padded = max(0, padded - count)
    return counts


def scores(logits: Tensor, activation: str, background: bool) -> Tensor:
    if activation == 'sigmoid':
        return logits.sigmoid().max(-1).values
    return logits.softmax(-1)[:, : None if background else -1].max(-1).values


@contextmanager
def full_map(attention: nn.Module) -> Iterator[list[Tensor]]:
    """Collects the head means [B, N_q, N_k] that the attention makes and its caller throws away."""
    maps: list[Tensor] = []

    def collect(output: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        maps.append(output[1])
        return output

    if isinstance(attention, nn.MultiheadAttention):
        handle = attention.register_forward_hook(lambda module, args, output: collect(output))
        yield maps
        handle.remove()
    else:
        original = attention.forward_attn
        attention.forward_attn = lambda **inputs: collect(original(**inputs))
        yield maps
        del attention.forward_attn


def assert_equal(logits: Tensor, kept: list[Tensor], expected: list[ByHand]) -> None:
    """Logits [layers, B, N_q, classes] and ids [B, keys] per layer are those of `expected`, one per sample."""
    for i, sample in enumerate(expected):
        torch.testing.assert_close(logits[:, i], sample.logits, atol=2e-4, rtol=1e-4)
        for ids, wanted in zip(kept, sample.kept, strict=True):
            # Slots that a sample does not need hold padding, or, behind its own keys, what was removed.
            real = ids[i][torch.isin(ids[i], sample.kept[0])][: len(wanted)]
            assert torch.equal(real.sort().values, wanted)
