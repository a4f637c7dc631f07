"""Channels really removed: a slim config and checkpoint of a fusion detector, out of those of the dense one."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from traceback import walk_tb
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner
from torch import Tensor, nn

from mmprune3d.adapters.dynamic_voxels import make_cpu_ready
from mmprune3d.adapters.fusion import FusionMap
from mmprune3d.checkpoint.masks import STATE, packed_state
from mmprune3d.checkpoint.metadata import with_metadata
from mmprune3d.checkpoint.read import load_weights
from mmprune3d.checkpoint.slim import mask_state_dict, slim_checkpoint, structure_of
from mmprune3d.coupling.groups import find_channel_groups
from mmprune3d.engine.batches import CachedBatches, draw, seeded
from mmprune3d.engine.channel_scoring import choose_channels, score_channels, trained_groups
from mmprune3d.engine.criteria import Scores, batches_needed
from mmprune3d.engine.recalibration import recalibrate
from mmprune3d.measure.layer_costs import count_costs
from mmprune3d.measure.raw_outputs import raw_outputs
from mmprune3d.measure.runners import read_config
from mmprune3d.measure.same_outputs import output_difference
from mmprune3d.pruning import checks
from mmprune3d.pruning.channel_selection import Costs, Selection
from mmprune3d.pruning.channels import ChannelGroup, slice_tensors
from mmprune3d.pruning.masks import keep_rates, unpack

from .channel_settings import OF_TRAININGS, ChannelSettings, with_target
from .slim_files import Slimmed, slim_config, slim_table

TOLERANCE = 1e-4
"""Relative difference of the slim model to the masked one that counts as rounding."""


def slim(config: Config, checkpoint: Path, settings: ChannelSettings) -> Slimmed:
    """Removes channels from a trained detector.

    Args:
        config: Config of the detector, with a training set; the detector may be slim already.
        checkpoint: File with its weights.
        settings: How channels are removed.

    Raises:
        ValueError: If there is no training set, the target cannot be reached, or the slim model computes something else
            than the dense one in which the removed channels are zero.
    """
    if config.get('train_dataloader') is None:
        raise ValueError('the config has no train_dataloader: there is no data to score channels with')
    init_default_scope(config.get('default_scope') or 'mmdet3d')
    plan, model = settings.plan, _build(config)
    fusion = settings.fusion_map(model)
    loaded, run = load_weights(model, checkpoint), _Recorded(config, model, settings)
    found = find_channel_groups(model, run.call, _modules(model, plan.protected))
    groups, frozen = trained_groups(model, found.groups)
    costs = flops_of(model, partial(run.call, model))
    scores, selection = _decide(model, settings, run.batches, fusion, groups, costs)
    small = _sliced({**loaded, 'state_dict': _weights(model)}, groups, selection)
    small['meta'].setdefault('mmprune3d', {})[plan.method] = plan.to_dict()
    made = slim_config(config, structure_of(small['state_dict']))
    slim_model = _build(made)
    slim_model.load_state_dict(small['state_dict'])
    difference = _check(slim_model, model, mask_state_dict(_weights(model), groups, selection.keep), run.call)
    if settings.recalibrate:
        with seeded(plan.seed):
            recalibrate(slim_model, run.batches[: settings.recalibrate])
        small['state_dict'] = _weights(slim_model)
    report = {
        'title': f'{plan.criterion}, {selection.reached:.1%} of the {selection.kind} removed',
        'plan': plan.to_dict(),
        **channel_rates(selection, groups, fusion),
        'left_out': {**found.left_out, **dict.fromkeys(frozen, 'frozen')},
        'reached': selection.reached,
        'gflops': [_gflops(costs), _gflops(flops_of(slim_model, partial(run.call, slim_model)))],
        'params': [sum(p.numel() for p in one.parameters()) for one in (model, slim_model)],
        'difference': difference,
        'notes': scores.notes,
    }
    return Slimmed(made, small, report)


def prune_channels(
    config: Path, checkpoint: Path, out: Path, settings: Mapping[str, Any], overrides: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Removes channels without training and writes the slim detector, as ``mmprune3d prune`` does; see `Slimmed`.

    Args:
        config: Config of the detector; its ``pruning``, if it has one, holds settings that `settings` does not.
        checkpoint: The detector's weights.
        out: Folder to write to.
        settings: Settings of `ChannelSettings`.
        overrides: Key of the config -> value.

    Returns:
        The report, with its ``table``.
    """
    cfg = read_config(config, checkpoint, dict(overrides or {}))
    configured = checks.mapping('pruning', cfg.get('pruning') or {}, 'dict(sparsity=0.8)')
    known = {name: value for name, value in configured.items() if name not in OF_TRAININGS}
    made = slim(cfg, checkpoint, ChannelSettings.from_dict(with_target(known, settings)))
    made.write(out)
    return {**made.report, 'table': slim_table(made.report)}


def flops_of(model: nn.Module, call: Callable[[], object]) -> Costs:
    """FLOPs of one `call` as a function of the widths of the layers, which targets in FLOPs need; see `count_costs`."""
    counted = count_costs(model, call)
    return Costs(counted.per_element, counted.shapes, counted.fixed)


class _Recorded:
    """Training batches that are drawn once, and a call of a model on the first sample of the first batch."""

    def __init__(self, config: Config, model: nn.Module, settings: ChannelSettings) -> None:
        plan, preprocessor = settings.plan, model.get_submodule('data_preprocessor')
        count = max(batches_needed(plan), settings.recalibrate, 1)
        raw = draw(Runner.build_dataloader(config.train_dataloader, seed=plan.seed), count, plan.seed)
        self.batches = CachedBatches(raw, preprocessor, plan.seed)
        self._sample = CachedBatches([first_sample(raw[0])], preprocessor, plan.seed)

    def call(self, model: nn.Module) -> Any:
        """Raw outputs, without losses and decoding."""
        return raw_outputs(self._sample[0])(model)


def first_sample(raw: Any) -> Any:
    """A collated batch, cut down to its first sample."""
    if isinstance(raw, Mapping):
        return {name: first_sample(value) for name, value in raw.items()}
    return raw[:1] if isinstance(raw, (list, Tensor)) else raw


def _decide(
    model: nn.Module,
    settings: ChannelSettings,
    batches: CachedBatches,
    fusion: FusionMap,
    groups: list[ChannelGroup],
    flops: Costs,
) -> tuple[Scores, Selection]:
    plan = settings.plan
    kind, share = plan.target
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    costs = {'flops': flops, 'params': Costs.of_parameters(shapes)}.get(kind)

    def choose(scores: Mapping[str, Tensor], share: float, tolerance: float = 1.0) -> Selection:
        limits = settings.max_ratio, settings.round_to, tolerance
        return choose_channels(scores, groups, plan, share, costs, *limits)

    scores = score_channels(model, plan, batches, fusion, groups, choose)
    return scores, choose(scores.values, share, settings.tolerance)


def _sliced(checkpoint: dict[str, Any], groups: list[ChannelGroup], selection: Selection) -> dict[str, Any]:
    """A slim checkpoint, with masks of its weights if the dense one was masked."""
    small = slim_checkpoint(checkpoint, groups, selection.keep)
    if STATE in checkpoint:
        masks, record = unpack(checkpoint[STATE]['masks']), checkpoint[STATE].get('record', {})
        small[STATE] = packed_state(slice_tensors(masks, groups, selection.keep), record)
    return small


def channel_rates(selection: Selection, groups: list[ChannelGroup], fusion: FusionMap) -> dict[str, Any]:
    """``total``, ``groups`` and ``layers`` as in `mmprune3d.engine.criteria.keep_report`, of channels."""
    belongs = {group.name: str(fusion.group_of(group.name)) for group in groups}
    rates = keep_rates(selection.keep, belongs)
    return {**rates, 'layers': {name: {**row, 'group': belongs[name]} for name, row in rates['layers'].items()}}


def _build(config: Config) -> nn.Module:
    model = MODELS.build(copy.deepcopy(config.model)).to('cuda' if torch.cuda.is_available() else 'cpu').eval()
    make_cpu_ready(model)
    return model


def _weights(model: nn.Module) -> dict[str, Tensor]:
    weights = model.state_dict()
    return with_metadata({name: value.cpu().clone() for name, value in weights.items()}, weights)


def _modules(model: nn.Module, protected: tuple[str, ...]) -> list[str]:
    """Modules of names that may be those of parameters."""
    parameters = dict(model.named_parameters())
    return [name.rpartition('.')[0] if name in parameters else name for name in protected]


def _gflops(costs: Costs) -> float:
    return costs.after([], {}) / 1e9


def _where(error: RuntimeError, model: nn.Module) -> str:
    """The innermost module of a model in which an error was raised, with its class."""
    names = {id(module): name for name, module in model.named_modules()}
    met = [frame.f_locals.get('self') for frame, _ in walk_tb(error.__traceback__)]
    inside = [module for module in met if names.get(id(module))]
    return f'{names[id(inside[-1])]} ({type(inside[-1]).__name__})' if inside else type(model).__name__


def _check(
    slim_model: nn.Module, model: nn.Module, masked: Mapping[str, Tensor], call: Callable[[nn.Module], Any]
) -> float:
    reference = copy.deepcopy(model)
    reference.load_state_dict(masked)
    try:
        difference = output_difference(slim_model, reference, call)
    except RuntimeError as error:
        raise ValueError(
            f'the slim model does not run: {_where(error, slim_model)} works with a number of channels that is not '
            f'that of its weights ({error}). Exclude the layers before it with protected=..., and please report this'
        ) from error
    if not difference <= TOLERANCE:
        raise ValueError(
            f'the slim model differs from the masked one by {difference:.1e} (relative; {TOLERANCE:.0e} is rounding): '
            'a coupled group of channels was not found. Exclude layers with protected=..., and please report this'
        )
    return difference
