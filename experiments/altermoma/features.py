"""Feature maps of the streams of a fusion detector: original, with the other sensor masked, and after pruning."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS
from torch import nn

from experiments.models import load, training_batches
from mmprune3d.adapters.fusion import FusionMap, fusion_map, modalities, parameter_groups, prunable
from mmprune3d.engine.batches import CachedBatches
from mmprune3d.engine.criteria import Scores, batches_needed, make_masks, modality_gradients
from mmprune3d.engine.recalibration import recalibrate
from mmprune3d.layers.preserved import evaluating
from mmprune3d.pruning.altermoma import AlterMOMAPlan, alter_moma_scores
from mmprune3d.pruning.masks import apply_masks_

from .bev_features import draw_bev_features
from .streams import recorded

FUSED = 'fused'
"""Name of the fused map."""


@torch.no_grad()
def feature_maps(model: nn.Module, fusion: FusionMap, batch: Any) -> dict[str, np.ndarray]:
    """Modality, or `FUSED` -> mean magnitude [x, y] over the channels of its map, for the first sample of a batch.

    Args:
        model: The detector; it predicts in evaluation mode and is then what it was, mode by mode.
        fusion: Its streams.
        batch: A preprocessed batch.
    """
    with evaluating(model), recorded(model, {**fusion.interfaces, FUSED: 'fusion_layer'}) as seen:
        model(**copy.deepcopy(batch), mode='predict')
    return {name: outputs[-1].abs().mean(1)[0].float().cpu().numpy() for name, outputs in seen.items() if outputs}


def feature_states(
    model: nn.Module, plan: AlterMOMAPlan, batches: CachedBatches, sample: Any, recalibrated: int = 8
) -> tuple[dict[str, dict[str, np.ndarray]], Scores]:
    """Maps of one sample in the states of AlterMOMA (rebuttal, Fig. 1); the model is pruned when it returns.

    Args:
        model: The detector, not wrapped, with methods or modules of a bird's-eye-view fusion.
        plan: AlterMOMA's plan, by weights.
        batches: `batches_needed(plan)` or more batches of the training.
        sample: The preprocessed batch whose maps are returned.
        recalibrated: Number of batches on which batch norm is estimated after pruning.

    Returns:
        State -> map -> magnitude [x, y]; and the scores. The state 'reactivated' has no fused map: a stream is masked.
    """
    fusion = fusion_map(model)
    groups = parameter_groups(model, fusion)
    present, states = modalities(model, fusion), {}

    def look(state: str, masked: str | None) -> None:
        maps = feature_maps(model, fusion, sample)
        kept = maps if masked is None else {name: maps[name] for name in present if name != masked}
        states.setdefault(state, {}).update(kept)

    model.train()
    weights = prunable(model)
    gradients = modality_gradients(model, plan, batches, fusion, weights, look)
    scores = Scores(alter_moma_scores(weights, gradients, groups, alpha=plan.alpha, beta=plan.beta))
    apply_masks_(dict(model.named_parameters()), make_masks(scores, plan, groups))
    recalibrate(model, batches[:recalibrated])
    look('pruned', None)
    return states, scores


def draw_states(
    config: Config, checkpoint: Path, plan: AlterMOMAPlan, index: int, path: Path
) -> Mapping[str, Mapping[str, np.ndarray]]:
    """Draws `feature_states` of one test sample.

    Args:
        config: Config of the detector, with training and test sets.
        checkpoint: Its weights.
        plan: AlterMOMA's plan.
        index: Number of the test sample.
        path: PNG file to write.
    """
    model = load(config, checkpoint)
    dataset = DATASETS.build(config.test_dataloader.dataset)
    sample = model.data_preprocessor(pseudo_collate([dataset[index]]), False)
    raw = training_batches(config, batches_needed(plan), plan.seed)
    batches = CachedBatches(raw, model.data_preprocessor, plan.seed)
    states, _ = feature_states(model, plan, batches, sample)
    boxes = dataset.get_data_info(index)['eval_ann_info']['gt_bboxes_3d']
    limits = config.point_cloud_range
    draw_bev_features(
        path,
        states,
        (limits[0], limits[1], limits[3], limits[4]),
        boxes.corners[:, [0, 3, 7, 4], :2].numpy(),
        f'{plan.criterion}, {100 * plan.sparsity:g} % of the weights removed; mean magnitude over channels',
    )
    return states
