"""What the streams of a fusion detector see: originally, once another sensor is gone, and after pruning."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS, MODELS, init_default_scope
from mmengine.runner import Runner
from torch import Tensor, nn

from experiments.altermoma.bev_features import draw_bev_features
from mmprune3d.adapters.fusion import FusionMap, fusion_map, modalities, parameter_groups, prunable, resolve
from mmprune3d.checkpoint.read import load_weights
from mmprune3d.engine.batches import CachedBatches, draw
from mmprune3d.engine.criteria import Scores, batches_needed, make_masks, modality_gradients
from mmprune3d.engine.recalibration import recalibrate
from mmprune3d.pruning.altermoma import AlterMOMAPlan, alter_moma_scores
from mmprune3d.pruning.masks import apply_masks_

FUSED = 'fused'
"""Name of the map after the fusion."""


@contextmanager
def _recorded(model: nn.Module, fusion: FusionMap) -> Iterator[dict[str, Tensor]]:
    """The maps that the streams and the fuser return while the context is open, mean magnitude over channels."""
    seen: dict[str, Tensor] = {}

    def keep(name: str, function: Callable) -> Callable:
        def call(*args: Any, **kwargs: Any) -> Any:
            output = function(*args, **kwargs)
            seen[name] = output.detach().abs().mean(1)
            return output

        return call

    with ExitStack() as stack:
        for name, path in {**fusion.interfaces, FUSED: 'fusion_layer'}.items():
            found = resolve(model, path)
            if isinstance(found, nn.Module):
                handle = found.register_forward_hook(lambda _m, _i, output, name=name: keep(name, lambda: output)())
                stack.callback(handle.remove)
            else:
                setattr(model, path, keep(name, found))
                stack.callback(delattr, model, path)
        yield seen


@torch.no_grad()
def feature_maps(model: nn.Module, fusion: FusionMap, batch: Any) -> dict[str, np.ndarray]:
    """Modality, and `FUSED` -> magnitude [x, y] of its map for the first sample of a preprocessed batch.

    The model predicts in evaluation mode and is put back into its mode.
    """
    mode = model.training
    model.eval()
    try:
        with _recorded(model, fusion) as seen:
            model(**copy.deepcopy(batch), mode='predict')
    finally:
        model.train(mode)
    return {name: value[0].float().cpu().numpy() for name, value in seen.items()}


def feature_states(
    model: nn.Module, plan: AlterMOMAPlan, batches: CachedBatches, sample: Any, recalibrated: int = 8
) -> tuple[dict[str, dict[str, np.ndarray]], Scores]:
    """Maps of one sample in the states of AlterMOMA (rebuttal, Fig. 1). The model is pruned afterwards.

    Args:
        model: The detector, not wrapped, with methods or modules of a bird's-eye-view fusion.
        plan: Of AlterMOMA, by weights.
        batches: `batches_needed(plan)` or more of the training.
        sample: A preprocessed batch to look at.
        recalibrated: Batches to estimate batch norm on after pruning.

    Returns:
        State -> map -> magnitude [x, y]; and the scores. Reactivated streams are shown, those that were masked and what
        comes after the fusion are not.
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
        config: Of the detector, with training and test sets.
        checkpoint: Its weights.
        plan: Of AlterMOMA.
        index: Number of the test sample.
        path: PNG file to write.
    """
    init_default_scope(config.get('default_scope') or 'mmengine')
    model = MODELS.build(copy.deepcopy(config.model))
    load_weights(model, checkpoint)
    dataset = DATASETS.build(config.test_dataloader.dataset)
    sample = model.data_preprocessor(pseudo_collate([dataset[index]]), False)
    loader = Runner.build_dataloader(config.train_dataloader, seed=plan.seed)
    batches = CachedBatches(draw(loader, batches_needed(plan), plan.seed), model.data_preprocessor, plan.seed)
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
