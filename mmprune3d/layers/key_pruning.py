"""Key pruning between the layers of a decoder: a plan at work on the keys of cross-attention, whatever the method.

A decoder, or the adapter of one, makes a pruner by `make_pruner` and asks it after every layer but the last::

    kept = pruner(layer, query, keys, record, score_fn)

and goes on with ``kept.keys``, and with ``kept.reduce(queries)`` if that is not None.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from mmprune3d.pruning.key_plan import KeyPlan

from .attention import AttentionRecord, Keys

ScoreFunction = Callable[[int, Tensor], Tensor]
"""(layer, normed queries [B, N_q, C]) -> logits [B, N_q, classes] of that layer's classification branch."""


Reduce = Callable[[Tensor], Tensor]
"""From a tensor of all queries, [B, N_q, C], to that of the queries that are left, which are chosen or merged."""


class Kept(NamedTuple):
    """The keys that the next layer attends to, and the queries that it has.

    Attributes:
        keys: The keys of the next layer.
        reduce: The function that reduces tensors of the queries, or None if all queries stay.
    """

    keys: Keys
    reduce: Reduce | None = None


@dataclass
class KeyRecord:
    """Which keys the layers of a decoder attend to in one forward pass.

    Attributes:
        kept: One [B, N_k] int64 per layer: the original ids of the keys that the layer attends to; -1 fills up samples
            that keep fewer than others.
        changed: The layers, counted from 0, that attend to other keys than the layer before them.
    """

    kept: list[Tensor] = field(default_factory=list)
    changed: list[int] = field(default_factory=list)

    def same(self) -> None:
        """Notes that the next layer attends to the keys of the layer before it."""
        self.kept.append(self.kept[-1])

    def other(self, ids: Tensor) -> None:
        """Notes the ids [B, N_k] of the keys that the next layer attends to, others than the layer before it."""
        self.changed.append(len(self.kept))
        self.kept.append(ids)


class KeyPruner(ABC):
    """Chooses keys between decoder layers. A method has a subclass, which is registered by `register`.

    Args:
        plan: How many keys to remove, and after which layers.
        num_layers: Number of decoder layers.
        record: Whether to keep the original ids of the surviving keys; off by default, it costs a gather per layer.

    Attributes:
        record: The argument; a change holds from the next forward pass on.
        recorded: The keys that the layers of the last forward pass attend to; empty without `record`.
        has_pruned: Whether anything was removed since the pruner was made.

    Raises:
        ValueError: If the plan does not fit the decoder.
    """

    def __init__(self, plan: KeyPlan, num_layers: int, record: bool = False) -> None:
        plan.check(num_layers)
        self.plan = plan
        self.num_layers = num_layers
        self.has_pruned = False
        self.record = record
        self.recorded = KeyRecord()

    @abstractmethod
    def __call__(self, layer: int, query: Tensor, keys: Keys, record: AttentionRecord, score_fn: ScoreFunction) -> Kept:
        """Returns what stays for the next layer.

        Args:
            layer: The layer that has just run, from 0.
            query: [B, N_q, C], its normed output without denoising queries.
            keys: The keys that it attended to.
            record: The record of its cross-attention, for the same queries.
            score_fn: The function that gives the logits of these queries.
        """

    @property
    def kept(self) -> list[Tensor]:
        """The ids of `recorded`, one [B, N_k] per layer."""
        return self.recorded.kept

    def begin_record(self, keys: Keys) -> None:
        """Forgets the last forward pass: the first layer attends to all `keys`."""
        batch, num = keys.key.shape[:2]
        self.recorded = KeyRecord([torch.arange(num, device=keys.key.device).expand(batch, -1)] if self.record else [])

    def record_same(self) -> None:
        """Notes, if ids are kept, that nothing was removed after a layer."""
        if self.record:
            self.recorded.same()


PRUNERS: dict[str, type[KeyPruner]] = {}
"""Method -> pruner; each pruner's file adds its own."""


def register(method: str) -> Callable[[type[KeyPruner]], type[KeyPruner]]:
    """Decorates the pruner of a method, so that `make_pruner` makes it for plans of that method."""

    def add(pruner: type[KeyPruner]) -> type[KeyPruner]:
        PRUNERS[method] = pruner
        return pruner

    return add


def make_pruner(plan: KeyPlan, num_layers: int, record: bool = False) -> KeyPruner:
    """The pruner of the plan's method, for a decoder of `num_layers`.

    Args:
        plan: The plan of a method that has a pruner.
        num_layers: Number of decoder layers.
        record: See `KeyPruner`.

    Raises:
        ValueError: If the plan does not fit the decoder.
    """
    return PRUNERS[plan.method](plan, num_layers, record)
