"""Statistics of batch norm, estimated anew for weights that changed at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.dist import all_reduce
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def has_batch_norm(model: nn.Module) -> bool:
    """Whether there is anything to recalibrate."""
    return any(isinstance(module, _BatchNorm) and module.running_mean is not None for module in model.modules())


@torch.no_grad()
def recalibrate(model: nn.Module, batches: Sequence[Any]) -> int:
    """Replaces running means and variances by their averages over `batches`, in which the model computes its losses.

    A freshly pruned model has activations of another scale; without this, any evaluation before fine-tuning judges the
    statistics rather than the weights. Norms that the model keeps in evaluation mode while it trains stay as they are.
    With several processes, the average goes over all of them.

    Args:
        model: Not wrapped; its modes are kept.
        batches: As arguments of the model, at least one.

    Returns:
        How many norms were recalibrated.

    Raises:
        ValueError: If the model has none, or there are no batches.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.train()
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.training and m.running_mean is not None]
    if not norms or not len(batches):
        raise ValueError(
            f'recalibration: {len(norms)} batch norms train, {len(batches)} batches; one of each is needed'
        )
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain average
    for batch in batches:
        model(**batch, mode='loss')
    for norm, momentum in zip(norms, momenta):
        norm.momentum = momentum
        all_reduce(norm.running_mean, 'mean')
        all_reduce(norm.running_var, 'mean')
    for module, training in modes:
        module.training = training
    return len(norms)
