"""The control of key pruning: as many keys are removed, but at random."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from mmprune3d.layers.attention import AttentionRecord, Keys
from mmprune3d.layers.key_pruning import PRUNERS, Kept, ScoreFunction
from mmprune3d.layers.tggbc import TgGBCKeyPruner
from mmprune3d.pruning.tggbc import REMOVED_FIRST, TgGBCPlan


@dataclass(frozen=True)
class RandomPlan(TgGBCPlan):
    """A plan that removes keys at random: as many as tgGBC, after the same layers.

    Attributes:
        score: 'none': queries have no influence.
        seed: Seed of the random numbers; every forward pass draws new ones.
    """

    method: ClassVar[str] = 'random'
    title: ClassVar[str] = 'random'
    example: ClassVar[str] = 'r=3000,n=2,seed=0'

    score: str = 'none'
    seed: int = 0

    def to_dict(self) -> dict[str, Any]:
        """The plan as a dictionary, without the settings that have no effect."""
        values = super().to_dict()
        return {name: values[name] for name in ('method', 'r', 'n', 'seed')}


class RandomImportance(NamedTuple):
    """Stands in for an `AttentionRecord`: the importance of keys is random."""

    values: Tensor

    def importance(self, confidence: Tensor, index: Tensor) -> Tensor:
        """The random values [B, N_k]; the arguments are not used."""
        return self.values


class RandomKeyPruner(TgGBCKeyPruner):
    """tgGBC's pruner with random importance; padded keys are still removed first.

    Args:
        plan: How many keys are removed, over how many layers, and the seed.
        num_layers: Number of decoder layers.
        record: See `TgGBCKeyPruner`.
    """

    def __init__(self, plan: RandomPlan, num_layers: int, record: bool = False) -> None:
        super().__init__(plan, num_layers, record)
        self._generator = torch.Generator().manual_seed(plan.seed)

    def __call__(self, layer: int, query: Tensor, keys: Keys, record: AttentionRecord, score_fn: ScoreFunction) -> Kept:
        """Removes keys after a layer; see `KeyPruner`."""
        values = torch.rand(keys.key.shape[:2], generator=self._generator).to(keys.key.device)
        if keys.padding_mask is not None:
            values = values.masked_fill(keys.padding_mask, REMOVED_FIRST)
        return super().__call__(layer, query, keys, RandomImportance(values), score_fn)


PRUNERS[RandomPlan.method] = RandomKeyPruner
