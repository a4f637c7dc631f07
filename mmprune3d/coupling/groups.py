"""Coupled groups: the channels of a model that can only be removed together, found by runs on one small input.

Neither a table of layer types nor the autograd graph is used: :mod:`mmprune3d.coupling.probe` marks the output channels
of layers and records which inputs of other layers the marks reach. Two kinds of runs are enough. Runs that mark all
layers at once, by the bits of the channel numbers, tell which *channel* arrives at each input of a layer; runs that
mark one layer at a time tell from which *layers* the input comes. A layer that reads marked channels is a *reader*.
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
    """The channel groups of a model, and the layers whose channels cannot be removed.

    Attributes:
        groups: Channel groups in the order of execution.
        left_out: Name of a layer -> reason why its output channels cannot be removed.
    """

    groups: list[ChannelGroup]
    left_out: dict[str, str] = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Converts the groups to plain types that can be written as JSON."""
        return {'groups': [group.to_dict() for group in self.groups], 'left_out': dict(self.left_out)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> FoundGroups:
        """Creates the groups from the output of `to_dict`."""
        return cls([ChannelGroup.from_dict(row) for row in data['groups']], dict(data['left_out']))


def find_channel_groups(model: nn.Module, forward: Forward, protect: Iterable[str] = ()) -> FoundGroups:
    """Finds the channel groups of a model.

    A layer's output channels form a group, together with those of all layers that they are added to, multiplied with or
    otherwise aligned with. They cannot be removed (see `FoundGroups.left_out`) if they reach the output, if a layer
    with trained parameters of another kind reads them (attention, layer and group norm, deformable or grouped
    convolution, embeddings added to them), or if they are mixed with each other on the way (softmax over channels, the
    outer product of depth and context in a view transform, patch merging).

    About one run per layer, in which dense layers cost nothing; a small image is enough. The model and the generators
    of random numbers are afterwards what they were.

    Args:
        model: The detector.
        forward: Function that runs the model on one sample, the same in every call, and returns all tensors whose shape
            must not change, in nested lists, tuples or dicts. Layers that it does not run are not pruned.
        protect: Names of modules whose output channels, including those of their submodules, are kept.

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
    """The dependency graph of the channels: which channel of which layer arrives at each input of each reader.

    Attributes:
        sizes: Layer -> number of output channels.
        codes: Reader -> number of the channel that arrives at each input, int64 [input channels].
        sources: Reader -> layer that it reads -> inputs at which channels of this layer arrive, bool [input channels].
        blocked: Layer -> reason why its channels cannot be removed.
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
            self.blocked.setdefault(name, f'read by {min(seen.opaque)}, a type of layer that cannot be sliced')
        for reader, touched in read.items():
            self.sources[reader][name] = touched
            if bool((mixed[reader] & touched).any()):
                self.blocked.setdefault(name, f'channels are mixed with others before {reader}')
        if seen.output:
            self.blocked.setdefault(name, 'reaches the output')
        if not read:
            self.blocked.setdefault(name, 'no layer reads it')

    def _note_strangers(self, seen: Seen) -> None:
        """Blocks layers whose channels are aligned with something that cannot be sliced."""
        for reader, theirs in seen.readers.items():
            for name, touched in self.sources[reader].items():
                if bool((touched & theirs).any()):
                    self.blocked.setdefault(name, f'arrives at {reader} together with channels that cannot be sliced')

    def groups(self, model: nn.Module) -> FoundGroups:
        """Builds the groups of a model, and the reasons for the layers that are in no group."""
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
        """Connected components: layers that arrive at the same input of a reader, in the order of execution."""
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
        """Every slice of a group, or the reason why the group cannot be pruned."""
        members = [member for name in layers for member in _made_by(name, modules[name])]
        for reader, by_layer in self.sources.items():
            ours = [touched for name, touched in by_layer.items() if name in layers]
            if not ours:
                continue
            runs = _runs(torch.stack(ours).any(0), self.codes[reader], size)
            if runs is None:
                return [], f'its channels arrive at {reader} in an unknown order'
            members += [member for run in runs for member in _read_by(reader, modules[reader], *run)]
        if not any(member.role == 'in' for member in members):
            return [], 'no layer reads it'
        return members, None


def _channel_numbers(probe: ChannelProbe) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """For each reader the number of the channel that arrives at each input, and whether several different ones do."""
    # log2(C) pairs of runs are enough for C channels. In the run of a bit, the channels are marked (in all layers at
    # once) whose number has this bit set; the marks at an input then spell the number of its channel in binary. For
    # example, a layer A makes the channels 0, 1, 2, 3, and a reader gets cat(A[2], A[0], A[3] + A[1]):
    #     bit 0, marked are 1 and 3:     [0, 0, 1]    where the bit is 0, marked are 0 and 2:    [1, 1, 0]
    #     bit 1, marked are 2 and 3:     [1, 0, 1]    where the bit is 0, marked are 0 and 1:    [0, 1, 1]
    #     codes = 1 * [0, 0, 1] + 2 * [1, 0, 1] = [2, 0, 3]
    #     mixed = [0 & 1, 0 & 1, 1 & 0] | [1 & 0, 0 & 1, 1 & 1] = [0, 0, 1]
    # The last input has a mark in both runs of bit 1: it gets channels with different numbers, so its code means
    # nothing. A sum of channels with the same number, as in a residual connection of two layers, is not a mixture.
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
    """Describes the touched inputs as runs (offset, repeat, tiles), each with all `size` channels in order.

    In a run every channel occurs `repeat` times in succession (as after flattening a map), and the whole sequence
    `tiles` times: with 2 channels the codes 0 0 0 1 1 1 0 0 0 1 1 1 have repeat 3 and tiles 2. Returns None if the
    codes are not of this form, so that the inputs cannot be sliced.
    """
    positions = touched.nonzero()[:, 0]
    breaks = (positions.diff() != 1).nonzero()[:, 0] + 1
    found = []
    for run in positions.tensor_split(breaks):
        numbers = codes[run]
        # Channel 0 comes first, so the position of the first other number is how often it is repeated.
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
    """First name of each module -> all of its names, several for modules that the model shares."""
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
    """Checks groups by removing random channels and comparing with a dense model in which these channels are zero.

    Args:
        model: The dense model; not modified.
        groups: Channel groups of the model.
        forward: Function as for :func:`find_channel_groups`; its outputs must depend continuously on the features,
            unlike proposals that are sorted by score.
        share: Share of the channels of each group to remove, rounded down.
        tolerance: Largest difference of an output, relative to the largest value of this output.

    Returns:
        The largest relative difference of all outputs.

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
        raise ValueError(f'removing channels changes the output by {difference:.1e}; a coupling was not found')
    return difference
