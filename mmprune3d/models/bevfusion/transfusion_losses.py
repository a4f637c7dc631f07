"""Losses of the TransFusion head: dense heatmap, classification and box regression."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from .transfusion_targets import Targets

CODE_PARTS = ('center', 'height', 'dim', 'rot', 'vel')
"""Outputs that make up a box code, in the order of the code; the last is optional."""


def heatmap_loss(logits: Tensor, target: Tensor, loss: nn.Module) -> Tensor:
    """Computes the loss of the dense heatmap [B, classes, x, y], divided by the number of cells whose target is 1."""
    num_objects = max(int(target.eq(1).sum()), 1)
    return loss(logits.float().sigmoid().clamp(1e-4, 1 - 1e-4), target, avg_factor=num_objects)


def layer_losses(
    predictions: Mapping[str, Tensor],
    targets: Targets,
    num_layers: int,
    loss_cls: nn.Module,
    loss_bbox: nn.Module,
    code_weights: Sequence[float] | None,
) -> dict[str, Tensor]:
    """Computes ``layer_{i}_loss_cls`` and ``layer_{i}_loss_bbox`` of every decoder layer; i is -1 for the last.

    As in the published code, all are divided by the number of matched proposals of all layers in this process.

    Args:
        predictions: ``heatmap`` [B, classes, P] and the parts of the box codes [B, ., P]; P is layers times proposals.
        targets: Targets of the same P proposals.
        num_layers: Number of layers.
        loss_cls: Loss of the class logits.
        loss_bbox: Loss of the box codes.
        code_weights: Weight of every entry of the box code; None: all 1.
    """
    logits = predictions['heatmap'].float().transpose(1, 2)
    codes = torch.cat([predictions[part] for part in CODE_PARTS if part in predictions], dim=1)
    codes, num_pos = codes.float().transpose(1, 2), max(targets.num_pos, 1)
    weights = targets.bbox_weights * codes.new_tensor(code_weights or [1.0])
    per_layer = logits.shape[1] // num_layers
    losses = {}
    for i in range(num_layers):
        name = f'layer_{-1 if i == num_layers - 1 else i}'
        of = slice(i * per_layer, (i + 1) * per_layer)
        flat = logits[:, of].flatten(0, 1), targets.labels[:, of].flatten(), targets.label_weights[:, of].flatten()
        losses[f'{name}_loss_cls'] = loss_cls(*flat, avg_factor=num_pos)
        losses[f'{name}_loss_bbox'] = loss_bbox(
            codes[:, of], targets.bbox_targets[:, of], weights[:, of], avg_factor=num_pos
        )
    return losses
