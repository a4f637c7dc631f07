"""Upgrades of SST: insert halting modules, fine-tune, show what it costs and gains."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmdet3d.registry import MODELS
from mmengine.config import Config
from mmengine.registry import HOOKS
from torch import nn

from mmprune3d.config_types import class_of, dotted, without
from mmprune3d.engine.halting import records_of
from mmprune3d.engine.hooks import HaltingHook
from mmprune3d.models.sst import SSTBackbone, SSTDetector
from mmprune3d.pruning.halting import HaltingPlan, HaltingRecord
from mmprune3d.visualization.halted_tokens import draw_halted_tokens
from mmprune3d.visualization.upgrade import annotated_boxes, confident_boxes

from .compare import THRESHOLD, SideBySide
from .configs import upgraded_config
from .finetune import PlanWithFineTuning
from .steps import Made

RECALIBRATED = 16
"""Training batches on which batch norm is estimated anew."""
STAGES = {'voxel encoder': 'voxel_encoder', 'backbone': 'backbone', 'neck': 'neck', 'head': 'bbox_head'}


@dataclass(frozen=True)
class HaltingUpgrade(PlanWithFineTuning):
    """Token halting, with fine-tuning of the detector and its halting modules."""

    plan: HaltingPlan

    def config(self, config: Config) -> Config:
        """`config` with a backbone whose tokens halt.

        Raises:
            ValueError: If the detector is not an SST, or halts already.
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

    def check_config(self, config: Config) -> None:
        """Raises ValueError if the detector is not a plain SST, or its size does not fit the plan."""
        self.config(config)

    def make(self, config: Config, checkpoint: Path, out: Path) -> Made:
        """Fine-tunes in ``out/finetune``; a second call goes on where the first one stopped.

        Args:
            config: Config of the plain SST.
            checkpoint: Its weights.
            out: Folder of the upgrade.

        Raises:
            ValueError: If the plan does not fit, or `out` has another fine-tuning.
        """
        halting = self.config(config)
        self.train(self.tuned(halting, checkpoint, out))
        return Made(halting, self.finished(out))

    def settle(self, model: nn.Module, config: Config) -> bool:
        """Estimates batch norm anew: with stale statistics the wrong tokens halt."""
        return self.settled(model, config, RECALIBRATED)

    def comparison(self, model: nn.Module, config: Config) -> Callable[..., SideBySide]:
        """Halted tokens are counted and drawn."""
        return HaltingComparison

    def title(self) -> str:
        """The sparsity that is asked for."""
        return f'{self.method}, mean sparsity {self.plan.sparsity:.0%}'

    def pictures(self, comparison: SideBySide, report: dict[str, Any], folder: Path, count: int) -> list[Path]:
        """Draws where tokens halted."""
        return comparison.token_pictures(folder, count) if isinstance(comparison, HaltingComparison) else []


class HaltingComparison(SideBySide):
    """An SST, and the same detector with halting."""

    def stages(self, model: nn.Module) -> dict[str, nn.Module]:
        """The parts of the detector."""
        found = {name: getattr(model, child, None) for name, child in STAGES.items()}
        return {name: module for name, module in found.items() if module is not None}

    def cost_of(self, name: str, model: nn.Module, batch: dict[str, Any]) -> dict[str, Any]:
        """GFLOPs and parameters of a model on the first batch; sparsity over the timed batches."""
        records = [record for timed in self.batches for record in self.records(name, timed)]
        backbone: Any = model.get_submodule('backbone')
        each = [record.sparsity() for record in records] or [torch.zeros(backbone.num_layers)]
        return {**super().cost_of(name, model, batch), 'sparsity': torch.stack(each).mean(0).tolist()}

    @staticmethod
    def rows(baseline: Mapping[str, Any], upgraded: Mapping[str, Any]) -> Iterable[str]:
        """The common lines, then the shares of halted tokens."""
        yield from SideBySide.rows(baseline, upgraded)
        means = [sum(side['sparsity']) / len(side['sparsity']) for side in (baseline, upgraded)]
        yield f'| mean sparsity of tokens | {means[0]:.1%} | {means[1]:.1%} | |'
        layers = [' '.join(f'{share:.0%}' for share in side['sparsity']) for side in (baseline, upgraded)]
        yield f'| halted before each attention layer | {layers[0]} | {layers[1]} | |'

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
