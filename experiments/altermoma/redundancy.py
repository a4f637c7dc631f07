"""How redundant the streams of a fusion detector are: the premise of AlterMOMA, measured."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.runner import Runner
from torch import Tensor, nn

from experiments.tables import markdown_table
from mmprune3d import files
from mmprune3d.adapters.fusion import FusionMap, fusion_map, modalities
from mmprune3d.adapters.modality_masking import ModalityMasker
from mmprune3d.measure.accuracy import evaluate, summarize
from mmprune3d.measure.annotations import require_accuracy
from mmprune3d.measure.runners import prepare

from .streams import recorded

RIDGE = 1e-3
"""Regularisation of the regression, relative to the mean variance."""


def explained(source: Tensor, target: Tensor, fit: Tensor) -> float:
    """Share of the variance of `target` that a linear map of `source` explains on rows that it was not fitted to.

    Args:
        source: [N, C1] features.
        target: [N, C2] features of the same places.
        fit: [N] bool, rows that the map is fitted to; the share is that of the others.

    Returns:
        R^2 over all target channels together, at most 1; negative if the map is worse than the mean.
    """
    source, target = source.double(), target.double()
    mean_in, mean_out = source[fit].mean(0), target[fit].mean(0)
    x, y = source[fit] - mean_in, target[fit] - mean_out
    gram = x.T @ x
    gram += RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    weights = torch.linalg.solve(gram, x.T @ y)
    rest = target[~fit] - mean_out
    error = rest - (source[~fit] - mean_in) @ weights
    return float(1 - error.square().sum() / (rest - rest.mean(0)).square().sum())


@torch.no_grad()
def stream_features(model: nn.Module, fusion: FusionMap, batches: list[Any]) -> dict[str, Tensor]:
    """Modality -> features [places, C] of its map, over all samples of test batches as the loader yields them."""
    model.eval()
    with recorded(model, {name: fusion.interfaces[name] for name in modalities(model, fusion)}) as seen:
        for batch in batches:
            model.test_step(copy.deepcopy(batch))
    return {name: torch.cat([out.movedim(1, -1).flatten(0, -2) for out in outs]) for name, outs in seen.items()}


def redundancy(config: Config, checkpoint: Path, out: Path, samples: int = 48) -> dict[str, Any]:
    """Accuracy with every stream masked, and how well a linear map predicts each stream's features from another's.

    Args:
        config: Config of the fusion detector, with a test set.
        checkpoint: Its weights.
        out: Folder that ``redundancy.json`` is written to.
        samples: Number of test batches that features are taken from.

    Returns:
        ``accuracy``: what is masked -> figures; ``explained``: 'camera from lidar' and so on -> R^2 on cells where the
        streams' features are not all zero, fitted on every other cell.
    """
    runner = Runner.from_cfg(prepare(config, checkpoint, out))
    require_accuracy(runner, 'what masking costs')
    runner.load_or_resume()
    model = runner.model
    fusion = fusion_map(model)
    names = modalities(model, fusion)
    features = stream_features(model, fusion, list(islice(runner.test_dataloader, samples)))
    filled = torch.stack([values.abs().sum(1) > 0 for values in features.values()]).all(0)
    fit = torch.arange(int(filled.sum())) % 2 == 0
    result: dict[str, Any] = {'explained': {}, 'accuracy': {}}
    for target in names:
        for source in names:
            if source != target:
                value = explained(features[source][filled], features[target][filled], fit)
                result['explained'][f'{target} from {source}'] = value
    for masked in (None, *names):
        with ModalityMasker(model, fusion).masked(masked):
            result['accuracy'][f'{masked or "nothing"} masked'] = summarize(evaluate(runner, f'{masked} masked'))
    files.write_json(out / 'redundancy.json', result)
    return result


def redundancy_table(result: Mapping[str, Any]) -> str:
    """The result of `redundancy` as Markdown."""
    accuracy = (
        (name, f'{100 * found["mAP"]:.1f}', f'{100 * found["NDS"]:.1f}') for name, found in result['accuracy'].items()
    )
    explained = ((name, f'{100 * value:.1f}') for name, value in result['explained'].items())
    lines = [*markdown_table(('', 'mAP (%)', 'NDS (%)'), accuracy), '']
    return '\n'.join([*lines, *markdown_table(('linear prediction', 'variance explained (%)'), explained)])
