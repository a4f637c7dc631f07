"""Channels that can only be removed together, as data: which slices of which tensors belong to one channel.

A :class:`ChannelGroup` lists every tensor dimension that a set of channels runs through. "Remove channels K" is then
slicing those dimensions, whatever the layers are; :mod:`mmprune3d.coupling.groups` finds the groups of a model.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

ROLES = ('out', 'through', 'in', 'stat')
"""Tensors that make a channel; that scale it on its way (norm layers); that read it; running statistics."""

Shapes = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class Member:
    """One run of positions along one dimension of a tensor.

    Position ``p`` belongs to channel ``(p - offset) // repeat % size``, for ``tiles * size * repeat`` positions from
    `offset` on. `offset` comes from concatenation; `repeat` from maps that were flattened behind their channels (sparse
    features [N, C, D, X, Y] to [N, C * D, X, Y]), `tiles` from maps flattened before them.

    Attributes:
        tensor: Name in the state dict.
        dim: The dimension, not negative.
        role: One of ``ROLES``.
        offset: The first position.
        repeat: Number of neighbouring positions per channel.
        tiles: How often the sequence of all channels is repeated.
    """

    tensor: str
    dim: int
    role: str
    offset: int = 0
    repeat: int = 1
    tiles: int = 1

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise ValueError(f'{self.tensor}: role={self.role!r}; valid are {", ".join(ROLES)}')
        if min(self.dim, self.offset) < 0 or min(self.repeat, self.tiles) < 1:
            raise ValueError(f'{self}: dim and offset must be 0 or more, repeat and tiles 1 or more')

    @property
    def per_channel(self) -> int:
        """The number of positions of one channel."""
        return self.repeat * self.tiles


@dataclass(frozen=True)
class ChannelGroup:
    """Channels with the same number everywhere: removing one of them slices every member.

    Attributes:
        name: The module that makes the channels, the first one in the order of execution.
        size: The number of channels C.
        members: Every tensor dimension that has one or more positions per channel.
    """

    name: str
    size: int
    members: tuple[Member, ...]

    def to_dict(self) -> dict[str, Any]:
        """The group in plain types, fit for JSON."""
        rows = [[m.tensor, m.dim, m.role, m.offset, m.repeat, m.tiles] for m in self.members]
        return {'name': self.name, 'size': self.size, 'members': rows}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ChannelGroup:
        """The group that `to_dict` made plain."""
        return cls(data['name'], int(data['size']), tuple(Member(*row) for row in data['members']))


def check_keep(groups: Iterable[ChannelGroup], keep: Mapping[str, Tensor]) -> None:
    """Raises ValueError if `keep` names no group of `groups`, does not fit it, or leaves a group without channels."""
    sizes = {group.name: group.size for group in groups}
    unknown = sorted(set(keep) - set(sizes))
    if unknown:
        raise ValueError(f'no channel group {", ".join(unknown)}; valid are {", ".join(sizes)}')
    for name, kept in keep.items():
        if kept.dtype != torch.bool or kept.shape != (sizes[name],):
            raise ValueError(f'{name}: keep must be bool [{sizes[name]}], got {kept.dtype} {list(kept.shape)}')
        if not kept.any():
            raise ValueError(f'{name}: keep removes all {sizes[name]} channels; at least one must stay')


def dimension_masks(
    shapes: Shapes, groups: Sequence[ChannelGroup], keep: Mapping[str, Tensor]
) -> dict[tuple[str, int], Tensor]:
    """Which positions stay along the dimensions that lose some.

    Args:
        shapes: Name -> shape of the dense tensors; those that no group names are ignored.
        groups: The channel groups of the model.
        keep: Group name -> bool [C], True = keep. Groups that are not named keep everything.

    Returns:
        (tensor, dim) -> bool [size of that dimension].

    Raises:
        ValueError: If `keep` does not fit the groups, or the groups do not fit the shapes.
    """
    check_keep(groups, keep)
    masks: dict[tuple[str, int], Tensor] = {}
    for group in groups:
        if group.name not in keep or keep[group.name].all():
            continue
        for member in group.members:
            key = member.tensor, member.dim
            if key not in masks:
                masks[key] = torch.ones(_size(shapes, member), dtype=torch.bool)
            positions = keep[group.name].cpu().repeat_interleave(member.repeat).repeat(member.tiles)
            end = member.offset + len(positions)
            if end > len(masks[key]):
                raise ValueError(f'{group.name}: {member} ends at {end}, but the dimension has {len(masks[key])}')
            masks[key][member.offset : end] &= positions
    return masks


def _size(shapes: Shapes, member: Member) -> int:
    shape = shapes.get(member.tensor)
    if shape is None or member.dim >= len(shape):
        raise ValueError(f'the groups belong to another model: {member}, but the tensor is {shape and list(shape)}')
    return shape[member.dim]


def slice_tensors(
    tensors: Mapping[str, Tensor], groups: Sequence[ChannelGroup], keep: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """`tensors` without the removed channels; those that lose nothing are passed on as they are.

    Args:
        tensors: Name -> dense tensor: weights, running statistics, or scores shaped like them. Groups may name more.
        groups: The channel groups of the model.
        keep: Group name -> bool [C].

    Raises:
        ValueError: If `keep` or the groups do not fit, see `dimension_masks`.
    """
    made = dict(tensors)
    for (name, dim), mask in _masks_of(tensors, groups, keep).items():
        index = mask.nonzero()[:, 0].to(made[name].device)
        made[name] = made[name].index_select(dim, index)
    return made


def mask_tensors(
    tensors: Mapping[str, Tensor], groups: Sequence[ChannelGroup], keep: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """`tensors` with zeros for the removed channels: a dense model that computes what the slim one does.

    Weights, biases and norm affines are zeroed, so that the channels are 0 and nobody reads them; running statistics
    stay. Arguments and errors are those of `slice_tensors`.
    """
    made = dict(tensors)
    for name, mask in channel_masks(tensors, groups, keep).items():
        made[name] = made[name].masked_fill(~mask.to(made[name].device), 0)
    return made


def channel_masks(
    tensors: Mapping[str, Tensor], groups: Sequence[ChannelGroup], keep: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The same decision as element-wise masks, True = keep, for tensors that lose channels; no running statistics."""
    trained = {m.tensor for group in groups for m in group.members if m.role != 'stat'}
    masks: dict[str, Tensor] = {}
    for (name, dim), mask in _masks_of(tensors, groups, keep).items():
        if name in trained:
            shape = [1] * tensors[name].dim()
            shape[dim] = -1
            masks[name] = masks.get(name, torch.ones(tensors[name].shape, dtype=torch.bool)) & mask.view(shape)
    return masks


def _masks_of(
    tensors: Mapping[str, Tensor], groups: Sequence[ChannelGroup], keep: Mapping[str, Tensor]
) -> dict[tuple[str, int], Tensor]:
    present = [
        ChannelGroup(g.name, g.size, tuple(m for m in g.members if m.tensor in tensors)) for g in groups
    ]  # scores and gradients lack the running statistics
    return dimension_masks({name: tensor.shape for name, tensor in tensors.items()}, present, keep)


def group_terms(terms: Mapping[str, Tensor], group: ChannelGroup, roles: Sequence[str] = ('out', 'through')) -> Tensor:
    """Sum over everything that belongs to each channel: signed terms before the absolute value (AlterMOMA, App. D).

    With ``terms = theta * gradient`` and one mask on all that makes a channel, the sum is the loss's derivative for
    that mask. Which members count is `roles`:

    * ``('out', 'through')``: weights and biases that make the channel, and norm affines on the way. In front of a batch
      norm in train mode the weights contribute exactly 0 (it undoes any scaling) and the affine everything;
      ``('out',)`` alone is then rounding noise.
    * ``('in',)``: what the readers of the channel do with it, the derivative for a mask where it is read. The two are
      equal where only ReLU, pooling and the like lie between a norm and the readers.

    Args:
        terms: Parameter name -> tensor shaped like the parameter. Parameters that are missing (frozen) count as 0.
        group: The channels.
        roles: Some of ``ROLES``.

    Returns:
        [C] float64, on the device of the terms.

    Raises:
        ValueError: If no member with one of these roles is in `terms`.
    """
    total: Tensor | None = None
    for member in group.members:
        if member.role not in roles or member.tensor not in terms:
            continue
        values = terms[member.tensor].double()
        others = [dim for dim in range(values.dim()) if dim != member.dim]
        values = values.sum(others) if others else values
        run = values.narrow(0, member.offset, group.size * member.per_channel)
        share = run.view(member.tiles, group.size, member.repeat).sum((0, 2))
        total = share if total is None else total + share
    if total is None:
        names = sorted({m.tensor for m in group.members if m.role in roles})
        raise ValueError(f'{group.name}: no terms for {", ".join(names) or f"roles {tuple(roles)}"}')
    return total


def groups_by_tensor(groups: Iterable[ChannelGroup]) -> dict[str, list[tuple[ChannelGroup, Member]]]:
    """Tensor name -> the groups and members that slice it."""
    found: dict[str, list[tuple[ChannelGroup, Member]]] = defaultdict(list)
    for group in groups:
        for member in group.members:
            found[member.tensor].append((group, member))
    return dict(found)
