"""Key pruning between the layers of a decoder: a plan at work on the keys of cross-attention, whatever the method.

A decoder, or the adapter of one, makes a pruner by `make_pruner` and asks it after every layer but the last::

    kept = pruner(layer, query, keys, record, score_fn)

and goes on with ``kept.keys``, and with ``kept.reduce(queries)`` if that is not None.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from torch import Tensor

from mmprune3d.pruning.key_plan import KeyPlan

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


PRUNERS: dict[str, type[KeyPruner]] = {}
"""Method -> pruner; each pruner's file adds its own."""


def register(method: str) -> Callable[[type[KeyPruner]], type[KeyPruner]]:
    """Decorates the pruner of a method, so that `make_pruner` makes it for plans of that method."""

    def add(pruner: type[KeyPruner]) -> type[KeyPruner]:
        PRUNERS[method] = pruner
        return pruner

    return add


def make_pruner(plan: KeyPlan, num_layers: int, record: bool = False) -> KeyPruner:
    """The pruner of `plan` for a decoder of `num_layers`; see `KeyPruner`.

    Raises:
        ValueError: If the plan does not fit the decoder.
    """
    return PRUNERS[plan.method](plan, num_layers, record)
