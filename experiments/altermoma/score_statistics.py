"""How the two parts of AlterEva's score relate: whether ReRI is high for other weights than DeCI."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from scipy.stats import spearmanr
from torch import Tensor

from experiments.models import load, training_batches
from experiments.tables import markdown_table
from mmprune3d import files
from mmprune3d.adapters.fusion import fusion_map, parameter_groups, prunable
from mmprune3d.engine.batches import CachedBatches, seeded
from mmprune3d.engine.criteria import batches_needed, modality_gradients
from mmprune3d.pruning.alter_eva import contribution, redundancy
from mmprune3d.pruning.altermoma import AlterMOMAPlan, alter_moma_scores
from mmprune3d.pruning.selection import top_indices
from mmprune3d.pruning.thresholds import keep_masks

TOP = 0.1
"""Share of a group's weights that are called its top ones: those with the highest DeCI."""
SETTINGS: dict[str, dict[str, Any]] = {
    'B = 0': dict(reactivation_steps=0),
    'B = 1': dict(reactivation_steps=1),
    'B = 3': dict(reactivation_steps=3),
    'B = 24': dict(reactivation_steps=24),
    'B = 24, Z on the last batch': dict(reactivation_steps=24, same_eval_batches=False),
    'B = 24, lr = 1e-5': dict(reactivation_steps=24, lr=1e-5),
    'B = 24, SGD': dict(reactivation_steps=24, optimizer='sgd'),
}
"""Name -> settings of the reactivation."""


def plans_of(sparsity: float, eval_batches: int = 4) -> dict[str, AlterMOMAPlan]:
    """`SETTINGS` as plans."""
    return {
        name: AlterMOMAPlan(sparsity=sparsity, eval_batches=eval_batches, **more) for name, more in SETTINGS.items()
    }


def spearman(first: Tensor, second: Tensor) -> float:
    """Rank correlation of two vectors; equal values share the mean of their ranks."""
    return float(spearmanr(first.numpy(), second.numpy()).statistic)


def statistics_of(
    weights: Mapping[str, Tensor], gradients: Any, groups: Mapping[str, str], plan: AlterMOMAPlan
) -> dict[str, dict[str, float]]:
    """Statistics of the scores, by group.

    Args:
        weights: Name -> weights.
        gradients: See `modality_gradients`.
        groups: Name of a weight -> its group.
        plan: AlterMOMA's plan.

    Returns:
        Group -> ``spearman``, rank correlation of DeCI and ReRI (mean over stages); ``top_kept``: of the `TOP` share
        of weights with the highest DeCI, the share that AlterMOMA keeps; ``top_kept_beta0``: the same with beta = 0.
    """
    deci = contribution(weights, gradients.unmasked.values)
    scores = {beta: alter_moma_scores(weights, gradients, groups, alpha=1.0, beta=beta) for beta in (plan.beta, 0.0)}
    masks = {beta: keep_masks(values, plan.sparsity, groups=groups) for beta, values in scores.items()}
    found = {}
    for group in dict.fromkeys(groups[name] for name in weights):
        names = [name for name in weights if groups[name] == group]
        flat = torch.cat([deci[name].flatten() for name in names])
        correlations = []
        for stage in gradients.stages.values():
            if names[0] in stage.before.values:
                values = redundancy(weights, stage.before.values, stage.after.values)
                correlations.append(spearman(flat, torch.cat([values[name].flatten() for name in names])))
        top = torch.zeros_like(flat, dtype=torch.bool)
        top[top_indices(flat, round(TOP * len(flat)))] = True
        kept = {beta: torch.cat([mask[name].flatten() for name in names]) for beta, mask in masks.items()}
        found[group] = {
            'spearman': sum(correlations) / len(correlations),
            'top_kept': float(kept[plan.beta][top].float().mean()),
            'top_kept_beta0': float(kept[0.0][top].float().mean()),
        }
    return found


def score_statistics(config: Config, checkpoint: Path, plans: Mapping[str, AlterMOMAPlan], out: Path) -> dict[str, Any]:
    """`statistics_of` for several settings of the reactivation.

    Args:
        config: Config of the fusion detector, with a training set.
        checkpoint: Its weights.
        plans: Name -> settings.
        out: Folder that ``scores.json`` is written to.
    """
    model = load(config, checkpoint)
    fusion, weights = fusion_map(model), prunable(model)
    groups = parameter_groups(model, fusion)
    most = max(map(batches_needed, plans.values()))
    raw = training_batches(config, most, seed=0)
    result = {}
    for name, plan in plans.items():
        batches = CachedBatches(raw, model.data_preprocessor, plan.seed)
        with seeded(plan.seed):
            model.train()
            gradients = modality_gradients(model, plan, batches, fusion, weights)
        result[name] = statistics_of(weights, gradients, groups, plan)
        result[name]['losses'] = {
            masked: [sum(part) / len(part) for part in (stage.losses[:4], stage.losses[-4:])]
            for masked, stage in gradients.stages.items()
            if stage.losses
        }
    files.write_json(out / 'scores.json', result)
    return result


def statistics_table(result: Mapping[str, Mapping[str, Any]]) -> str:
    """The result of `score_statistics` as Markdown."""
    groups = [name for name in next(iter(result.values())) if name != 'losses']
    titles = ('rank correlation', 'top kept, with beta = 0 (%)')
    heads = ('reactivation', *(f'{group}: {title}' for group in groups for title in titles))
    rows = ((name, *(cell for group in groups for cell in _cells(found[group]))) for name, found in result.items())
    return '\n'.join(markdown_table(heads, rows))


def _cells(found: Mapping[str, float]) -> tuple[str, str]:
    return f'{found["spearman"]:.2f}', f'{100 * found["top_kept"]:.0f}, {100 * found["top_kept_beta0"]:.0f}'
