"""One-to-one matching of TransFusion's proposals and ground-truth boxes.

Boxes are (x, y, z of the bottom face, l, w, h, yaw, ...) in metres and radians.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from mmdet3d.registry import TASK_UTILS
from mmengine.structures import InstanceData
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from mmprune3d.ops.rotated_iou import rotated_iou_3d

UNUSABLE = 100.0
"""Cost that replaces a value that is not finite; far above any real cost."""


class Matching(NamedTuple):
    """Pairs of proposals and ground-truth boxes.

    Attributes:
        proposal: Index of each matched proposal [K] int64, ascending.
        gt: Index of the box that each of them is matched with [K] int64.
        iou: 3D intersection over union of each pair [K] float32.
    """

    proposal: Tensor
    gt: Tensor
    iou: Tensor


@TASK_UTILS.register_module()
class BEVFusion3DBEVL1Cost:
    """Match cost: L1 distance of the centres in bird's-eye view, relative to the size of the range.

    Args:
        weight: Weight in the total cost.
    """

    def __init__(self, weight: float = 1.0) -> None:
        self.weight = weight

    def __call__(self, boxes: Tensor, gt_boxes: Tensor, point_cloud_range: Sequence[float]) -> Tensor:
        """Computes costs [P, N] of boxes [P, 7+] and [N, 7+]; the range is lower x, y, z, upper x, y, z in metres."""
        limits = boxes.new_tensor(point_cloud_range)
        extent = limits[3:5] - limits[:2]
        centres, gt_centres = ((item[:, :2] - limits[:2]) / extent for item in (boxes, gt_boxes))
        return self.weight * torch.cdist(centres, gt_centres, p=1)


@TASK_UTILS.register_module()
class BEVFusion3DIoUCost:
    """Match cost: the negative 3D intersection over union.

    Args:
        weight: Weight in the total cost.
    """

    def __init__(self, weight: float = 1.0) -> None:
        self.weight = weight

    def __call__(self, iou: Tensor) -> Tensor:
        """Computes the costs from intersections over union of any shape; the result has the same shape."""
        return -self.weight * iou


@TASK_UTILS.register_module()
class BEVFusion3DAssigner:
    """Matches every ground-truth box with one proposal at the lowest total cost (Hungarian algorithm).

    Args:
        cls_cost: Config of a match cost of mmdet, such as ``dict(type='mmdet.FocalLossCost', weight=0.15)``.
        reg_cost: Config of a cost of box pairs, such as :class:`BEVFusion3DBEVL1Cost`.
        iou_cost: Config of a cost of IoUs, such as :class:`BEVFusion3DIoUCost`.
        iou_calculator: Config of a calculator of intersections over union [P, N] of boxes, such as
            ``dict(type='BboxOverlaps3D', coordinate='lidar')``; None takes
            :func:`~mmprune3d.ops.rotated_iou.rotated_iou_3d`, which also handles boxes without a volume.
    """

    def __init__(self, cls_cost: dict, reg_cost: dict, iou_cost: dict, iou_calculator: dict | None = None) -> None:
        self.cls_cost = TASK_UTILS.build(cls_cost)
        self.reg_cost = TASK_UTILS.build(reg_cost)
        self.iou_cost = TASK_UTILS.build(iou_cost)
        self.iou_of = TASK_UTILS.build(iou_calculator) if iou_calculator else rotated_iou_3d

    @torch.no_grad()
    def assign(
        self, boxes: Tensor, logits: Tensor, gt_boxes: Tensor, gt_labels: Tensor, point_cloud_range: Sequence[float]
    ) -> Matching:
        """Matches the proposals and objects of one sample.

        Args:
            boxes: Boxes of the proposals [P, 7+].
            logits: Class logits of the proposals [P, classes].
            gt_boxes: Ground-truth boxes [N, 7+].
            gt_labels: Labels of the ground-truth boxes [N] int64.
            point_cloud_range: Lower x, y, z, upper x, y, z in metres.

        Returns:
            The min(P, N) matched pairs.
        """
        if not len(gt_boxes):
            none = gt_labels.new_zeros(0, dtype=torch.long)
            return Matching(none, none, boxes.new_zeros(0))
        # Velocities and further columns after the seventh are not used for matching.
        boxes, gt_boxes = boxes[:, :7], gt_boxes[:, :7]
        iou = self.iou_of(boxes, gt_boxes)
        cost = self.cls_cost(InstanceData(scores=logits), InstanceData(labels=gt_labels))
        cost = cost + self.reg_cost(boxes, gt_boxes, point_cloud_range) + self.iou_cost(iou)
        cost = torch.nan_to_num(cost, nan=UNUSABLE, posinf=UNUSABLE, neginf=-UNUSABLE)
        proposal, gt = (torch.from_numpy(index).to(boxes.device) for index in linear_sum_assignment(cost.cpu().numpy()))
        return Matching(proposal, gt, iou[proposal, gt])
