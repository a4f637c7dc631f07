"""The layers of a detector: what each costs, which sensor it belongs to, what can be pruned of it and what was."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner
from torch import nn

from mmprune3d.adapters.fusion import FusionMap, frozen, fusion_map, prunable
from mmprune3d.checkpoint.addresses import local_file
from mmprune3d.checkpoint.masks import STATE
from mmprune3d.checkpoint.read import load_weights
from mmprune3d.checkpoint.slim import META
from mmprune3d.coupling.groups import FoundGroups, find_channel_groups
from mmprune3d.layers.slim import is_depthwise, weight_layout
from mmprune3d.measure import report as reports
from mmprune3d.measure.flops import Counted, count_operations
from mmprune3d.measure.layer_costs import count_costs
from mmprune3d.measure.raw_outputs import raw_outputs
from mmprune3d.measure.runners import read_config
from mmprune3d.pruning.channel_selection import Costs
from mmprune3d.pruning.channels import ChannelGroup
from mmprune3d.pruning.masks import unpack

OTHER = '(other)'
"""Parameters of a part that belong to no listed layer: norms, embeddings, tables."""


@dataclass(frozen=True)
class Layer:
    """One layer with a weight matrix or a convolution kernel.

    Attributes:
        name: Name of the module.
        kind: Name of its class.
        part: Group of the fusion map (camera, lidar, fusion), or the first level of the model where there is no map.
        shape: Shape of its weight.
        params: Elements of its own parameters, bias included.
        gflops: GFLOPs (1e9; a multiply-add counts as two) of one sample; None if they cannot be counted.
        weights: 'yes' if single weights can be pruned, else why not.
        channels: Name of the group of coupled channels that it makes, or '' if its channels stay.
        reason: Why its output channels stay, or ''.
        kept: Share of its weights that a mask keeps, or of its output channels that a slim model has; None if none of
            them were pruned.
    """

    name: str
    kind: str
    part: str
    shape: tuple[int, ...]
    params: int
    gflops: float | None
    weights: str
    channels: str = ''
    reason: str = ''
    kept: float | None = None


@dataclass(frozen=True)
class Group:
    """Coupled channels: they can only be removed together.

    Attributes:
        name: The first layer that makes them.
        channels: How many.
        part: Part of the model, see `Layer`.
        makes: Layers whose output they are.
        reads: Layers whose input they are.
        params: Share of the model's parameters that goes if half of them are removed, 0..1.
        gflops: The same of its FLOPs, or None.
        kept: Share that an earlier pruning kept, or None.
    """

    name: str
    channels: int
    part: str
    makes: tuple[str, ...]
    reads: tuple[str, ...]
    params: float
    gflops: float | None
    kept: float | None = None


@dataclass(frozen=True)
class LayerReport:
    """The layers of one detector.

    Attributes:
        detector: Name of its class.
        has_map: Whether a fusion map knows its sensors.
        layers: In the order of the model.
        groups: Coupled channels, in the order of execution.
        other: Part -> parameters of no listed layer.
        products: Part -> GFLOPs of no listed layer: attention, and matrix products that are not modules.
        params: Number of parameters of the whole model.
        gflops: GFLOPs of one sample, attention included; None if nothing could be counted.
        kept: Part -> share of its masked weights that are kept, or of its channels in a slim model; empty if nothing
            was pruned.
        not_counted: Operators that ran and are in no figure.
        notes: What could not be found out, and why.
    """

    detector: str
    has_map: bool
    layers: list[Layer]
    groups: list[Group]
    other: dict[str, int]
    products: dict[str, float]
    params: int
    gflops: float | None
    kept: dict[str, float] = field(default_factory=dict)
    not_counted: tuple[str, ...] = ()
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain types, for a JSON file."""
        return asdict(self)

    def parts(self) -> dict[str, dict[str, float | None]]:
        """Part -> ``layers``, ``params``, ``gflops`` and ``kept``; the last two may be None."""
        found: dict[str, dict[str, float | None]] = {}
        for part in dict.fromkeys([*(layer.part for layer in self.layers), *self.other]):
            own = [layer for layer in self.layers if layer.part == part]
            found[part] = {
                'layers': len(own),
                'params': sum(layer.params for layer in own) + self.other.get(part, 0),
                'gflops': None if self.gflops is None else self.products.get(part, 0.0) + _spent(own),
                'kept': self.kept.get(part),
            }
        return found


def inspect_layers(
    model: nn.Module,
    predict: Callable[[], object],
    forward: Callable[[nn.Module], Any] | None = None,
    checkpoint: Mapping[str, Any] | None = None,
) -> LayerReport:
    """Looks at the layers of a detector.

    What cannot be found out for a detector (its sensors, its FLOPs, its coupled channels) is left out and explained in
    the notes of the report.

    Args:
        model: In eval mode.
        predict: Runs it on one sample.
        forward: Runs a model on one sample and returns its raw outputs, for `find_channel_groups`; None does not look
            for coupled channels.
        checkpoint: What was loaded; says what was pruned.
    """
    notes: list[str] = []
    fusion = _or_note(notes, 'the table has modules instead of sensors', partial(fusion_map, model))
    children = dict(model.named_children())
    counted = _or_note(notes, 'GFLOPs were not counted', lambda: count_operations(predict, children))
    costs = None
    if counted is not None:
        counts = _or_note(notes, 'GFLOPs of single layers were not counted', lambda: count_costs(model, predict))
        costs = counts and Costs(counts.per_element, counts.shapes, counts.fixed)
    found = None
    if forward is not None:
        found = _or_note(notes, 'coupled channels were not found', lambda: find_channel_groups(model, forward))
    gathered = _Gathered(model, fusion, counted, costs, found, checkpoint or {}, notes)
    return gathered.report()


def _or_note(notes: list[str], what: str, find: Callable[[], Any]) -> Any:
    """What `find` returns, or None and a note with the reason: detectors of others fail in their own ways."""
    try:
        with torch.no_grad():
            return find()
    except Exception as error:
        reason = str(error).strip().partition('\n')[0].partition(': say ')[0] or type(error).__name__
        known = '' if isinstance(error, ValueError) else f' ({type(error).__name__})'
        notes.append(f'{what}: {reason}{known}')
        return None


@dataclass
class _Gathered:
    """What was found out about a model, to be put together."""

    model: nn.Module
    fusion: FusionMap | None
    counted: Counted | None
    costs: Costs | None
    found: FoundGroups | None
    checkpoint: Mapping[str, Any]
    notes: list[str]

    def report(self) -> LayerReport:
        """Collects layers, coupled groups and other parameters into the report."""
        layers = list(self.layers())
        other: dict[str, int] = {}
        listed = {layer.name for layer in layers}
        for name, parameter in self.model.named_parameters():
            if name.rpartition('.')[0] not in listed:
                other[self.part(name)] = other.get(self.part(name), 0) + parameter.numel()
        return LayerReport(
            detector=type(self.model).__name__,
            has_map=self.fusion is not None,
            layers=layers,
            groups=list(self.groups()),
            other=other,
            products=self.products(layers),
            params=sum(parameter.numel() for parameter in self.model.parameters()),
            gflops=None if self.counted is None else self.counted.gflops['total'],
            kept=self.kept_by_part(),
            not_counted=() if self.counted is None else self.counted.unknown,
            notes=self.notes,
        )

    def products(self, layers: Sequence[Layer]) -> dict[str, float]:
        """Part -> GFLOPs of its first-level modules that none of their layers spend."""
        spent: dict[str, float] = {}
        for child, _ in self.model.named_children() if self.counted is not None else ():
            own = [layer for layer in layers if layer.name == child or layer.name.startswith(f'{child}.')]
            more = max(self.counted.gflops[child] - _spent(own), 0.0)
            spent[self.part(child)] = spent.get(self.part(child), 0.0) + more
        return spent

    def part(self, name: str) -> str:
        """The part of the model that a module or parameter belongs to."""
        known = None if self.fusion is None else self.fusion.group_of(name)
        return known or name.partition('.')[0]

    def layers(self) -> Iterator[Layer]:
        """Modules whose weight can be pruned, or has a cost, or makes channels."""
        by_weight, fixed = prunable(self.model), frozen(self.model)
        makers, left_out = self._makers(), {} if self.found is None else self.found.left_out
        kept = self._kept()
        for name, module in self.model.named_modules():
            weights = {f'{name}.{leaf}': value for leaf, value in module._parameters.items() if value is not None}
            names = [weight for weight in weights if weight in by_weight or weight in fixed]
            if not weights or not (names or weight_layout(module) is not None or is_depthwise(module)):
                continue
            plain = weight_layout(module) is not None
            main = names[0] if names else max(weights, key=lambda weight: weights[weight].numel())
            can = any(weight in by_weight for weight in names)
            channels = makers.get(name, '')
            stays = left_out.get(name, 'did not run' if plain else f'a {type(module).__name__} is not a plain layer')
            reason = '' if channels or self.found is None else stays
            yield Layer(
                name=name,
                kind=type(module).__name__,
                part=self.part(name),
                shape=tuple(weights[main].shape),
                params=sum(value.numel() for value in weights.values()),
                gflops=self._gflops(name),
                weights='yes' if can else 'frozen' if names else f'a {type(module).__name__} is left alone',
                channels=channels,
                reason=reason,
                kept=next((kept[weight] for weight in weights if weight in kept), kept.get(channels or name)),
            )

    def groups(self) -> Iterator[Group]:
        """Coupled channels, with what they cost."""
        if self.found is None:
            return
        groups, kept = self.found.groups, self._kept()
        shapes = {name: tuple(parameter.shape) for name, parameter in self.model.named_parameters()}
        params = Costs.of_parameters(shapes)
        for group in groups:
            yield Group(
                name=group.name,
                channels=group.size,
                part=self.part(group.name),
                makes=_modules_of(group, 'out'),
                reads=_modules_of(group, 'in'),
                params=_saved(params, group),
                gflops=None if self.costs is None else _saved(self.costs, group),
                kept=kept.get(group.name),
            )

    def _makers(self) -> dict[str, str]:
        """Layer -> name of the group of coupled channels that it makes."""
        groups = [] if self.found is None else self.found.groups
        return {layer: group.name for group in groups for layer in _modules_of(group, 'out')}

    def _gflops(self, name: str) -> float | None:
        if self.costs is None:
            return None
        each = self.costs.per_element.get(f'{name}.weight', 0.0)
        return each * math.prod(self.costs.shapes.get(f'{name}.weight', (0,))) / 1e9

    def kept_by_part(self) -> dict[str, float]:
        """Part -> share kept, of weights if there are masks, else of channels."""
        counts: dict[str, list[int]] = {}
        for name, row in (self._masked() or self._slimmed()).items():
            total = counts.setdefault(self.part(name), [0, 0])
            total[:] = [have + more for have, more in zip(total, row)]
        return {part: kept / total for part, (kept, total) in counts.items()}

    def _masked(self) -> dict[str, tuple[int, int]]:
        """Parameter -> weights that its mask keeps, and of how many."""
        masks = unpack((self.checkpoint.get(STATE) or {}).get('masks') or {})
        return {name: (int(mask.sum()), mask.numel()) for name, mask in masks.items()}

    def _slimmed(self) -> dict[str, tuple[int, int]]:
        """First layer of a group -> channels that are left, and of how many."""
        return ((self.checkpoint.get('meta') or {}).get('mmprune3d') or {}).get(META) or {}

    def _kept(self) -> dict[str, float]:
        """Share kept, by parameter for masks and by layer for removed channels."""
        return {name: kept / total for name, (kept, total) in {**self._masked(), **self._slimmed()}.items()}


def _spent(layers: Iterable[Layer]) -> float:
    return sum(layer.gflops or 0.0 for layer in layers)


def _modules_of(group: ChannelGroup, role: str) -> tuple[str, ...]:
    names = (member.tensor.rpartition('.')[0] for member in group.members if member.role == role)
    return tuple(dict.fromkeys(names))


def _saved(costs: Costs, group: ChannelGroup) -> float:
    """Share of the costs that goes with half of a group's channels."""
    total = costs.after([], {})
    return 1 - costs.after([group], {group.name: -(-group.size // 2)}) / total if total else 0.0


def markdown(report: LayerReport, title: str, rows: int | None = None) -> str:
    """The report as Markdown: parts, layers, coupled channels, notes.

    Args:
        report: What was found.
        title: Name of the detector's config.
        rows: So many layers and groups, those with the largest costs; None means all, in the order of the model.
    """
    lines = [f'# Layers of {title}', '', *_parts_table(report), '', *_layers_table(report, rows), '']
    lines += _groups_table(report, rows)
    if report.not_counted:
        lines += [f'Not in the GFLOPs, like element-wise work: {", ".join(report.not_counted)}.', '']
    lines += [f'Note: {note}.' for note in report.notes]
    return '\n'.join([*lines, ''])


def _parts_table(report: LayerReport) -> Iterator[str]:
    title = 'part' if report.has_map else 'module'
    yield f'| {title} | layers | parameters | GFLOPs per sample | kept (%) |'
    yield '|---|---:|---:|---:|---:|'
    listed = 0.0
    for name, part in report.parts().items():
        listed += part['gflops'] or 0.0
        cells = [part['layers'], f'{part["params"]:,}', _number(part['gflops']), _percent(part['kept'])]
        yield f'| {name} | {" | ".join(map(str, cells))} |'
    if report.gflops is not None and report.gflops - listed > 5e-4:
        yield f'| outside of these | - | - | {_number(report.gflops - listed)} | - |'
    yield f'| **all** | {len(report.layers)} | {report.params:,} | {_number(report.gflops)} | - |'
    if report.gflops is not None:
        yield from ('', 'The GFLOPs of a part include its attention, those of a layer below do not.')


def _layers_table(report: LayerReport, rows: int | None) -> Iterator[str]:
    shown = _costliest(report.layers, rows, lambda layer: (layer.gflops or 0.0, layer.params))
    if len(shown) < len(report.layers):
        yield from (f'The {len(shown)} costliest of {len(report.layers)} layers:', '')
    yield '| layer | part | weight | parameters | GFLOPs | prune weights | prune channels | kept (%) |'
    yield '|---|---|---|---:|---:|---|---|---:|'
    for layer in shown:
        together = 'yes' if layer.channels == layer.name else f'with {layer.channels}'
        channels = together if layer.channels else f'no: {layer.reason}' if layer.reason else '-'
        shape = f'{layer.kind} {"x".join(map(str, layer.shape))}'
        cells = [layer.part, shape, f'{layer.params:,}', _number(layer.gflops), layer.weights, channels]
        yield f'| {layer.name} | {" | ".join(cells)} | {_percent(layer.kept)} |'


def _groups_table(report: LayerReport, rows: int | None) -> Iterator[str]:
    if not report.groups:
        return
    shown = _costliest(report.groups, rows, lambda group: (group.gflops or 0.0, group.params))
    part = f' ({len(shown)} of {len(report.groups)} groups)' if len(shown) < len(report.groups) else ''
    yield from (f'Coupled channels, which are removed together{part}; made and read by so many layers:', '')
    yield '| group | part | channels | made by | read by | parameters with half | GFLOPs with half | kept (%) |'
    yield '|---|---|---:|---:|---:|---:|---:|---:|'
    for group in shown:
        saved = [f'-{100 * group.params:.2f} %', '-' if group.gflops is None else f'-{100 * group.gflops:.2f} %']
        counts = [str(group.channels), str(len(group.makes)), str(len(group.reads))]
        yield f'| {" | ".join([group.name, group.part, *counts, *saved, _percent(group.kept)])} |'
    yield ''


def _costliest(items: Sequence[Any], rows: int | None, cost: Callable[[Any], Any]) -> Sequence[Any]:
    return items if not rows or rows >= len(items) else sorted(items, key=cost, reverse=True)[:rows]


def _number(value: float | None) -> str:
    return '-' if value is None else f'{value:.3f}'


def _percent(value: float | None) -> str:
    return '-' if value is None else f'{100 * value:.1f}'


def first_batch(config: Config, model: nn.Module) -> dict[str, Any]:
    """The first test sample as a batch of one.

    Raises:
        ValueError: If the config has no test set.
    """
    if config.get('test_dataloader') is None:
        raise ValueError('the config has no test_dataloader: there is no sample to run the detector on')
    settings = {**config.test_dataloader, 'num_workers': 0, 'persistent_workers': False}
    loader = Runner.build_dataloader(settings)
    return loader.collate_fn([loader.dataset[0]])


def run_layers(
    config_file: Path,
    checkpoint: str | Path,
    out: Path,
    overrides: dict[str, Any],
    rows: int = 20,
    channels: bool = True,
) -> str:
    """Lists the layers of a detector; writes ``report.md`` and ``report.json`` into `out`.

    Args:
        config_file: Config of any mmdet3d detector with a test set.
        checkpoint: Its weights, masked and slim ones included: a file or an address.
        out: Folder to write to.
        overrides: Settings on top of the config, by dotted key.
        rows: Layers and groups in the returned table, the costliest ones; 0 means all.
        channels: Whether coupled channels are looked for.

    Returns:
        A table as Markdown. The file has all layers.

    Raises:
        FileNotFoundError: If the config or the checkpoint does not exist.
        ValueError: If there is no test set, or the weights do not fit.
    """
    path = local_file(checkpoint)
    config = read_config(config_file, path, overrides)
    init_default_scope(config.get('default_scope') or 'mmdet3d')
    model = MODELS.build(copy.deepcopy(config.model)).to('cuda' if torch.cuda.is_available() else 'cpu').eval()
    loaded = load_weights(model, path)
    batch = first_batch(config, model)
    data = model.data_preprocessor(copy.deepcopy(batch), False)
    report = inspect_layers(
        model,
        lambda: model.test_step(copy.deepcopy(batch)),
        raw_outputs(data) if channels else None,
        loaded,
    )
    dtype = str(next(model.parameters()).dtype).removeprefix('torch.')
    env = {'env': reports.environment(1, dtype)}
    reports.write({'config': config_file.name, **report.to_dict(), **env}, out, markdown(report, config_file.stem))
    return markdown(report, config_file.stem, rows or None)
