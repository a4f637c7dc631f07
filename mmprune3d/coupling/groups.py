"""Which channels of a model can only be removed together, found by experiment on one small input.

No table of layer types and no walk over the autograd graph: :mod:`mmprune3d.coupling.probe` marks channels and
looks where the marks arrive. Two kinds of runs are enough: all layers at once, marked with the bits of the channels'
numbers, tell which *channel* a reader's input is; one layer at a time tells which *layers* it comes from.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mmprune3d.layers.nested import tensors_in
from mmprune3d.layers.preserved import evaluating
from mmprune3d.layers.slim import slim_model_, weight_layout
from mmprune3d.pruning.channels import ChannelGroup, Member, mask_tensors, slice_tensors

from .probe import ChannelProbe, Forward, Seen


@dataclass(frozen=True)
class FoundGroups:
    """What can be pruned, and why the rest cannot.

    Attributes:
        groups: In the order of execution.
        left_out: Name of a layer -> why its output channels stay.
    """

    groups: list[ChannelGroup]
    left_out: dict[str, str] = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain types, fit for JSON."""
        return {'groups': [group.to_dict() for group in self.groups], 'left_out': dict(self.left_out)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> FoundGroups:
        """The inverse of `to_dict`."""
        return cls([ChannelGroup.from_dict(row) for row in data['groups']], dict(data['left_out']))


def find_channel_groups(model: nn.Module, forward: Forward, protect: Iterable[str] = ()) -> FoundGroups:
    """The channel groups of a model.

    A layer's output channels form a group, together with those of all layers that they are added to, multiplied with or
    otherwise aligned with. They stay whole (see `FoundGroups.left_out`) if they reach the output, if a layer with
    trained parameters of another kind sees them (attention, layer and group norm, deformable or grouped convolution,
    embeddings added to them), or if they are mixed among each other on the way (softmax over channels, the outer
    product of depth and context in a view transform, patch merging).

    About one run per layer, in which dense layers cost nothing; a small image is enough. The model and the generators
    of random numbers are afterwards what they were.

    Args:
        model: The detector.
        forward: Runs ``forward(model)`` on one sample, the same every time, and returns whatever must keep its shape,
            as nested tensors. It should reach every layer that is to be considered.
        protect: Names of modules; output channels of these and everything below stay.

    Raises:
        ValueError: If a name in `protect` is not that of a module, or no group is found.
    """
    names = dict(model.named_modules())
    if unknown := [name for name in protect if name not in names]:
        children = ', '.join(name for name, _ in model.named_children())
        raise ValueError(f'cannot protect {", ".join(unknown)}: no such module; the first level has {children}')
    with evaluating(model):
        probe = ChannelProbe(model, forward)
        wiring = _Wiring.explore(probe)
    guarded = tuple(protect)
    for name in probe.makers:
        if any(name == module or name.startswith(f'{module}.') for module in guarded):
            wiring.blocked.setdefault(name, 'protected')
    found = wiring.groups(model)
    if not found.groups:
        reasons = '; '.join(sorted(set(found.left_out.values()))[:5]) or 'no layers ran'
        raise ValueError(f'no channels can be removed from {type(model).__name__}: {reasons}')
    return found


@dataclass
class _Wiring:
    """Who reads which channel of whom.

    Attributes:
        sizes: Layer -> output channels.
        codes: Reader -> int64 [input channels], the number of the channel that arrives there.
        sources: Reader -> per layer that it reads, bool [input channels].
        blocked: Layer -> why its channels stay.
    """

    sizes: dict[str, int]
    codes: dict[str, Tensor]
    sources: dict[str, dict[str, Tensor]]
    blocked: dict[str, str]

    @classmethod
    def explore(cls, probe: ChannelProbe) -> _Wiring:
        codes, mixed = _channel_numbers(probe)
        wiring = cls(probe.makers, codes, {reader: {} for reader in codes}, {})
        for name, size in probe.makers.items():
            everything = torch.ones(size, dtype=torch.bool)
            seen = probe.run(lambda other, name=name, marks=everything: marks if other == name else None)
            wiring._note(name, seen, mixed)
        wiring._note_strangers(probe.run_strangers())
        return wiring

    def _note(self, name: str, seen: Seen, mixed: Mapping[str, Tensor]) -> None:
        read = {reader: touched for reader, touched in seen.readers.items() if touched.any()}
        if seen.opaque:
            self.blocked.setdefault(name, f'seen by {min(seen.opaque)}, which is no plain layer')
        for reader, touched in read.items():
            self.sources[reader][name] = touched
            if bool((mixed[reader] & touched).any()):
                self.blocked.setdefault(name, f'channels are mixed with others before {reader}')
        if seen.output:
            self.blocked.setdefault(name, 'reaches the output')
        if not read:
            self.blocked.setdefault(name, 'nobody reads it')

    def _note_strangers(self, seen: Seen) -> None:
        """Blocks layers whose channels are aligned with something that cannot be sliced."""
        for reader, theirs in seen.readers.items():
            for name, touched in self.sources[reader].items():
                if bool((touched & theirs).any()):
                    self.blocked.setdefault(name, f'arrives at {reader} together with what no plain layer makes')

    def groups(self, model: nn.Module) -> FoundGroups:
        """The groups, and what is left out."""
        groups, left_out = [], {}
        aliases = _aliases(model)
        modules = dict(model.named_modules())
        for layers in self._components():
            reason = next((self.blocked[name] for name in layers if name in self.blocked), None)
            size = self.sizes[layers[0]]
            if reason is None and ({self.sizes[name] for name in layers} != {size} or size < 2):
                reason = 'aligned with a layer of another width' if size > 1 else 'has one channel'
            members: list[Member] = []
            if reason is None:
                members, reason = self._members(layers, size, modules)
            if reason is None:
                members = [m for member in members for m in _with_aliases(member, aliases)]
                groups.append(ChannelGroup(layers[0], size, tuple(members)))
            else:
                left_out |= {name: self.blocked.get(name, f'{reason} (of {layers[0]} and others)') for name in layers}
        return FoundGroups(groups, left_out)

    def _components(self) -> list[list[str]]:
        """Layers that share a channel of a reader, transitively; in the order of execution."""
        root = {name: name for name in self.sizes}

        def find(name: str) -> str:
            while root[name] != name:
                name = root[name]
            return name

        for by_layer in self.sources.values():
            for first, touched in by_layer.items():
                for second, other in by_layer.items():
                    if first != second and bool((touched & other).any()):
                        root[find(second)] = find(first)
        found: dict[str, list[str]] = {}
        for name in self.sizes:
            found.setdefault(find(name), []).append(name)
        return list(found.values())

    def _members(
        self, layers: Sequence[str], size: int, modules: Mapping[str, nn.Module]
    ) -> tuple[list[Member], str | None]:
        """Every slice of a group, or why there is none."""
        members = [member for name in layers for member in _made_by(name, modules[name])]
        for reader, by_layer in self.sources.items():
            ours = [touched for name, touched in by_layer.items() if name in layers]
            if not ours:
                continue
            runs = _runs(torch.stack(ours).any(0), self.codes[reader], size)
            if runs is None:
                return [], f'its channels arrive in an order at {reader} that is not known'
            members += [member for run in runs for member in _read_by(reader, modules[reader], *run)]
        if not any(member.role == 'in' for member in members):
            return [], 'no layer reads it'
        return members, None


def _channel_numbers(probe: ChannelProbe) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """For each reader the number of the channel that arrives at each input, and whether several different ones do."""
    codes: dict[str, Tensor] = {}
    mixed: dict[str, Tensor] = {}
    for bit in range(max((max(probe.makers.values(), default=1) - 1).bit_length(), 1)):
        ones = probe.run(lambda name, bit=bit: torch.arange(probe.makers[name]) >> bit & 1 == 1).readers
        zeros = probe.run(lambda name, bit=bit: torch.arange(probe.makers[name]) >> bit & 1 == 0).readers
        for reader in ones:
            codes[reader] = codes.get(reader, 0) + (ones[reader].long() << bit)
            mixed[reader] = mixed.get(reader, torch.zeros_like(ones[reader])) | (ones[reader] & zeros[reader])
    return codes, mixed


def _runs(touched: Tensor, codes: Tensor, size: int) -> list[tuple[int, int, int]] | None:
    """The touched positions as runs (offset, repeat, tiles) of all `size` channels in order; None if they are not."""
    positions = touched.nonzero()[:, 0]
    breaks = (positions.diff() != 1).nonzero()[:, 0] + 1
    found = []
    for run in positions.tensor_split(breaks):
        numbers = codes[run]
        repeat = int((numbers != 0).int().argmax()) if bool((numbers != 0).any()) else len(numbers)
        if repeat < 1 or len(numbers) % (size * repeat):
            return None
        tiles = len(numbers) // (size * repeat)
        if not torch.equal(numbers, torch.arange(size).repeat_interleave(repeat).repeat(tiles)):
            return None
        found.append((int(run[0]), repeat, tiles))
    return found


def _made_by(name: str, module: nn.Module) -> Iterator[Member]:
    yield Member(f'{name}.weight', weight_layout(module)[0], 'out')
    if module.bias is not None:
        yield Member(f'{name}.bias', 0, 'out')


def _read_by(name: str, module: nn.Module, offset: int, repeat: int, tiles: int) -> Iterator[Member]:
    layout = weight_layout(module)
    if layout is not None:
        yield Member(f'{name}.weight', layout[1], 'in', offset, repeat, tiles)
        return
    for leaf, value in {**module._parameters, **module._buffers}.items():
        if value is not None and value.dim():
            yield Member(f'{name}.{leaf}', 0, 'stat' if leaf in module._buffers else 'through', offset, repeat, tiles)


def _aliases(model: nn.Module) -> dict[str, list[str]]:
    """First name of a module -> all its names, for modules that are in the model (and its state dict) several times."""
    first: dict[int, str] = {}
    names: dict[str, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(first.setdefault(id(module), name), []).append(name)
    return names


def _with_aliases(member: Member, aliases: Mapping[str, list[str]]) -> Iterator[Member]:
    path, _, leaf = member.tensor.rpartition('.')
    for name in aliases[path]:
        yield Member(f'{name}.{leaf}', member.dim, member.role, member.offset, member.repeat, member.tiles)


def check_channel_groups(
    model: nn.Module, groups: Sequence[ChannelGroup], forward: Forward, share: float = 0.5, tolerance: float = 1e-4
) -> float:
    """Removes random channels of every group for real, and compares with the dense model where they are zero.

    Args:
        model: The dense model; not modified.
        groups: Its groups.
        forward: As for :func:`find_channel_groups`; what it returns must not jump with rounding, as proposals in the
            order of their scores do.
        share: Of the channels of each group to remove, rounded down.
        tolerance: Largest difference of an output, relative to its largest value.

    Returns:
        The largest relative difference.

    Raises:
        ValueError: If the outputs differ by more than `tolerance`.
    """
    generator = torch.Generator().manual_seed(0)
    keep = {g.name: torch.randperm(g.size, generator=generator) >= int(share * g.size) for g in groups}
    weights = model.state_dict()
    slim, masked = copy.deepcopy(model), copy.deepcopy(model)
    sliced = slice_tensors(weights, groups, keep)
    slim_model_(slim, {name: value.shape for name, value in sliced.items()})
    difference = 0.0
    with torch.no_grad():
        for copied, values in ((slim, sliced), (masked, mask_tensors(weights, groups, keep))):
            for name, value in copied.state_dict().items():
                value.copy_(values[name])
        with evaluating(slim), evaluating(masked):
            pairs = list(zip(tensors_in(forward(slim)), tensors_in(forward(masked)), strict=True))
    for ours, theirs in pairs:
        difference = max(difference, float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-12)))
    if not difference <= tolerance:
        raise ValueError(f'removing channels changes the output by {difference:.1e}; some coupling was not seen')
    return difference
