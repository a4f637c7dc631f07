"""Losses of CMT: every task and decoder layer is matched alone; denoising queries have known boxes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from mmdet.utils import reduce_mean
from mmdet3d.registry import MODELS, TASK_UTILS
from torch import Tensor, nn

from mmprune3d.models.petr.denoising import DenoisingBatch
from mmprune3d.models.petr.losses import DEFAULT_ASSIGNER, DEFAULT_LOSS_BBOX, DEFAULT_LOSS_CLS

from .box_coder import box_codes, normalize_bbox
from .task_heads import CLASS_HEAD

BACKGROUND_SHARE = 0.1
"""Share of the unmatched queries in the normalization of the classification loss."""


class CmtLoss(nn.Module):
    """Classification and box losses of all tasks, for every decoder layer.

    Args:
        class_counts: Number of classes of every task; global labels count through the tasks.
        loss_cls: Config of the classification loss; None for the focal loss of PETR.
        loss_bbox: Config of the box loss; None for the L1 loss of PETR.
        assigner: Config of the assigner; None for PETR's. It gets box codes times `code_weights`.
    """

    def __init__(
        self,
        class_counts: Sequence[int],
        loss_cls: dict | None = None,
        loss_bbox: dict | None = None,
        assigner: dict | None = None,
    ) -> None:
        super().__init__()
        self.class_counts = list(class_counts)
        self.loss_cls = MODELS.build(loss_cls or DEFAULT_LOSS_CLS)
        self.loss_bbox = MODELS.build(loss_bbox or DEFAULT_LOSS_BBOX)
        self.assigner = TASK_UTILS.build(assigner or DEFAULT_ASSIGNER)

    def task_labels(self, labels: Tensor) -> list[Tensor]:
        """Labels of every task for global labels [n]; its number of classes stands for all other labels."""
        found, first = [], 0
        for count in self.class_counts:
            inside = (labels >= first) & (labels < first + count)
            found.append(torch.where(inside, labels - first, count))
            first += count
        return found

    def matched(
        self, tasks: Sequence[Mapping[str, Tensor]], labels: list[Tensor], boxes: list[Tensor], code_weights: Tensor
    ) -> dict[str, Tensor]:
        """Computes the losses of the learned queries, summed over tasks.

        Args:
            tasks: Outputs of every task, name -> [L, B, N_q, outputs].
            labels: Global labels of the objects [n] int64 of each sample.
            boxes: Boxes of the objects [n, 7 or 9] of each sample, z at the centre.
            code_weights: Weights of the entries of a box code [S].
        """
        truth = [(self.task_labels(sample), normalize_bbox(box)) for sample, box in zip(labels, boxes, strict=True)]
        layers = range(len(tasks[0][CLASS_HEAD]))
        sums = [
            [self._matched_task(task, index, layer, truth, code_weights) for index, task in enumerate(tasks)]
            for layer in layers
        ]
        return by_layer(sums, '')

    def _matched_task(
        self, task: Mapping[str, Tensor], index: int, layer: int, truth: list, code_weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        logits, codes = task[CLASS_HEAD][layer], box_codes(task)[layer]
        background = self.class_counts[index]
        wanted = torch.full(logits.shape[:2], background, device=logits.device)
        predicted, targets = [], []
        for i, (labels, gt_codes) in enumerate(truth):
            own = labels[index] != background
            weighted = (codes[i] * code_weights, gt_codes[own] * code_weights)
            query, box = self.assigner.assign(logits[i], weighted[0], labels[index][own], weighted[1])
            wanted[i, query] = labels[index][own][box]
            predicted.append(codes[i, query])
            targets.append(gt_codes[own][box])
        found = torch.cat(targets)
        # Local numbers, as in official CMT: they are not averaged over ranks.
        positive, negative = len(found), wanted.numel() - len(found)
        average = max(positive + BACKGROUND_SHARE * negative, 1)
        loss_cls = self.loss_cls(logits.flatten(0, 1), wanted.flatten(), avg_factor=average)
        return loss_cls, self._box_loss(torch.cat(predicted), found, code_weights, max(positive, 1))

    def denoised(
        self,
        tasks: Sequence[Mapping[str, Tensor]],
        labels: list[Tensor],
        boxes: list[Tensor],
        code_weights: Tensor,
        queries: DenoisingBatch,
        split: float,
    ) -> dict[str, Tensor]:
        """Computes the losses of the denoising queries; shapes as in :meth:`matched`.

        Args:
            tasks: Outputs of every task for the denoising queries.
            labels: Global labels of the objects of each sample.
            boxes: Boxes of the objects of each sample.
            code_weights: Weights of the entries of a box code [S].
            queries: The denoising queries.
            split: Limit of the noise beyond which the target class is background; it scales the class loss.
        """
        offset = torch.tensor([0] + [len(sample) for sample in labels[:-1]], device=code_weights.device).cumsum(0)
        source = offset[queries.sample] + queries.box
        raw = torch.cat(labels)[source]
        targets = normalize_bbox(torch.cat(boxes))[source]
        place = (queries.sample, queries.query)
        number = len(raw)
        average = max(number * math.pi / 6 * split**3, 1)
        reduced = float(reduce_mean(code_weights.new_tensor([float(number)])).clamp(min=1))
        sums: list[list[tuple[Tensor, Tensor]]] = [[] for _ in tasks[0][CLASS_HEAD]]
        for task, own in zip(tasks, self.task_labels(raw), strict=True):
            count = task[CLASS_HEAD].shape[-1]
            wanted = torch.where(queries.is_object, own, count)
            inside = own != count  # by the box that a query was made from, even if its noise makes it background
            for losses, logits, codes in zip(sums, task[CLASS_HEAD], box_codes(task)):
                loss_cls = self.loss_cls(logits[place], wanted, avg_factor=average)
                loss_bbox = self._box_loss(codes[place][inside], targets[inside], code_weights, reduced)
                losses.append((loss_cls, loss_bbox))
        return by_layer(sums, 'dn_')

    def _box_loss(self, codes: Tensor, targets: Tensor, code_weights: Tensor, average: float) -> Tensor:
        usable = torch.isfinite(targets).all(-1)
        weight = code_weights.expand_as(targets)[usable]
        return self.loss_bbox(codes[usable], targets[usable], weight, avg_factor=average)


def by_layer(sums: list[list[tuple[Tensor, Tensor]]], prefix: str) -> dict[str, Tensor]:
    """Sums the losses of the tasks of each layer and names them: the last layer without, others with ``d0.`` ..."""
    losses = {}
    for layer, pairs in enumerate(sums):
        name = prefix if layer == len(sums) - 1 else f'd{layer}.{prefix}'
        losses[f'{name}loss_cls'] = torch.stack([pair[0] for pair in pairs]).sum()
        losses[f'{name}loss_bbox'] = torch.stack([pair[1] for pair in pairs]).sum()
    return losses
