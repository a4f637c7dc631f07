"""One-to-one matching of queries and ground-truth boxes (DETR's Hungarian matching, in 3D)."""

from __future__ import annotations

import torch
from mmdet3d.registry import TASK_UTILS
from mmengine.structures import InstanceData
from scipy.optimize import linear_sum_assignment
from torch import Tensor

UNUSABLE = 100.0
"""Cost that replaces a value that is not finite; far above any real cost."""


@TASK_UTILS.register_module()
class PETR3DBoxCost:
    """Match cost: L1 distance of box codes.

    Args:
        weight: Weight in the total cost; equal to the weight of the L1 loss.
        code_size: Number of leading entries that count; 8 leaves out the velocity, the least accurate part.
    """

    def __init__(self, weight: float = 0.25, code_size: int = 8) -> None:
        self.weight = weight
        self.code_size = code_size

    def __call__(self, codes: Tensor, gt_codes: Tensor) -> Tensor:
        """Computes the costs [N_q, N_gt] of codes [N_q, S] and [N_gt, S]."""
        return self.weight * torch.cdist(codes[:, : self.code_size], gt_codes[:, : self.code_size], p=1)


@TASK_UTILS.register_module()
class PETR3DAssigner:
    """Matches every ground-truth box with one query at the lowest total cost (Hungarian algorithm).

    Args:
        cls_cost: Config of a match cost of mmdet, such as ``dict(type='mmdet.FocalLossCost', weight=2.0)``.
        reg_cost: Config of a cost of box codes, such as ``dict(type='PETR3DBoxCost', weight=0.25)``.
    """

    def __init__(self, cls_cost: dict, reg_cost: dict) -> None:
        self.cls_cost = TASK_UTILS.build(cls_cost)
        self.reg_cost = TASK_UTILS.build(reg_cost)

    @torch.no_grad()
    def costs(self, logits: Tensor, codes: Tensor, gt_labels: Tensor, gt_codes: Tensor) -> Tensor:
        """Computes the costs [N_q, N_gt] of one sample; the arguments are those of `assign`."""
        cost = self.cls_cost(InstanceData(scores=logits.float()), InstanceData(labels=gt_labels))
        cost = cost + self.reg_cost(codes.float(), gt_codes)
        return torch.nan_to_num(cost, nan=UNUSABLE, posinf=UNUSABLE, neginf=-UNUSABLE)

    def assign(self, logits: Tensor, codes: Tensor, gt_labels: Tensor, gt_codes: Tensor) -> tuple[Tensor, Tensor]:
        """Matches the queries and objects of one sample.

        Args:
            logits: Class logits of the queries [N_q, classes].
            codes: Box codes of the queries [N_q, S].
            gt_labels: Labels of the objects [N_gt] int64.
            gt_codes: Box codes of the objects [N_gt, S].

        Returns:
            Indices of the matched queries and of their boxes, both [min(N_q, N_gt)] int64.
        """
        cost = self.costs(logits, codes, gt_labels, gt_codes)
        queries, boxes = linear_sum_assignment(cost.cpu().numpy())
        return gt_labels.new_tensor(queries), gt_labels.new_tensor(boxes)
