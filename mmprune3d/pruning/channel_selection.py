"""Which channels go: one ranking over all groups, as many as a target in channels, parameters or FLOPs asks for."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .channels import ChannelGroup, Shapes, groups_by_tensor

TARGETS = ('channels', 'params', 'flops')


@dataclass(frozen=True)
class Costs:
    """What a model costs, as a function of the shapes of its tensors only.

    Multiply-adds of a convolution or linear layer are proportional to the number of its weights, whatever the kernel,
    so that no model needs to run to know the cost of a slimmer one.

    Attributes:
        per_element: Tensor name -> cost of each of its elements.
        shapes: Tensor name -> dense shape; at least those of `per_element`.
        fixed: The cost of what does not change with channels.
    """

    per_element: Mapping[str, float]
    shapes: Shapes
    fixed: float = 0.0

    @classmethod
    def of_parameters(cls, shapes: Shapes) -> Costs:
        """The number of parameters: each element costs 1."""
        return cls(dict.fromkeys(shapes, 1.0), shapes)

    def after(self, groups: Sequence[ChannelGroup], kept: Mapping[str, int]) -> float:
        """The cost with ``kept[name]`` channels in each named group, all in the others."""
        removed: dict[str, dict[int, int]] = {}
        for name, entries in groups_by_tensor(groups).items():
            dims = removed.setdefault(name, {})
            for group, member in entries:
                lost = group.size - kept.get(group.name, group.size)
                dims[member.dim] = dims.get(member.dim, 0) + lost * member.per_channel
        return self.fixed + sum(
            cost * math.prod(size - removed.get(name, {}).get(dim, 0) for dim, size in enumerate(self.shapes[name]))
            for name, cost in self.per_element.items()
        )


@dataclass(frozen=True)
class Selection:
    """A choice of channels and what it reaches.

    Attributes:
        keep: Group name -> bool [C], True = keep; every group is there.
        kind: One of ``TARGETS``.
        wanted: The share to remove that was asked for.
        reached: The share that is removed.
    """

    keep: dict[str, Tensor] = field(repr=False)
    kind: str
    wanted: float
    reached: float

    @property
    def kept(self) -> dict[str, int]:
        """Group name -> number of channels that stay."""
        return {name: int(mask.sum()) for name, mask in self.keep.items()}


def select_channels(
    scores: Mapping[str, Tensor],
    groups: Sequence[ChannelGroup],
    target: tuple[str, float],
    costs: Costs | None = None,
    max_ratio: float = 0.9,
    min_keep: int = 1,
    round_to: int = 1,
    tolerance: float = 0.01,
) -> Selection:
    """Removes the channels with the lowest scores over all groups until the target is met as closely as possible.

    Of equal scores, the earlier group and channel is removed first. The number of removed channels is found by
    bisection, without running the model.

    Args:
        scores: Group name -> [C], higher = more worth keeping; negative and -inf are fine.
        groups: Groups that may lose channels; `scores` has one entry for each.
        target: ``('channels' | 'params' | 'flops', share)``: the share of the groups' channels, of the model's
            parameters or of its FLOPs to remove, 0 <= share < 1.
        costs: The costs, for targets in ``'params'`` (see `Costs.of_parameters`) and ``'flops'``.
        max_ratio: No group loses more than this share of its channels.
        min_keep: Number of channels that every group keeps at least.
        round_to: Kept channels are a multiple of this (rounded up, at most all), for hardware.
        tolerance: How far the reached share may be from the wanted one.

    Raises:
        ValueError: If arguments are invalid, scores do not fit the groups or are NaN, or the target cannot be reached;
            the message says what can.
    """
    kind, wanted = target
    _check(scores, groups, kind, wanted, costs, max_ratio, min_keep, round_to)
    sizes = [group.size for group in groups]
    limits = [max(0, min(math.floor(max_ratio * size + 1e-9), size - min_keep)) for size in sizes]
    owners, ranked = _removal_order([scores[group.name] for group in groups], limits)

    def kept_after(count: int) -> dict[str, int]:
        lost = torch.bincount(owners[:count], minlength=len(groups)).tolist()
        rounded = [min(size, math.ceil((size - gone) / round_to) * round_to) for size, gone in zip(sizes, lost)]
        return {group.name: kept for group, kept in zip(groups, rounded)}

    def cost(count: int) -> float:
        kept = kept_after(count)
        return sum(kept.values()) if costs is None or kind == 'channels' else costs.after(groups, kept)

    dense = cost(0)
    count = _nearest(cost, len(owners), dense * (1 - wanted))
    reached = 1 - cost(count) / dense
    if abs(reached - wanted) > tolerance:
        raise ValueError(
            f'cannot remove {wanted:.1%} of the {kind}: the nearest that these groups allow is {reached:.2%} (at most '
            f'{1 - cost(len(owners)) / dense:.1%} with max_ratio={max_ratio}, min_keep={min_keep}, '
            f'round_to={round_to}); change them, protect fewer layers, or raise tolerance={tolerance}'
        )
    keep = {group.name: torch.ones(group.size, dtype=torch.bool) for group in groups}
    for group, order in zip(groups, ranked):
        keep[group.name][order[: group.size - kept_after(count)[group.name]]] = False
    return Selection(keep, kind, wanted, reached)


def _removal_order(scores: Sequence[Tensor], limits: Sequence[int]) -> tuple[Tensor, list[Tensor]]:
    """The group of each removable channel, lowest score first; and per group its channels, lowest first."""
    ranked = [torch.argsort(values.cpu().double(), stable=True) for values in scores]
    allowed = [order[:limit] for order, limit in zip(ranked, limits)]
    owners = torch.cat([torch.full((len(order),), number) for number, order in enumerate(allowed)])
    values = torch.cat([value.cpu().double()[order] for value, order in zip(scores, allowed)])
    return owners[torch.argsort(values, stable=True)], ranked


def _nearest(cost: Callable[[int], float], most: int, goal: float) -> int:
    """The count in 0..most whose cost, which falls with the count, is nearest to `goal`; the smaller one if two are."""
    low, high = 0, most
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if cost(middle) > goal else (low, middle)
    return low - 1 if low and abs(cost(low - 1) - goal) <= abs(cost(low) - goal) else low


def _check(
    scores: Mapping[str, Tensor],
    groups: Sequence[ChannelGroup],
    kind: str,
    wanted: float,
    costs: Costs | None,
    max_ratio: float,
    min_keep: int,
    round_to: int,
) -> None:
    if kind not in TARGETS:
        raise ValueError(f'target {kind!r}; valid are {", ".join(TARGETS)}')
    if kind != 'channels' and costs is None:
        raise ValueError(f'a target in {kind} needs costs')
    if not (0 <= wanted < 1 and 0 < max_ratio <= 1 and min_keep >= 1 and round_to >= 1):
        raise ValueError(
            f'need 0 <= share < 1, 0 < max_ratio <= 1, min_keep >= 1 and round_to >= 1, got share={wanted}, '
            f'max_ratio={max_ratio}, min_keep={min_keep}, round_to={round_to}'
        )
    names = [group.name for group in groups]
    if not names or sorted(names) != sorted(scores):
        differing = ', '.join(sorted(set(names) ^ set(scores))) or 'no groups at all'
        raise ValueError(f'scores and groups must have the same names; they differ in {differing}')
    for group in groups:
        values = scores[group.name]
        if values.shape != (group.size,) or values.isnan().any():
            raise ValueError(f'{group.name}: scores must be [{group.size}] without NaN, got {list(values.shape)}')
