"""From a detector and some batches to scores of whole channels, and to the channels that stay, for every criterion."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.dist import broadcast, get_world_size
from torch import Tensor, nn

from mmprune3d.adapters.fusion import FusionMap
from mmprune3d.engine.criteria import Measured, Scores, score
from mmprune3d.pruning.alter_eva import PerChannel
from mmprune3d.pruning.altermoma import WeightPlan
from mmprune3d.pruning.channel_selection import Costs, Selection, select_channels
from mmprune3d.pruning.channels import ChannelGroup, channel_masks, group_terms

MAKING = ('out', 'through')
"""Roles of the tensors whose terms count for a channel, see `group_terms`."""
Choose = Callable[[Mapping[str, Tensor], float], Selection]
"""From scores and the share to remove to the channels that stay."""


def trained_groups(model: nn.Module, groups: Sequence[ChannelGroup]) -> tuple[list[ChannelGroup], list[str]]:
    """The groups with a trained weight among those that make them, and the names of the others, which are frozen."""
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    kept = [group for group in groups if any(m.role == 'out' and m.tensor in trained for m in group.members)]
    names = {group.name for group in kept}
    return kept, [group.name for group in groups if group.name not in names]


def score_channels(
    model: nn.Module,
    plan: WeightPlan,
    batches: Sequence[Any],
    fusion: FusionMap,
    groups: Sequence[ChannelGroup],
    choose: Choose,
) -> Scores:
    """Scores of channels, by the criterion of the plan; see `mmprune3d.engine.criteria.score`.

    AlterMOMA, SNIP and ProsPr sum the signed terms ``weight x gradient`` over everything that makes a channel, norm
    affines and biases included, before the absolute value (AlterMOMA, appendix D; `plan.reduce` has alternatives).
    SynFlow sums the scores of the weights that make it. The magnitude is the root mean square, over the layers that
    make the channel, of the L2 norms of its weights, which has one scale in narrow and wide layers.

    Args:
        model: The detector, not wrapped.
        plan: Criterion and its settings.
        batches: Batches, see `mmprune3d.engine.criteria.score`.
        fusion: The model's map; a group of channels belongs where the module belongs that it is named after.
        groups: The groups of `trained_groups`.
        choose: Chooses what SynFlow removes between its rounds.

    Returns:
        Group name -> [C] scores on the CPU, and notes.

    Raises:
        ValueError: If there are too few batches, or AlterMOMA finds fewer than two modalities with weights.
        FloatingPointError: If a gradient is not finite.
    """
    found = score(Channels(model, plan, fusion, groups, choose), batches)
    return Scores({name: values.detach().cpu() for name, values in found.values.items()}, found.notes)


def choose_channels(
    scores: Mapping[str, Tensor],
    groups: Sequence[ChannelGroup],
    plan: WeightPlan,
    share: float,
    costs: Costs | None = None,
    max_ratio: float = 0.9,
    round_to: int = 1,
    tolerance: float = 0.01,
) -> Selection:
    """The channels that stay when `share` of what the plan's target counts is removed.

    Of several processes, the first one decides for all: costs are counted on samples, of which each has others.

    Args:
        scores: Group name -> [C] scores.
        groups: The groups of coupled channels.
        plan: The plan, for the kind of its target and for `min_keep`: channels per group, or their share.
        share: Share to remove.
        costs: The costs, for targets in FLOPs and parameters.
        max_ratio: No group loses more than this share.
        round_to: Kept channels are a multiple of this.
        tolerance: How far the reached share may be from `share`.

    Raises:
        ValueError: If the target cannot be reached, or the plan wants a scope other than 'global'.
    """
    if plan.scope != 'global':
        raise ValueError(f"scope={plan.scope!r}: channels are ranked all together, scope='global'")
    kind = 'channels' if plan.target[0] == 'sparsity' else plan.target[0]
    if 0 < plan.min_keep < 1:
        max_ratio = min(max_ratio, 1 - plan.min_keep)
    least = max(1, math.floor(plan.min_keep))
    selection = select_channels(scores, groups, (kind, share), costs, max_ratio, least, round_to, tolerance)
    if get_world_size() > 1:
        for kept in selection.keep.values():
            bits = kept.to(torch.uint8)
            broadcast(bits)
            kept.copy_(bits)
    return selection


@dataclass(frozen=True)
class Channels(Measured):
    """Whole channels of convolutions and linear layers, coupled ones together.

    Attributes:
        coupled: The groups of coupled channels, see `trained_groups`.
        choose: Chooses what SynFlow removes between its rounds.
    """

    coupled: Sequence[ChannelGroup]
    choose: Choose

    @property
    def measure(self) -> PerChannel:
        """The measure of channels, by the plan's `reduce`."""
        return PerChannel(self.coupled, self.plan.reduce, MAKING)

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """Name -> trained parameter that makes channels, or scales them on their way."""
        making = {m.tensor for group in self.coupled for m in group.members if m.role in MAKING}
        return {n: p for n, p in self.model.named_parameters() if p.requires_grad and n in making}

    @property
    def groups(self) -> dict[str, str]:
        """Name of the group -> group of the fusion map that contains the module which the channels are named after."""
        return {group.name: str(self.fusion.group_of(group.name)) for group in self.coupled}

    @property
    def shapes(self) -> dict[str, Sequence[int]]:
        """Name of the group -> its number of channels."""
        return {group.name: (group.size,) for group in self.coupled}

    def magnitudes(self) -> dict[str, Tensor]:
        """Name of the group -> [C]: root mean square, over the layers that make a channel, of its weights' L2 norms."""
        squares = {name: p.detach().double().square() for name, p in self.parameters.items() if p.dim() > 1}
        values = {}
        for group in self.coupled:
            makers = {m.tensor for m in group.members if m.role == 'out' and m.tensor in squares}
            values[group.name] = (group_terms(squares, group, ('out',)) / len(makers)).sqrt()
        return values

    def from_flow(self, scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Name of the group -> [C]: sum of the scores of the weights that make a channel."""
        # Infinite scores belong to weights that no flow reaches or that an earlier round removed: nothing flows there.
        finite = {name: values.nan_to_num(posinf=0, neginf=0) for name, values in scores.items()}
        return {group.name: group_terms(finite, group, ('out',)) for group in self.coupled}

    def flow_masks(self, scores: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
        """Masks without the weights that make or read the channels which are removed."""
        keep = self.choose({name: values.cpu() for name, values in self.from_flow(scores).items()}, share).keep
        masks = channel_masks(scores, self.coupled, keep)
        whole = {name: torch.ones_like(values, dtype=torch.bool) for name, values in scores.items()}
        return {name: masks.get(name, mask).to(mask.device) for name, mask in whole.items()}
