"""Overlaps of rotated boxes against polygons that are clipped one edge at a time."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mmprune3d.ops.rotated_iou import bev_intersection, rotated_iou_3d

QUARTER = math.pi / 2


def random_boxes(number: int, seed: int, extent: float = 4.0, offset: float = 0.0) -> Tensor:
    unit = torch.rand(number, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    centres, sizes, yaw = (unit[:, :3] - 0.5) * extent + offset, unit[:, 3:6] * 5 + 0.2, (unit[:, 6:] - 0.5) * 8
    return torch.cat((centres, sizes, yaw), dim=1)


def corners(box: list[float]) -> list[complex]:
    """Corners in the complex plane, counter-clockwise."""
    turn = complex(math.cos(box[6]), math.sin(box[6]))
    signs = ((1, 1), (-1, 1), (-1, -1), (1, -1))
    return [complex(*box[:2]) + turn * complex(i * box[3] / 2, j * box[4] / 2) for i, j in signs]


def clip(polygon: list[complex], start: complex, end: complex) -> list[complex]:
    """The part of a polygon that is left of a line (Sutherland and Hodgman)."""
    side = [((end - start).conjugate() * (point - start)).imag for point in polygon]
    kept = []
    for i, point in enumerate(polygon):
        before, side_before = polygon[i - 1], side[i - 1]
        if side[i] * side_before < 0:
            kept.append(before + (point - before) * side_before / (side_before - side[i]))
        if side[i] >= 0:
            kept.append(point)
    return kept


def slow_iou(first: list[float], second: list[float]) -> float:
    polygon, edges = corners(first), corners(second)
    for i in range(4):
        polygon = clip(polygon, edges[i - 1], edges[i])
    area = sum((polygon[i - 1].conjugate() * polygon[i]).imag for i in range(len(polygon))) / 2
    height = min(first[2] + first[5], second[2] + second[5]) - max(first[2], second[2])
    shared = area * max(height, 0)
    return shared / (math.prod(first[3:6]) + math.prod(second[3:6]) - shared)


def slow_table(first: Tensor, second: Tensor) -> Tensor:
    return torch.tensor([[slow_iou(a, b) for b in second.tolist()] for a in first.tolist()])


@pytest.mark.parametrize('offset', [0.0, 50.0, -700.0])
def test_equals_polygon_clipping(offset: float) -> None:
    first, second = random_boxes(40, 0, offset=offset), random_boxes(30, 1, offset=offset)
    expected = slow_table(first, second)
    assert (expected > 0.05).sum() > 100
    assert (expected == 0).any()
    torch.testing.assert_close(rotated_iou_3d(first, second), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(rotated_iou_3d(second, first), expected.T, rtol=0, atol=1e-6)


@pytest.mark.parametrize('jitter', [0.0, 1e-12, 1e-6, 1e-4, 1e-2])
def test_equals_polygon_clipping_where_edges_almost_coincide(jitter: float) -> None:
    boxes = random_boxes(200, 2, offset=30)
    noise = torch.randn(boxes.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    moved = boxes + jitter * noise
    expected = torch.tensor([slow_iou(a, b) for a, b in zip(boxes.tolist(), moved.tolist(), strict=True)])
    torch.testing.assert_close(rotated_iou_3d(boxes, moved).diagonal(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize('turns', [0, 1, 2, 3, 4])
def test_a_box_equals_itself_turned(turns: int) -> None:
    boxes = random_boxes(100, 4)
    turned = boxes.clone()
    turned[:, 6] += turns * QUARTER
    if turns % 2:
        turned[:, 3:5] = boxes[:, [4, 3]]
    torch.testing.assert_close(rotated_iou_3d(boxes, turned).diagonal(), torch.ones(100))


def test_yaw_is_counter_clockwise_from_x() -> None:
    rod = torch.tensor([[0.0, 0, 0, 10, 0.1, 1, math.pi / 6]])
    cube = [0, 0.2, 0.2, 0.2, 0]
    above = torch.tensor([[4 * math.cos(math.pi / 6), 4 * math.sin(math.pi / 6), *cube]])
    below = above * torch.tensor([1.0, -1, 1, 1, 1, 1, 1])
    assert rotated_iou_3d(rod, above) > 0
    assert rotated_iou_3d(rod, below) == 0


def test_known_values() -> None:
    box = torch.tensor([[0.0, 0, 0, 2, 2, 2, 0]])
    others = torch.tensor(
        [
            [0.0, 0, 1, 2, 2, 2, 0],  # one metre higher: 4 of 12
            [1, 0, 0, 2, 2, 2, 0],  # one metre to the side: 4 of 12
            [0, 0, 0.5, 1, 1, 1, 0.3],  # inside: 1 of 8
            [0, 0, 0, 2, 2, 2, math.pi / 4],  # octagon of 8 (sqrt 2 - 1) square metres
            [2, 0, 0, 2, 2, 2, 0],  # touching
            [0, 0, 2, 2, 2, 2, 0],  # on top
            [9, 0, 0, 2, 2, 2, 0],
        ]
    )
    octagon = 8 * (math.sqrt(2) - 1)
    expected = torch.tensor([[1 / 3, 1 / 3, 1 / 8, octagon / (8 - octagon), 0, 0, 0]])
    torch.testing.assert_close(rotated_iou_3d(box, others), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(bev_intersection(box, others)[0, 3], torch.tensor(octagon, dtype=torch.float64))


@pytest.mark.parametrize(
    ('column', 'value'), [(3, 0.0), (4, 0.0), (5, 0.0), (3, -1.0), (0, math.nan), (4, math.inf), (6, math.nan)]
)
def test_boxes_without_volume_overlap_with_nothing(column: int, value: float) -> None:
    good = torch.tensor([[0.0, 0, 0, 2, 2, 2, 0.4]])
    bad = good.clone()
    bad[0, column] = value
    mixed = torch.cat((good, bad))
    torch.testing.assert_close(rotated_iou_3d(mixed, mixed), torch.tensor([[1.0, 0], [0, 0]]))


@pytest.mark.parametrize(('n', 'm'), [(0, 0), (0, 3), (2, 0), (1, 1)])
def test_shapes(n: int, m: int) -> None:
    table = rotated_iou_3d(random_boxes(n, 5), random_boxes(m, 6).float())
    assert table.shape == (n, m)
    assert table.dtype == torch.float32


def test_further_columns_are_ignored_and_missing_ones_refused() -> None:
    boxes = random_boxes(3, 7)
    torch.testing.assert_close(
        rotated_iou_3d(torch.cat((boxes, boxes[:, :2]), 1), boxes), rotated_iou_3d(boxes, boxes), rtol=0, atol=0
    )
    with pytest.raises(ValueError, match='7 or more'):
        rotated_iou_3d(boxes, boxes[:, :5])
