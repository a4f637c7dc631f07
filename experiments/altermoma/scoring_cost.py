"""Cost of scoring weights: passes through the detector, time and memory, by criterion."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config
from torch import nn

from experiments.models import load, training_batches
from experiments.tables import listed, markdown_table
from mmprune3d import files
from mmprune3d.adapters.fusion import fusion_map
from mmprune3d.engine.batches import CachedBatches
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
    """Cost of every criterion with the settings of the study.

    Peak memory, beyond weights and inputs, is measured with a single batch: it does not grow with their number.

    Args:
        config: Config of the fusion detector, with a training set.
        checkpoint: Its weights.
        out: Folder that ``cost.json`` is written to.
    """
    model = load(config, checkpoint)
    plans = {
        name: AlterMOMAPlan(sparsity=SPARSITY, **settings)
        for name, settings in SETTINGS.items()
        if 'epochs_per_round' not in settings
    }
    raw = training_batches(config, max(map(batches_needed, plans.values())), seed=0)
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
    rows = (
        (name, found['passes'], f'{found["seconds"]:.1f}', f'{found["peak_mib"]:.0f}')
        for name, found in result['criteria'].items()
    )
    lines = markdown_table(('criterion', 'passes', 'seconds', 'peak memory (MiB)'), rows)
    return '\n'.join([*lines, '', listed(result['env'])])
