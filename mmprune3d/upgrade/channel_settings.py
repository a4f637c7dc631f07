"""The settings of channel removal, in a config or on a command line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from mmprune3d.adapters.fusion import MAP_SETTINGS, FusionMap, check_map_settings, fusion_map
from mmprune3d.pruning import checks
from mmprune3d.pruning.altermoma import AlterMOMAPlan
from mmprune3d.pruning.settings import names

MAP = MAP_SETTINGS
"""Settings of `fusion_map`."""
OF_TRAININGS = ('epochs_per_round', 'rewind')
"""Settings of a config's ``pruning`` that only masks know, in a training."""


def with_target(settings: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """`settings` with those that were `given`, of which a target replaces any other.

    ``channels`` is a target in channels (`sparsity` with ``mode='channels'``). The mode is filled in where a target
    needs channels.
    """
    given = dict(given)
    if 'channels' in given:
        given |= {'sparsity': given.pop('channels'), 'mode': 'channels'}
    targets = set(AlterMOMAPlan.targets)
    kept = {name: value for name, value in settings.items() if name not in targets or not targets & set(given)}
    made = {**kept, **given}
    if 'sparsity' not in made and targets & set(made):
        made['mode'] = 'channels'
    return made


@dataclass(frozen=True)
class ChannelSettings:
    """How channels are removed; in a config or on the command line its settings stand beside those of the plan.

    Attributes:
        plan: Criterion and target.
        max_ratio: No group of channels loses more than this share.
        round_to: Kept channels are a multiple of this, for hardware.
        tolerance: How far what is reached may be from the target.
        recalibrate: Batches on which batch norm is estimated anew in the slim model; 0 leaves it alone.
        map: Arguments of `fusion_map`, for detectors without a map.

    Raises:
        ValueError: If a setting is unknown or not valid, or the plan does not remove channels.
    """

    plan: AlterMOMAPlan
    max_ratio: float = 0.9
    round_to: int = 1
    tolerance: float = 0.01
    recalibrate: int = 0
    map: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.plan.mode != 'channels':
            raise ValueError(
                f"mode={self.plan.mode!r}; removing channels needs mode='channels', flops=... or params=..."
            )
        limits: dict[str, dict[str, Any]] = {'max_ratio': dict(above=0, most=1), 'tolerance': dict(most=1)}
        for name, limit in limits.items():
            object.__setattr__(self, name, checks.number(name, getattr(self, name), **limit))
        for name, least in (('round_to', 1), ('recalibrate', 0)):
            object.__setattr__(self, name, checks.count(name, getattr(self, name), least))
        if self.map is not None:
            check_map_settings(checks.settings('map', self.map, MAP, "dict(groups=dict(camera=['img_backbone']))"))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ChannelSettings:
        """From plain settings, those of the plan and of the fusion map among them."""
        own = [name for name in names(cls) if name not in ('plan', 'map')]
        plan, others = AlterMOMAPlan.beside('pruning', data, [*own, *MAP])
        given = {name: others.pop(name) for name in MAP if name in others}
        return cls(plan, **others, map=given)

    def fusion_map(self, model: nn.Module) -> FusionMap:
        """The fusion map of `model`, by these settings or by its adapter."""
        return fusion_map(model, **(self.map or {}))
