"""Upgrades of SST: insert halting modules, fine-tune, show what it costs and gains."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmdet3d.registry import MODELS
from mmengine.config import Config
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import nn

from mmprune3d import files
from mmprune3d.checkpoint.addresses import local_file
from mmprune3d.checkpoint.compact import TRAINING_STATE
from mmprune3d.config_types import class_of, dotted, without
from mmprune3d.engine.batches import CachedBatches, draw
from mmprune3d.engine.halting import records_of
from mmprune3d.engine.hooks import HaltingHook
from mmprune3d.engine.recalibration import has_batch_norm, recalibrate
from mmprune3d.measure import report as reports
from mmprune3d.measure.flops import count_operations
from mmprune3d.measure.measured import Measured, source_of_upgrade
from mmprune3d.measure.memory import peak_memory
from mmprune3d.measure.runners import prepare, read_config
from mmprune3d.measure.tested import TestedSet
from mmprune3d.models.sst import SSTBackbone, SSTDetector
from mmprune3d.pruning.halting import HaltingPlan, HaltingRecord
from mmprune3d.visualization.halted_tokens import draw_halted_tokens
from mmprune3d.visualization.upgrade import annotated_boxes, confident_boxes

from .compare import THRESHOLD, SideBySide
from .finetune import PlanWithFineTuning, finetuning
from .run import check_inputs, forget_results, upgraded_config, write_upgraded

RECALIBRATED = 16
"""Training batches on which batch norm is estimated anew."""
STAGES = {'voxel encoder': 'voxel_encoder', 'backbone': 'backbone', 'neck': 'neck', 'head': 'bbox_head'}


@dataclass(frozen=True)
class HaltingUpgrade(PlanWithFineTuning):
    """Halting with fine-tuning."""

    plan: HaltingPlan

    def config(self, config: Config) -> Config:
        """`config` with a backbone whose tokens halt.

        Raises:
            ValueError: If it is no SST, or halts already.
        """
        model, config = config.model, upgraded_config(config, None)
        types = [part.get('type') for part in (model, model.get('backbone') or {})]
        if [class_of(kind, MODELS) for kind in types] != [SSTDetector, SSTBackbone]:  # what subclasses do would be lost
            names = [str(dotted(kind)).rsplit('.', 1)[-1] for kind in types]
            raise ValueError(f'halting is put into SSTDetector with SSTBackbone, not into {names[0]} with {names[1]}')
        backbone = config.model.backbone
        width, blocks = backbone.get('d_model', [128])[0], backbone.get('num_blocks', 4)
        backbone.update(type='HaltingSST', halting=self.plan.gates(width, blocks))
        loss = dict(kind=self.plan.loss, weight=self.plan.loss_weight)
        config.model.update(type='HaltingSSTDetector', sparsity_loss=loss)
        hooks = without(config.get('custom_hooks'), HaltingHook, HOOKS)
        config.custom_hooks = [*hooks, dict(type='HaltingHook')]
        return config

    def run(self, config: Config, checkpoint: Path, out: Path) -> tuple[Config, dict[str, Any]]:
        """Fine-tunes in ``out/finetune``; a second call goes on where the first one stopped.

        Args:
            config: Of the plain SST.
            checkpoint: Its weights.
            out: Folder.

        Returns:
            The config and the checkpoint of the detector whose tokens halt.

        Raises:
            ValueError: If the plan does not fit, or `out` has another fine-tuning.
        """
        halting = self.config(config)
        self.train(finetuning(halting, checkpoint, out / 'finetune', self.epochs, self.lr_factor))
        made = {name: value for name, value in self.trained(out / 'finetune').items() if name not in TRAINING_STATE}
        made['meta'].setdefault('mmprune3d', {})[self.plan.method] = self.plan.to_dict()
        return halting, made


class HaltingComparison(SideBySide):
    """An SST and the same with halting."""

    def stages(self, model: nn.Module) -> dict[str, nn.Module]:
        """The parts of the detector."""
        found = {name: getattr(model, child, None) for name, child in STAGES.items()}
        return {name: module for name, module in found.items() if module is not None}

    def costs(self) -> dict[str, dict[str, Any]]:
        """GFLOPs, peak memory and parameters of both on the first batch; sparsity over the timed batches."""
        results, first = {}, self.batches[0]
        for name, model in self.models.items():
            counted = count_operations(lambda name=name: self.predict(name, first), self.stages(model.eval()))
            flops = counted.gflops
            records = [record for batch in self.batches for record in self.records(name, batch)]
            each = [record.sparsity() for record in records] or [torch.zeros(model.backbone.num_layers)]
            results[name] = {
                'gflops': flops.pop('total'),
                'gflops_by_stage': flops,
                'not_counted': list(counted.unknown),
                'peak_mib': peak_memory(lambda name=name: self.predict(name, first)),
                'params': sum(p.numel() for p in model.parameters()),
                'sparsity': torch.stack(each).mean(0).tolist(),
            }
        return results

    def records(self, name: str, batch: dict[str, Any]) -> list[HaltingRecord]:
        """What halted while a model made its predictions; nothing for a model without halting."""
        return records_of(self.models[name], lambda: self.predict(name, batch))

    def token_pictures(self, folder: Path, count: int) -> list[Path]:
        """Draws where the tokens of `count` samples halted, with the boxes that are there and those that are found."""
        encoder = self.models['upgraded'].voxel_encoder

        def draw(number: int, batch: dict[str, Any], _: dict[str, Any]) -> Path:
            record, sample = self.records('upgraded', batch)[0], self.predict('upgraded', batch)[0]
            truth, path = annotated_boxes(sample), folder / f'tokens_{number:04d}.png'
            draw_halted_tokens(
                path,
                record.coords.cpu().numpy(),
                record.halted_at().cpu().numpy(),
                [step.layer for step in record.steps],
                encoder.voxel_size,
                encoder.point_cloud_range,
                None if truth is None else truth.corners[:, :4, :2],
                {'found': confident_boxes(sample, THRESHOLD).corners[:, :4, :2]},
                title=f'sample {number}: {record.mean_sparsity():.0%} of the tokens halted, mean over the layers',
            )
            return path

        return self.tested.draw(count, draw)


def halting_rows(baseline: Mapping[str, Any], upgraded: Mapping[str, Any]) -> Iterable[str]:
    """The lines of the table."""
    yield from reports.figures(baseline, upgraded)
    yield reports.row('parameters (millions)', baseline['params'] / 1e6, upgraded['params'] / 1e6, 3)
    means = [sum(side['sparsity']) / len(side['sparsity']) for side in (baseline, upgraded)]
    yield f'| mean sparsity of tokens | {means[0]:.1%} | {means[1]:.1%} | |'
    layers = [' '.join(f'{share:.0%}' for share in side['sparsity']) for side in (baseline, upgraded)]
    yield f'| halted before each attention layer | {layers[0]} | {layers[1]} | |'


def settled(model: nn.Module, config: Config, seed: int = 0) -> None:
    """Estimates batch norm anew after fine-tuning, in place: stale statistics halt the wrong tokens."""
    if has_batch_norm(model):
        raw = draw(Runner.build_dataloader(config.train_dataloader, seed=seed), RECALIBRATED, seed)
        recalibrate(model, CachedBatches(raw, model.data_preprocessor, seed))


def run_halting_upgrade(
    config_file: Path,
    checkpoint: str | Path,
    halting: HaltingUpgrade,
    out: Path,
    overrides: dict[str, Any],
    timed: int,
    repeats: int,
    pictures: int,
    samples: int | None = None,
) -> dict[str, Any]:
    """Inserts halting, fine-tunes, measures baseline and upgraded model, and writes the report folder.

    Args:
        config_file: Config of a plain SST.
        checkpoint: Its weights.
        halting: What to do.
        out: Folder for `report.md`, `report.json`, `pictures/`, `upgraded.py`, `upgraded.pth`, and `finetune/`, where
            an interrupted fine-tuning goes on.
        overrides: Settings on top of the config, by dotted key.
        timed: Test batches to time.
        repeats: How often each is timed.
        pictures: Samples to draw.
        samples: How many test samples to evaluate, see `samples.choose`; None means all.

    Returns:
        The report, as in `report.json`.

    Raises:
        FileNotFoundError: If config or checkpoint is missing.
        OSError: If `out` cannot be written.
        ValueError: If the plan or the test set does not fit.
    """
    checkpoint = local_file(checkpoint)
    original = read_config(config_file, checkpoint, overrides)
    files.writable(out)
    check_inputs(out, config_file, checkpoint)
    halting.config(original)  # what is no SST is refused before anything is built
    runner = Runner.from_cfg(prepare(original, checkpoint, out))
    measured = Measured(out, source_of_upgrade(original, checkpoint, samples))
    tested = TestedSet.of(runner, samples, measured)
    config, made = halting.run(original, checkpoint, out)
    weights = out / 'upgraded.pth'
    config = copy.deepcopy(config)
    config.load_from = str(weights)
    forget_results(out)
    files.save_checkpoint(made, weights)
    upgraded = Runner.from_cfg(prepare(config, weights, out))
    upgraded.load_or_resume()
    settled(upgraded.model, original)
    write_upgraded(out, config, {**made, 'state_dict': upgraded.model.state_dict()})
    comparison = HaltingComparison(runner, upgraded.model, timed, repeats, tested)
    report = comparison.report(f'{config_file.stem}: halting, mean sparsity {halting.plan.sparsity:.0%}')
    report['plan'] = halting.to_dict()
    reports.finish(report, out, reports.markdown(report, halting_rows))
    folder = out / 'pictures'
    reports.tell_pictures([*comparison.pictures(folder, pictures), *comparison.token_pictures(folder, pictures)])
    measured.finish()
    return report
