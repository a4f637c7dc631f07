"""Upgrades of fusion detectors: prune weights or channels, fine-tune what is left, show what it costs and gains."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import nn

from mmprune3d import files
from mmprune3d.adapters.fusion import FusionMap, fusion_map, has, resolve
from mmprune3d.checkpoint import begun
from mmprune3d.config_types import without
from mmprune3d.engine.criteria import keep_table
from mmprune3d.engine.hooks import MaskHook
from mmprune3d.engine.loops.altermoma_loop import REPORT as LOOP_REPORT
from mmprune3d.engine.runners import PruningRunner
from mmprune3d.measure import report as reports
from mmprune3d.measure.flops import count_operations
from mmprune3d.measure.layer_costs import LayerCosts, count_costs, gflops_by_part
from mmprune3d.measure.tested import TestedSet, safely
from mmprune3d.measure.timing import REST, TOTAL
from mmprune3d.pruning import checks
from mmprune3d.pruning.altermoma import AlterMOMAPlan
from mmprune3d.visualization.keep_rates import draw_keep_rates

from .channel_settings import MAP, ChannelSettings
from .channels import slim
from .compare import AtRunTime, SideBySide
from .configs import upgraded_config
from .finetune import PlanWithFineTuning
from .slim_files import REPORT, STRUCTURE, slim_config, slim_table
from .steps import Made

RECALIBRATED = 16
"""Batches on which batch norm is estimated anew, unless the config says something else."""
KEPT_SETTINGS = (*MAP, 'recalibrate')
"""What is taken from ``pruning`` of the user's config; the plan is not."""


@dataclass(frozen=True)
class FusionPruning(PlanWithFineTuning):
    """Pruning of weights or channels, with fine-tuning."""

    plan: AlterMOMAPlan

    def settings(self, config: Config) -> dict[str, Any]:
        """The plan, and what the config says about its detector, as a config's ``pruning`` has them."""
        pruning = checks.mapping('pruning', config.get('pruning') or {}, "dict(groups=dict(camera=['img_backbone']))")
        plan = {name: value for name, value in self.plan.to_dict().items() if name != 'method'}
        return {**{name: pruning[name] for name in KEPT_SETTINGS if name in pruning}, **plan}

    def fusion_map(self, model: nn.Module, config: Config) -> FusionMap:
        """Which parts of a model belong to which sensor.

        Raises:
            ValueError: If neither an adapter nor the config knows.
        """
        settings = self.settings(config)
        return fusion_map(model, **{name: settings[name] for name in MAP if name in settings})

    def check_model(self, model: nn.Module, config: Config) -> None:
        """Raises ValueError if the model has no fusion map."""
        self.fusion_map(model, config)

    def make(self, config: Config, checkpoint: Path, out: Path) -> Made:
        """Prunes and fine-tunes; a second call goes on where the first one stopped.

        Args:
            config: Config of the detector.
            checkpoint: Its weights.
            out: Folder of the upgrade; channels are removed into ``out/pruned``, the training runs in
                ``out/finetune``.

        Raises:
            ValueError: If the plan does not fit, or `out` has another one.
        """
        if self.plan.mode == 'channels':
            return self._channels(config, checkpoint, out)
        return self._weights(config, checkpoint, out)

    def _weights(self, config: Config, checkpoint: Path, out: Path) -> Made:
        masked = copy.deepcopy(config)
        masked.pruning = self.settings(config)
        self.train(self.tuned(masked, checkpoint, out), PruningRunner)
        keep = json.loads((out / 'finetune' / LOOP_REPORT).read_text())
        upgraded = upgraded_config(config, None)
        for name in ('runner_type', 'pruning'):
            upgraded.pop(name, None)
        hooks = without(upgraded.get('custom_hooks'), MaskHook, HOOKS)
        upgraded.custom_hooks = [*hooks, dict(type='MaskHook')]  # the masks are in the checkpoint
        return Made(upgraded, self.finished(out), {'keep': keep}, section(keep_table(keep)))

    def _channels(self, config: Config, checkpoint: Path, out: Path) -> Made:
        folder = out / 'pruned'
        used = {name: config.get(name) for name in ('model', 'data_preprocessor', 'train_dataloader')}
        data = begun.beginning({**used, 'pruning': self.settings(config)}, checkpoint)
        if (folder / REPORT).is_file():
            begun.require_same(folder, data)
        else:
            begun.write(folder, data)
            slim(config, checkpoint, ChannelSettings.from_dict(self.settings(config))).write(folder)
        keep = json.loads((folder / REPORT).read_text())
        self.train(self.tuned(slim_config(config, str(folder / STRUCTURE)), folder / 'slim.pth', out))
        files.write_bytes(out / STRUCTURE, (folder / STRUCTURE).read_bytes())
        upgraded = slim_config(config, str(out / STRUCTURE))
        return Made(upgraded, self.finished(out), {'keep': keep}, section(slim_table(keep)), (STRUCTURE,))

    def settle(self, model: nn.Module, config: Config) -> bool:
        """Estimates batch norm anew, on as many batches as ``recalibrate`` of the config's ``pruning`` says."""
        count = self.settings(config).get('recalibrate', RECALIBRATED)
        return self.settled(model, config, count, self.plan.seed)

    def comparison(self, model: nn.Module, config: Config) -> Callable[..., SideBySide]:
        """Times and FLOPs are those of the groups of the fusion map."""
        return partial(FusionComparison, fusion=self.fusion_map(model, config))

    def title(self) -> str:
        """The criterion and the target."""
        kind, share = self.plan.target
        weights = 'channels' if self.plan.mode == 'channels' else 'weights'
        return (
            f'{self.plan.criterion}, {share:.0%} of the {dict(flops="FLOPs", params="parameters").get(kind, weights)}'
        )

    def pictures(self, comparison: SideBySide, report: dict[str, Any], folder: Path, count: int) -> list[Path]:
        """Draws what stays of every layer."""
        path = folder / 'keep_rates.png'

        def draw() -> Path:
            draw_keep_rates(report['keep'], path)
            return path

        return safely(comparison.runner, path.name, draw)


def section(table: str) -> str:
    """The section of ``report.md`` about what stays."""
    return f'## What stays\n\n{table}\n'


class FusionComparison(SideBySide):
    """Baseline and upgraded fusion detector, by the groups of their map.

    Args:
        runner: See :class:`SideBySide`, as for all but the third.
        upgraded: The pruned model, with its weights.
        fusion: The fusion map of both models.
        timed: How many test batches to time.
        repeats: How often each is timed.
        tested: The test set of `runner`, if it was checked already.
        attached: What prunes the upgraded model while it runs.
    """

    def __init__(
        self,
        runner: Runner,
        upgraded: nn.Module,
        fusion: FusionMap,
        timed: int = 8,
        repeats: int = 3,
        tested: TestedSet | None = None,
        attached: Sequence[AtRunTime] = (),
    ) -> None:
        super().__init__(runner, upgraded, timed, repeats, tested, attached)
        self.fusion = fusion

    def stages(self, model: nn.Module) -> dict[str, nn.Module]:
        """The modules that the groups name."""
        return timed_modules(model, self.fusion)

    def grouped(self, spent: Mapping[str, float]) -> dict[str, float]:
        """Milliseconds per group of the fusion map, ``rest`` and ``total``."""
        sums = dict.fromkeys(self.fusion.groups, 0.0)
        for module in spent.keys() - {REST, TOTAL}:
            sums[str(self.fusion.group_of(module))] += spent[module]
        return {**sums, REST: spent[REST], TOTAL: spent[TOTAL]}

    def cost_of(self, name: str, model: nn.Module, batch: dict[str, Any]) -> dict[str, Any]:
        """GFLOPs and parameters of a model, and both without the weights that are 0."""
        costs = count_costs(model, lambda: self.run(model, batch))
        gflops = gflops_by_part(costs, layers_by_group(costs, self.fusion))
        return {
            'gflops': gflops.pop('total'),
            'gflops_by_stage': gflops,
            'not_counted': list(count_operations(lambda: self.run(model, batch), {}).unknown),
            'params': sum(p.numel() for p in model.parameters()),
            'nonzero': nonzero(model, costs),
        }

    @staticmethod
    def rows(baseline: Mapping[str, Any], upgraded: Mapping[str, Any]) -> Iterable[str]:
        """The common lines, then what would be left if zeros among weights saved anything."""
        yield from SideBySide.rows(baseline, upgraded)
        before, after = baseline['nonzero'], upgraded['nonzero']
        yield reports.row('parameters that are not 0 (millions)', before['params'] / 1e6, after['params'] / 1e6, 3)
        yield reports.row('GFLOPs of weights that are not 0 (in theory)', before['gflops'], after['gflops'], 3)


def timed_modules(model: nn.Module, fusion: FusionMap) -> dict[str, nn.Module]:
    """The modules that the groups name, as far as the model has them; none lies inside another."""
    prefixes = [prefix for group in fusion.groups.values() for prefix in group if has(model, prefix)]
    outer = [name for name in prefixes if not any(name.startswith(f'{other}.') for other in prefixes)]
    found = {name: resolve(model, name) for name in outer}
    return {name: module for name, module in found.items() if isinstance(module, nn.Module)}


def layers_by_group(costs: LayerCosts, fusion: FusionMap) -> dict[str, list[str]]:
    """Group -> names of its layers that cost something."""
    layers = [name.removesuffix('.weight') for name in costs.per_element]
    return {group: [name for name in layers if fusion.group_of(name) == group] for group in fusion.groups}


def nonzero(model: nn.Module, costs: LayerCosts) -> dict[str, float]:
    """``params`` that are not zero, and the ``gflops`` that a machine would need that skips zeros among weights."""
    parameters = dict(model.named_parameters())
    counts = {name: int(p.count_nonzero()) for name, p in parameters.items()}
    spent = sum(each * counts[name] for name, each in costs.per_element.items() if name in counts)
    return {'params': sum(counts.values()), 'gflops': (spent + costs.fixed) / 1e9}
