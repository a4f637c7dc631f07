"""Losses of query-based 3D heads: matched queries and denoising queries, for every decoder layer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from mmdet.utils import reduce_mean
from mmdet3d.registry import MODELS, TASK_UTILS
from torch import Tensor, nn

from .box_coder import PETR3DBoxCoder
from .denoising import DenoisingBatch

CLS_WEIGHT = 2.0
BOX_WEIGHT = 0.25
DEFAULT_ASSIGNER = {
    'type': 'PETR3DAssigner',
    'cls_cost': {'type': 'mmdet.FocalLossCost', 'weight': CLS_WEIGHT},
    'reg_cost': {'type': 'PETR3DBoxCost', 'weight': BOX_WEIGHT},
}
DEFAULT_LOSS_CLS = {
    'type': 'mmdet.FocalLoss',
    'use_sigmoid': True,
    'gamma': 2.0,
    'alpha': 0.25,
    'loss_weight': CLS_WEIGHT,
}
DEFAULT_LOSS_BBOX = {'type': 'mmdet.L1Loss', 'loss_weight': BOX_WEIGHT}


@dataclass(frozen=True)
class Targets:
    """Targets of the queries of one decoder layer.

    Attributes:
        labels: Class of each query [B, N] int64; the number of classes means background.
        sample: Sample of every query that has a box [M] int64.
        query: Index of that query in its sample [M] int64.
        codes: Box code that is its target [M, S].
    """

    labels: Tensor
    sample: Tensor
    query: Tensor
    codes: Tensor


class SetLoss(nn.Module):
    """Classification and box losses, normalized by the mean number of objects per rank.

    Args:
        num_classes: Number of classes, without background.
        coder: Box coder that encodes the ground truth.
        assigner: Config of the assigner; None for PETR's.
        loss_cls: Config of the classification loss; None for PETR's focal loss.
        loss_bbox: Config of the box loss; None for PETR's L1 loss.

    Raises:
        ValueError: If the classification loss is a softmax loss.
    """

    def __init__(
        self,
        num_classes: int,
        coder: PETR3DBoxCoder,
        assigner: dict | None = None,
        loss_cls: dict | None = None,
        loss_bbox: dict | None = None,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.coder = coder
        self.assigner = TASK_UTILS.build(assigner or DEFAULT_ASSIGNER)
        self.loss_cls = MODELS.build(loss_cls or DEFAULT_LOSS_CLS)
        if not getattr(self.loss_cls, 'use_sigmoid', True):
            raise ValueError('loss_cls has a softmax, but the head has no background class: set use_sigmoid=True')
        self.loss_bbox = MODELS.build(loss_bbox or DEFAULT_LOSS_BBOX)

    def matched(
        self, logits: Tensor, codes: Tensor, labels: list[Tensor], boxes: list[Tensor], code_weights: Tensor
    ) -> dict[str, Tensor]:
        """Computes the losses of the learned queries; every layer is matched separately.

        Args:
            logits: Class logits [L, B, N_q, classes] of the L layers.
            codes: Box codes [L, B, N_q, S].
            labels: Labels of the objects [n] int64 of each sample.
            boxes: Boxes of the objects [n, 7 or 9] of each sample, z at the centre.
            code_weights: Weights of the entries of a box code [S].
        """
        gt_codes = [self.coder.encode(sample) for sample in boxes]
        targets = [self._match(*layer, labels, gt_codes) for layer in zip(logits, codes)]
        return self._over_layers(logits, codes, targets, code_weights, prefix='')

    def denoised(
        self,
        logits: Tensor,
        codes: Tensor,
        labels: list[Tensor],
        boxes: list[Tensor],
        code_weights: Tensor,
        queries: DenoisingBatch,
    ) -> dict[str, Tensor]:
        """Computes the losses of the denoising queries, whose boxes are known; shapes as in :meth:`matched`."""
        offset = torch.tensor([0] + [len(sample) for sample in labels[:-1]], device=logits.device).cumsum(0)
        source = (offset[queries.sample] + queries.box)[queries.is_object]
        sample, query = queries.sample[queries.is_object], queries.query[queries.is_object]
        wanted = torch.full(logits.shape[1:3], self.num_classes, device=logits.device)
        wanted[sample, query] = torch.cat(labels)[source]
        targets = Targets(wanted, sample, query, self.coder.encode(torch.cat(boxes))[source])
        return self._over_layers(logits, codes, [targets] * len(logits), code_weights, prefix='dn_')

    def _match(self, logits: Tensor, codes: Tensor, labels: list[Tensor], gt_codes: list[Tensor]) -> Targets:
        wanted = torch.full(logits.shape[:2], self.num_classes, device=logits.device)
        samples, queries, matched_codes = [], [], []
        for i, (sample_labels, sample_codes) in enumerate(zip(labels, gt_codes, strict=True)):
            query, box = self.assigner.assign(logits[i], codes[i], sample_labels, sample_codes)
            wanted[i, query] = sample_labels[box]
            samples.append(torch.full_like(query, i))
            queries.append(query)
            matched_codes.append(sample_codes[box])
        return Targets(wanted, torch.cat(samples), torch.cat(queries), torch.cat(matched_codes))

    def _over_layers(
        self, logits: Tensor, codes: Tensor, targets: list[Targets], code_weights: Tensor, prefix: str
    ) -> dict[str, Tensor]:
        # The number of objects is the same for all layers: one reduction across ranks.
        num_objects = reduce_mean(logits.new_tensor([float(len(targets[-1].codes))])).clamp(min=1)[0]
        losses = {}
        for i, layer_targets in enumerate(targets):
            name = prefix if i == len(targets) - 1 else f'd{i}.{prefix}'
            losses[f'{name}loss_cls'] = self.loss_cls(
                logits[i].flatten(0, 1), layer_targets.labels.flatten(), avg_factor=num_objects
            )
            losses[f'{name}loss_bbox'] = self._box_loss(codes[i], layer_targets, code_weights, num_objects)
        return losses

    def _box_loss(self, codes: Tensor, targets: Targets, code_weights: Tensor, num_objects: Tensor) -> Tensor:
        usable = torch.isfinite(targets.codes).all(-1)
        predicted = codes[targets.sample[usable], targets.query[usable]]
        weight = code_weights.expand_as(predicted)
        return self.loss_bbox(predicted, targets.codes[usable], weight, avg_factor=num_objects)
