"""Masks for single weights, from scores on the training data; nothing is trained. See ``mmprune3d prune``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner
from torch import Tensor

from mmprune3d import config_files, files
from mmprune3d.adapters.dynamic_voxels import make_cpu_ready
from mmprune3d.adapters.fusion import parameter_groups
from mmprune3d.checkpoint.masks import STATE, save_masks
from mmprune3d.checkpoint.read import load_weights
from mmprune3d.engine.batches import CachedBatches, draw
from mmprune3d.engine.criteria import batches_needed, keep_report, keep_table, make_masks, score_model
from mmprune3d.engine.loops.settings import PruningSettings
from mmprune3d.pruning import checks
from mmprune3d.pruning.masks import unpack

OF_TRAININGS = ('epochs_per_round', 'rewind', 'recalibrate')
"""Settings of ``pruning`` that mean something in a training only; those of a config are left out here."""


def prune_checkpoint(
    config: Path, checkpoint: Path, out: Path, settings: Mapping[str, Any], overrides: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Scores a detector on its training data, and writes masks and a report.

    Args:
        config: Config of the detector; its ``pruning``, if it has one, holds settings that `settings` does not.
        checkpoint: The detector's weights. If they are masked already, more is removed.
        out: Folder for ``masks.pth``, which ``MaskHook(masks=...)`` reads, ``report.json`` and ``report.md``.
        settings: Settings of `PruningSettings` and of the plan.
        overrides: Key of the config -> value.

    Returns:
        The report of `keep_report`.

    Raises:
        ValueError: If a setting is unknown or belongs to a training, or the detector cannot be scored.
    """
    files.writable(out)
    cfg = config_files.read(config, overrides)
    asked = [name for name in OF_TRAININGS if name in settings]
    if asked:
        raise ValueError(f"{', '.join(asked)}: that needs a training, with runner_type='PruningRunner'")
    configured = checks.mapping('pruning', cfg.get('pruning') or {}, 'dict(sparsity=0.8)')
    known = {name: value for name, value in configured.items() if name not in OF_TRAININGS}
    chosen = PruningSettings.from_dict({**known, **settings})
    init_default_scope(cfg.get('default_scope') or 'mmengine')
    model = MODELS.build(cfg.model).to('cuda' if torch.cuda.is_available() else 'cpu')
    make_cpu_ready(model)
    fusion, plan = chosen.fusion_map(model), chosen.plan
    count, raw = batches_needed(plan), []
    if count and cfg.get('train_dataloader') is None:
        raise ValueError(
            f'the config has no train_dataloader: there is no data for criterion={plan.criterion!r}; '
            "criterion='magnitude' and 'random' need none"
        )
    earlier = _masks_of(load_weights(model, checkpoint))
    if count:
        raw = draw(Runner.build_dataloader(cfg.train_dataloader, seed=plan.seed), count, plan.seed)
    scores = score_model(model, plan, CachedBatches(raw, model.data_preprocessor, plan.seed), fusion)
    masks = make_masks(scores, plan, parameter_groups(model, fusion), earlier=earlier)
    report = keep_report(model, plan, fusion, scores, masks)
    save_masks(out / 'masks.pth', masks, {'plan': plan.to_dict()})
    files.write_json(out / 'report.json', report, indent=1)
    title = f'# {plan.criterion}, sparsity {plan.sparsity:g}: {Path(config).stem}'
    files.write_text(out / 'report.md', f'{title}\n\n{keep_table(report, layers=True)}\n')
    return report


def _masks_of(loaded: Mapping[str, Any]) -> dict[str, Tensor]:
    return unpack(loaded.get(STATE, {}).get('masks', {}))
