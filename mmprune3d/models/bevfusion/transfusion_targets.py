"""Training targets of the TransFusion head.

Boxes are (x, y, z of the bottom face, l, w, h, yaw[, vx, vy]) in metres and radians, maps are [B, classes, x, y].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmprune3d.layers.settings_check import check_labels

from .assigner import BEVFusion3DAssigner, Matching
from .box_coder import BEVFusion3DBoxCoder
from .heatmap_targets import heatmap_targets


@dataclass(frozen=True)
class Targets:
    """Targets of P proposals in each of B samples; the proposals of all supervised decoder layers are concatenated.

    Attributes:
        labels: Class of each proposal [B, P] int64; the number of classes means background.
        label_weights: Weight of each proposal in the classification loss [B, P].
        bbox_targets: Box code of each proposal [B, P, code_size].
        bbox_weights: Weight of each entry of the code [B, P, code_size], 1 for matched proposals, else 0.
        ious: 3D intersection over union with the matched box [B, P], 0 for background.
        num_pos: Number of matched proposals in the batch, over all layers.
        matched_ious: Mean IoU of the matched proposals of a sample, averaged over the samples.
        heatmap: Target of the dense heatmap [B, classes, x, y]: a Gaussian per object, 1 at its centre.
    """

    labels: Tensor
    label_weights: Tensor
    bbox_targets: Tensor
    bbox_weights: Tensor
    ious: Tensor
    num_pos: int
    matched_ious: Tensor
    heatmap: Tensor


class TargetMaker:
    """Computes the training targets of a batch.

    Args:
        train_cfg: ``point_cloud_range`` (lower x, y, z, upper x, y, z in metres), ``voxel_size`` in metres,
            ``out_size_factor`` (voxels per cell), ``gaussian_overlap``, ``min_radius`` in cells, and ``pos_weight``,
            the weight of matched proposals in the classification loss (1 unless positive).
        assigner: Assigner that matches proposals and objects.
        coder: Box coder that encodes the matched boxes.
    """

    def __init__(self, train_cfg: Mapping[str, Any], assigner: BEVFusion3DAssigner, coder: BEVFusion3DBoxCoder) -> None:
        self.point_cloud_range = train_cfg['point_cloud_range']
        self.cell_size = [size * train_cfg['out_size_factor'] for size in train_cfg['voxel_size'][:2]]
        self.gaussian_overlap = train_cfg.get('gaussian_overlap', 0.1)
        self.min_radius = train_cfg.get('min_radius', 2)
        self.pos_weight = train_cfg['pos_weight'] if train_cfg.get('pos_weight', -1) > 0 else 1.0
        self.assigner = assigner
        self.coder = coder

    @torch.no_grad()
    def __call__(
        self, predictions: Mapping[str, Tensor], num_layers: int, gt_boxes: list[Tensor], gt_labels: list[Tensor]
    ) -> Targets:
        """Computes the targets of a head's outputs; every layer is matched separately.

        Args:
            predictions: ``heatmap`` [B, classes, P] (logits) and the inputs of :meth:`BEVFusion3DBoxCoder.decode`, with
                the proposals of `num_layers` layers concatenated; ``dense_heatmap`` [B, classes, x, y].
            num_layers: Number of layers.
            gt_boxes: Ground-truth boxes [N_b, 7 or 9] of each sample; N_b may be 0.
            gt_labels: Labels [N_b] int64 of each sample; objects with a negative label are ignored.

        Raises:
            ValueError: If a label is not a class of the head, or the head predicts velocities and boxes have none.
        """
        self._check_objects(gt_boxes, gt_labels, predictions['heatmap'].shape[1])
        logits = predictions['heatmap'].detach().float().transpose(1, 2)
        boxes = self.coder.decode({key: value.detach().float() for key, value in predictions.items()})
        real = [labels >= 0 for labels in gt_labels]
        gt_boxes = [sample[keep].to(boxes) for sample, keep in zip(gt_boxes, real, strict=True)]
        gt_labels = [labels[keep].to(boxes.device) for labels, keep in zip(gt_labels, real, strict=True)]
        matchings = [
            self._match(*sample, num_layers) for sample in zip(boxes, logits, gt_boxes, gt_labels, strict=True)
        ]
        heatmap = heatmap_targets(
            gt_boxes,
            gt_labels,
            predictions['dense_heatmap'].shape,
            self.point_cloud_range[:2],
            self.cell_size,
            self.gaussian_overlap,
            self.min_radius,
        )
        return self._scatter(matchings, gt_boxes, gt_labels, logits, heatmap)

    def _check_objects(self, gt_boxes: list[Tensor], gt_labels: list[Tensor], num_classes: int) -> None:
        check_labels(gt_labels, num_classes, 'bbox_head.num_classes')
        columns = min((boxes.shape[1] for boxes in gt_boxes if len(boxes)), default=9)
        if self.coder.code_size == 10 and columns < 9:
            raise ValueError(
                f'the head predicts velocities, but the annotated boxes have {columns} columns and no velocities: let '
                'the dataset load velocities (with_velocity=True), or take vel out of common_heads and set '
                'bbox_coder.code_size=8 and eight code_weights'
            )

    def _match(self, boxes: Tensor, logits: Tensor, gt_boxes: Tensor, gt_labels: Tensor, num_layers: int) -> Matching:
        """Matches each layer of one sample and concatenates the results."""
        per_layer = len(boxes) // num_layers
        found = [
            self.assigner.assign(layer_boxes, layer_logits, gt_boxes, gt_labels, self.point_cloud_range)
            for layer_boxes, layer_logits in zip(boxes.split(per_layer), logits.split(per_layer), strict=True)
        ]
        proposal = torch.cat([matching.proposal + i * per_layer for i, matching in enumerate(found)])
        return Matching(proposal, *(torch.cat(items) for items in list(zip(*found))[1:]))

    def _scatter(
        self,
        matchings: list[Matching],
        gt_boxes: list[Tensor],
        gt_labels: list[Tensor],
        logits: Tensor,
        heatmap: Tensor,
    ) -> Targets:
        batch, num_proposals, num_classes = logits.shape
        labels = logits.new_full((batch, num_proposals), num_classes, dtype=torch.long)
        label_weights = logits.new_ones(batch, num_proposals)
        bbox_targets = logits.new_zeros(batch, num_proposals, self.coder.code_size)
        bbox_weights = torch.zeros_like(bbox_targets)
        ious = torch.zeros_like(label_weights)
        for b, (proposal, gt, iou) in enumerate(matchings):
            labels[b, proposal] = gt_labels[b][gt]
            label_weights[b, proposal] = self.pos_weight
            bbox_targets[b, proposal] = self.coder.encode(gt_boxes[b][gt])
            bbox_weights[b, proposal] = 1.0
            ious[b, proposal] = iou.clamp(0, 1)
        counts = [len(matching.proposal) for matching in matchings]
        matched_ious = (ious.sum(1) / ious.new_tensor(counts).clamp(min=1)).mean()
        return Targets(labels, label_weights, bbox_targets, bbox_weights, ious, sum(counts), matched_ious, heatmap)
