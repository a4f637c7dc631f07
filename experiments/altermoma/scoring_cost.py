"""What it costs to find out which weights can go: passes through the detector, time and memory, by criterion."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner
from torch import nn

from mmprune3d import files
from mmprune3d.adapters.fusion import fusion_map
from mmprune3d.checkpoint.read import load_weights
from mmprune3d.engine.batches import CachedBatches, draw
from mmprune3d.engine.criteria import batches_needed, score_model
from mmprune3d.measure import report as reports
from mmprune3d.measure.memory import peak_memory
from mmprune3d.pruning.altermoma import AlterMOMAPlan

from .study import BATCH_SIZE, SETTINGS

SPARSITY = 0.8


def counted_passes(model: nn.Module, plan: AlterMOMAPlan, batches: CachedBatches) -> dict[str, float]:
    """Passes (forward and backward) through the detector of one scoring, and its seconds.

    SynFlow runs on a copy, whose passes are as many as its rounds.
    """
    passes = [0]

    def count(*_: object) -> None:
        passes[0] += 1

    handle = model.register_forward_pre_hook(count)
    start = time.perf_counter()
    try:
        score_model(model, plan, batches, fusion_map(model))
    finally:
        handle.remove()
    seconds = time.perf_counter() - start
    return {'passes': plan.rounds if plan.criterion == 'synflow' else passes[0], 'seconds': seconds}


def scoring_cost(config: Config, checkpoint: Path, out: Path) -> dict[str, Any]:
    """Cost of every criterion with the settings of the study; ``cost.json`` in `out` holds it too.

    Peak memory is that of a scoring with a single batch everywhere, beyond weights and inputs: it does not grow with
    their number.

    Args:
        config: Of the fusion detector, with a training set.
        checkpoint: Its weights.
        out: Folder.
    """
    init_default_scope(config.get('default_scope') or 'mmengine')
    model = MODELS.build(copy.deepcopy(config.model))
    load_weights(model, checkpoint)
    plans = {
        name: AlterMOMAPlan(sparsity=SPARSITY, **settings)
        for name, settings in SETTINGS.items()
        if 'epochs_per_round' not in settings
    }
    raw = draw(Runner.build_dataloader(config.train_dataloader, seed=0), max(map(batches_needed, plans.values())), 0)
    batches = CachedBatches(raw, model.data_preprocessor)
    result: dict[str, Any] = {'criteria': {}, 'env': reports.environment(BATCH_SIZE, 'float32')}
    for name, plan in plans.items():
        least = {'eval_batches': 1, 'reactivation_steps': 1, 'rounds': 1}
        small = AlterMOMAPlan.from_dict({**plan.to_dict(), **least})
        memory = peak_memory(lambda small=small: score_model(model, small, batches, fusion_map(model)))
        result['criteria'][name] = {**counted_passes(model, plan, batches), 'peak_mib': memory}
    files.write_json(out / 'cost.json', result)
    return result


def cost_table(result: Mapping[str, Any]) -> str:
    """The result of `scoring_cost` as Markdown."""
    lines = ['| criterion | passes | seconds | peak memory (MiB) |', '|---|---:|---:|---:|']
    for name, figures in result['criteria'].items():
        lines.append(f'| {name} | {figures["passes"]} | {figures["seconds"]:.1f} | {figures["peak_mib"]:.0f} |')
    return '\n'.join([*lines, '', ', '.join(f'{key} {value}' for key, value in result['env'].items())])
