"""Running statistics of batch norm, estimated anew after weights were changed by other means than training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.dist import all_reduce
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmprune3d.layers.preserved import preserved

_STATISTICS = ('running_mean', 'running_var', 'num_batches_tracked')


def has_batch_norm(model: nn.Module) -> bool:
    """Whether the model has a batch norm with running statistics."""
    return any(isinstance(module, _BatchNorm) and module.running_mean is not None for module in model.modules())


@torch.no_grad()
def recalibrate(model: nn.Module, batches: Sequence[Any]) -> int:
    """Replaces running means and variances by their averages over `batches`, on which the model computes its losses.

    A freshly pruned model has activations of another scale; without this, any evaluation before fine-tuning judges the
    statistics rather than the weights. Norms that the model keeps in evaluation mode while it trains stay as they are.
    With several processes, the average goes over all of them. Nothing else of the model changes, and no random numbers
    are consumed.

    Args:
        model: The detector, not wrapped.
        batches: Arguments of the model, batch by batch; at least one.

    Returns:
        The number of norms that were recalibrated.

    Raises:
        ValueError: If the model has no batch norm that trains, or there are no batches.
    """
    with preserved(model):
        model.train()
        norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.training and m.running_mean is not None]
        if not norms or not len(batches):
            raise ValueError(
                f'recalibration: {len(norms)} batch norms train, {len(batches)} batches; one of each is needed'
            )
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the plain average
        for batch in batches:
            model(**batch, mode='loss')
        found = [{name: getattr(norm, name).clone() for name in _STATISTICS} for norm in norms]
    for norm, statistics in zip(norms, found):
        for name, value in statistics.items():
            if value.is_floating_point():
                all_reduce(value, 'mean')
            getattr(norm, name).copy_(value)
    return len(norms)
