"""Matching and its costs against trying all possibilities."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
from mmdet3d.registry import TASK_UTILS
from mmengine.registry import init_default_scope
from torch import Tensor

from mmprune3d.models.bevfusion import BEVFusion3DAssigner, BEVFusion3DBEVL1Cost, BEVFusion3DIoUCost
from mmprune3d.models.bevfusion.assigner import Matching
from mmprune3d.ops.rotated_iou import rotated_iou_3d

RANGE = [-8.0, -4.0, -5.0, 8.0, 12.0, 3.0]
CLASSES = 3


def assigner(**changes: dict) -> BEVFusion3DAssigner:
    init_default_scope('mmdet3d')
    return TASK_UTILS.build(
        {
            'type': 'BEVFusion3DAssigner',
            'cls_cost': {'type': 'mmdet.FocalLossCost', 'weight': 0.15},
            'reg_cost': {'type': 'BEVFusion3DBEVL1Cost', 'weight': 0.25},
            'iou_cost': {'type': 'BEVFusion3DIoUCost', 'weight': 0.25},
            **changes,
        }
    )


def sample(proposals: int, objects: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def boxes(number: int) -> Tensor:
        unit = torch.rand(number, 9, generator=generator)
        return unit * torch.tensor([8.0, 8, 1, 4, 4, 2, 3, 1, 1]) + torch.tensor([-4.0, 0, 0, 1, 1, 1, 0, 0, 0])

    logits = torch.randn(proposals, CLASSES, generator=generator)
    return boxes(proposals), logits, boxes(objects), torch.randint(CLASSES, (objects,), generator=generator)


def slow_cost(boxes: Tensor, logits: Tensor, gt_boxes: Tensor, gt_labels: Tensor) -> Tensor:
    """The official weights, written out pair by pair."""
    p = logits.sigmoid()
    cost, iou = torch.zeros(len(boxes), len(gt_boxes)), rotated_iou_3d(boxes, gt_boxes)
    for i in range(len(boxes)):
        for j in range(len(gt_boxes)):
            q = p[i, gt_labels[j]]
            positive, negative = -q.log() * 0.25 * (1 - q) ** 2, -(1 - q).log() * 0.75 * q**2
            distance = (boxes[i, :2] - gt_boxes[j, :2]).abs() / torch.tensor([16.0, 16.0])
            cost[i, j] = 0.15 * (positive - negative) + 0.25 * distance.sum() - 0.25 * iou[i, j]
    return cost


@pytest.mark.parametrize(('proposals', 'objects'), [(1, 1), (5, 1), (5, 4), (5, 5), (3, 5)])
@pytest.mark.parametrize('seed', range(4))
def test_no_other_matching_costs_less(proposals: int, objects: int, seed: int) -> None:
    boxes, logits, gt_boxes, gt_labels = sample(proposals, objects, seed)
    found = assigner().assign(boxes, logits, gt_boxes, gt_labels, RANGE)
    cost = slow_cost(boxes, logits, gt_boxes, gt_labels)
    pairs = min(proposals, objects)
    assert len(found.proposal.unique()) == len(found.gt.unique()) == pairs
    assert found.proposal.tolist() == sorted(found.proposal.tolist())
    wide = cost if proposals >= objects else cost.T
    best = min(float(wide[list(rows), range(pairs)].sum()) for rows in permutations(range(len(wide)), pairs))
    assert float(cost[found.proposal, found.gt].sum()) == pytest.approx(best, abs=1e-5)
    torch.testing.assert_close(found.iou, rotated_iou_3d(boxes, gt_boxes)[found.proposal, found.gt])


def test_every_cost_decides() -> None:
    """With one cost alone, the proposal wins that is best in its terms."""
    gt_boxes, gt_labels = torch.tensor([[0.0, 0, 0, 4, 2, 2, 0]]), torch.tensor([1])
    boxes = torch.tensor([[0.0, 0, 0, 0.5, 0.5, 0.5, 0], [0.5, 0, 0, 4, 2, 2, 0], [5, 5, 0, 4, 2, 2, 0]])
    logits = torch.tensor([[0.0, -3, 0], [0, -3, 0], [0, 3, 0]])
    for winner, alone in enumerate(('reg_cost', 'iou_cost', 'cls_cost')):
        silent = assigner()
        for cost in {'reg_cost', 'iou_cost', 'cls_cost'} - {alone}:
            getattr(silent, cost).weight = 0.0
        assert silent.assign(boxes, logits, gt_boxes, gt_labels, RANGE).proposal.tolist() == [winner]


@pytest.mark.parametrize('proposals', [0, 1, 4])
def test_a_sample_without_objects(proposals: int) -> None:
    found = assigner().assign(*sample(proposals, 0), RANGE)
    assert isinstance(found, Matching)
    assert [len(item) for item in found] == [0, 0, 0]
    assert found.proposal.dtype == found.gt.dtype == torch.int64


def test_proposals_that_are_not_finite_lose() -> None:
    boxes, logits, gt_boxes, gt_labels = sample(4, 3)
    boxes[1, 3] = float('inf')
    boxes[1, 0] = float('nan')
    assert assigner().assign(boxes, logits, gt_boxes, gt_labels, RANGE).proposal.tolist() == [0, 2, 3]


def test_an_overlap_of_mmdet3d_can_be_had() -> None:
    batch = sample(6, 4)
    own = assigner().assign(*batch, RANGE)
    other = assigner(iou_calculator={'type': 'BboxOverlaps3D', 'coordinate': 'lidar'}).assign(*batch, RANGE)
    assert (own.proposal.tolist(), own.gt.tolist()) == (other.proposal.tolist(), other.gt.tolist())
    torch.testing.assert_close(own.iou, other.iou, rtol=0, atol=1e-5)
    assert own.iou.max() > 0


def test_costs() -> None:
    boxes, gt_boxes = torch.tensor([[0.0, 0], [8, 12]]), torch.tensor([[-8.0, -4]])
    cost = BEVFusion3DBEVL1Cost(weight=2.0)(boxes, gt_boxes, RANGE)
    torch.testing.assert_close(cost, 2 * torch.tensor([[8 / 16 + 4 / 16], [2.0]]))
    torch.testing.assert_close(BEVFusion3DIoUCost(weight=0.5)(torch.tensor([[0.0, 1]])), torch.tensor([[0.0, -0.5]]))
