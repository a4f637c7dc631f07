"""Upgrades of fusion detectors: prune weights or channels, fine-tune what is left, show what it costs and gains."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import nn

from mmprune3d import files
from mmprune3d.adapters.fusion import FusionMap, fusion_map
from mmprune3d.checkpoint import begun
from mmprune3d.checkpoint.addresses import local_file
from mmprune3d.checkpoint.compact import TRAINING_STATE
from mmprune3d.config_types import without
from mmprune3d.engine.batches import CachedBatches, draw, seeded
from mmprune3d.engine.criteria import keep_table
from mmprune3d.engine.hooks import MaskHook
from mmprune3d.engine.loops.altermoma_loop import REPORT as LOOP_REPORT
from mmprune3d.engine.recalibration import has_batch_norm, recalibrate
from mmprune3d.engine.runners import AlterMOMARunner
from mmprune3d.measure import report as reports
from mmprune3d.measure.measured import Measured, source_of_upgrade
from mmprune3d.measure.runners import prepare, read_config
from mmprune3d.measure.tested import TestedSet, safely
from mmprune3d.pruning import checks
from mmprune3d.pruning.altermoma import AlterMOMAPlan
from mmprune3d.visualization.keep_rates import draw_keep_rates

from .channel_settings import MAP, ChannelSettings
from .channels import slim
from .finetune import PlanWithFineTuning, finetuning
from .fusion_comparison import FusionComparison, fusion_rows
from .run import check_inputs, forget_results, upgraded_config, write_upgraded
from .slim_files import REPORT, STRUCTURE, slim_config, slim_table

RECALIBRATED = 16
"""Batches on which batch norm is estimated anew, unless the config says something else."""
KEPT_SETTINGS = (*MAP, 'recalibrate')
"""What is taken from ``pruning`` of the user's config; the plan is not."""


@dataclass(frozen=True)
class Pruned:
    """A pruned and fine-tuned detector.

    Attributes:
        config: With which `checkpoint` is tested and trained on.
        checkpoint: Without what only resuming needs.
        keep: What stays: a report with ``total``, ``groups`` and ``layers``.
        table: The same as Markdown.
    """

    config: Config
    checkpoint: dict[str, Any]
    keep: dict[str, Any]
    table: str


@dataclass(frozen=True)
class FusionPruning(PlanWithFineTuning):
    """Pruning with fine-tuning."""

    plan: AlterMOMAPlan

    def settings(self, config: Config) -> dict[str, Any]:
        """The plan, and what the config says of its detector."""
        pruning = checks.mapping('pruning', config.get('pruning') or {}, "dict(groups=dict(camera=['img_backbone']))")
        plan = {name: value for name, value in self.plan.to_dict().items() if name != 'method'}
        return {**{name: pruning[name] for name in KEPT_SETTINGS if name in pruning}, **plan}

    def run(self, config: Config, checkpoint: Path, out: Path) -> Pruned:
        """Prunes and fine-tunes; a second call goes on where the first one stopped.

        Args:
            config: Of the detector.
            checkpoint: Its weights.
            out: Folder; channels are removed into ``out/pruned``, the training runs in ``out/finetune``.

        Raises:
            ValueError: If the plan does not fit, or `out` has another one.
        """
        if self.plan.mode == 'channels':
            return self._channels(config, checkpoint, out)
        return self._weights(config, checkpoint, out)

    def _weights(self, config: Config, checkpoint: Path, out: Path) -> Pruned:
        masked = copy.deepcopy(config)
        masked.pruning = self.settings(config)
        tuned = self._tuned(masked, checkpoint, out)
        self.train(tuned, AlterMOMARunner)
        keep = json.loads((out / 'finetune' / LOOP_REPORT).read_text())
        upgraded = upgraded_config(config, None)
        for name in ('runner_type', 'pruning'):
            upgraded.pop(name, None)
        hooks = without(upgraded.get('custom_hooks'), MaskHook, HOOKS)
        upgraded.custom_hooks = [*hooks, dict(type='MaskHook')]  # the masks are in the checkpoint
        return Pruned(upgraded, self._trained(out), keep, keep_table(keep))

    def _channels(self, config: Config, checkpoint: Path, out: Path) -> Pruned:
        folder = out / 'pruned'
        used = {name: config.get(name) for name in ('model', 'data_preprocessor', 'train_dataloader')}
        data = begun.beginning({**used, 'pruning': self.settings(config)}, checkpoint)
        if (folder / REPORT).is_file():
            begun.require_same(folder, data)
        else:
            begun.write(folder, data)
            slim(config, checkpoint, ChannelSettings.from_dict(self.settings(config))).write(folder)
        keep = json.loads((folder / REPORT).read_text())
        tuned = self._tuned(slim_config(config, str(folder / STRUCTURE)), folder / 'slim.pth', out)
        self.train(tuned)
        (out / STRUCTURE).write_bytes((folder / STRUCTURE).read_bytes())
        upgraded = slim_config(config, str(out / STRUCTURE))
        return Pruned(upgraded, self._trained(out), keep, slim_table(keep))

    def _tuned(self, config: Config, checkpoint: Path, out: Path) -> Config:
        return finetuning(config, checkpoint, out / 'finetune', self.epochs, self.lr_factor)

    def _trained(self, out: Path) -> dict[str, Any]:
        made = {name: value for name, value in self.trained(out / 'finetune').items() if name not in TRAINING_STATE}
        made['meta'].setdefault('mmprune3d', {})[self.plan.method] = self.plan.to_dict()
        return made


def run_fusion_upgrade(
    config_file: Path,
    checkpoint: str | Path,
    pruning: FusionPruning,
    out: Path,
    overrides: dict[str, Any],
    timed: int,
    repeats: int,
    pictures: int,
    samples: int | None = None,
) -> dict[str, Any]:
    """Prunes, fine-tunes, measures baseline and upgraded model, and writes the report folder.

    Args:
        config_file: The detector's config.
        checkpoint: Its weights.
        pruning: What to do.
        out: Folder for `report.md`, `report.json`, `pictures/`, `upgraded.py`, `upgraded.pth`, with channels removed
            also `structure.json` and `pruned/`, and `finetune/`, where an interrupted fine-tuning goes on.
        overrides: Settings on top of the config, by dotted key.
        timed: Test batches to time.
        repeats: How often each is timed.
        pictures: Samples to draw.
        samples: How many test samples to evaluate, see `samples.choose`; None means all.

    Returns:
        The report, as in `report.json`; what stays of each layer is under `keep`.

    Raises:
        FileNotFoundError: If config or checkpoint is missing.
        OSError: If `out` cannot be written.
        ValueError: If the plan or the test set does not fit.
    """
    checkpoint = local_file(checkpoint)
    original = read_config(config_file, checkpoint, overrides)
    files.writable(out)
    check_inputs(out, config_file, checkpoint)
    runner = Runner.from_cfg(prepare(original, checkpoint, out))
    # what has no map, and what cannot be tested, is refused before hours of training
    fusion = _fusion_map(pruning, original, runner)
    measured = Measured(out, source_of_upgrade(original, checkpoint, samples))
    tested = TestedSet.of(runner, samples, measured)
    made, weights = pruning.run(original, checkpoint, out), out / 'upgraded.pth'
    config = copy.deepcopy(made.config)
    config.load_from = str(weights)
    forget_results(out)
    files.save_checkpoint(made.checkpoint, weights)
    upgraded = Runner.from_cfg(prepare(config, weights, out))
    upgraded.load_or_resume()
    settled(upgraded.model, original, pruning)
    write_upgraded(out, config, {**made.checkpoint, 'state_dict': upgraded.model.state_dict()}, STRUCTURE)
    comparison = FusionComparison(runner, upgraded.model, fusion, timed, repeats, tested)
    report = comparison.report(f'{config_file.stem}: {pruning.plan.criterion}, {_target(pruning.plan)}')
    report |= {'plan': pruning.to_dict(), 'keep': made.keep}
    reports.finish(report, out, f'{reports.markdown(report, fusion_rows)}\n## What stays\n\n{made.table}\n')
    drawn = comparison.pictures(out / 'pictures', pictures)
    reports.tell_pictures([*drawn, *safely(runner, 'keep_rates.png', lambda: _draw_rates(made.keep, out / 'pictures'))])
    measured.finish()
    return report


def _draw_rates(keep: dict[str, Any], folder: Path) -> Path:
    draw_keep_rates(keep, folder / 'keep_rates.png')
    return folder / 'keep_rates.png'


def settled(model: nn.Module, config: Config, pruning: FusionPruning) -> None:
    """Estimates batch norm anew after fine-tuning, in place: with the usual momentum of 0.01 it lags by 100 iterations.

    Args:
        model: Fine-tuned.
        config: With the training set.
        pruning: Its seed; ``recalibrate`` of the config says on how many batches.
    """
    count = pruning.settings(config).get('recalibrate', RECALIBRATED)
    if not count or not has_batch_norm(model):
        return
    loader = Runner.build_dataloader(config.train_dataloader, seed=pruning.plan.seed)
    raw = draw(loader, count, pruning.plan.seed)
    with seeded(pruning.plan.seed):
        recalibrate(model, CachedBatches(raw, model.data_preprocessor, pruning.plan.seed))


def _fusion_map(pruning: FusionPruning, config: Config, runner: Runner) -> FusionMap:
    settings = pruning.settings(config)
    return fusion_map(runner.model, **{name: settings[name] for name in MAP if name in settings})


def _target(plan: AlterMOMAPlan) -> str:
    kind, share = plan.target
    what = {'sparsity': 'channels' if plan.mode == 'channels' else 'weights', 'flops': 'FLOPs', 'params': 'parameters'}
    return f'{share:.0%} of the {what[kind]}'
