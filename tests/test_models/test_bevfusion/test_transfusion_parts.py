"""Box codes, dense targets and suppression of duplicates against slow restatements."""

from __future__ import annotations

import math
from unittest.mock import patch

import pytest
import torch
from mmcv.ops import nms, nms_rotated
from mmdet3d.models.layers import circle_nms
from mmdet3d.models.utils import draw_heatmap_gaussian
from mmdet3d.models.utils import gaussian_radius as slow_radius
from torch import Tensor

from mmprune3d.models.bevfusion import BEVFusion3DBoxCoder
from mmprune3d.models.bevfusion.heatmap_targets import gaussian_radius, heatmap_targets
from mmprune3d.models.bevfusion.transfusion_nms import RADIUS, peaks, suppress
from mmprune3d.ops.rotated_iou import bev_intersection

ORIGIN, CELL = (-8.0, -5.0), (0.5, 0.8)


def boxes_of(number: int, seed: int, beyond: float = 1.0) -> Tensor:
    unit = torch.rand(number, 9, generator=torch.Generator().manual_seed(seed))
    low, size = torch.tensor([-8.0, -5, -2, 0.2, 0.2, 1, -4, -3, -3]), torch.tensor([16.0, 10, 2, 6, 3, 2, 8, 6, 6])
    boxes = unit * size + low
    boxes[:, :2] *= beyond
    return boxes


def coder(code_size: int = 10, **changes: object) -> BEVFusion3DBoxCoder:
    return BEVFusion3DBoxCoder(ORIGIN, 5, (CELL[0] / 5, CELL[1] / 5, 0.2), code_size=code_size, **changes)


def parts_of(codes: Tensor) -> dict[str, Tensor]:
    sizes = {'center': 2, 'height': 1, 'dim': 3, 'rot': 2, 'vel': codes.shape[-1] - 8}
    parts = codes.transpose(-1, -2).split(list(sizes.values()), dim=-2)
    return {name: part for name, part in zip(sizes, parts, strict=True) if part.shape[-2]}


@pytest.mark.parametrize('code_size', [8, 10])
def test_codes_come_back_as_boxes(code_size: int) -> None:
    boxes = torch.stack((boxes_of(30, 0), boxes_of(30, 1)))[..., : code_size - 1]
    boxes[..., 6].clamp_(-3.1, 3.1)
    codes = coder(code_size).encode(boxes)
    assert codes.shape == (2, 30, code_size)
    before = codes.clone()
    torch.testing.assert_close(coder(code_size).decode(parts_of(codes)), boxes, rtol=1e-5, atol=1e-5)
    assert torch.equal(codes, before)


def test_a_code_written_out() -> None:
    box = torch.tensor([[-7.0, -1, 2, math.e, 1, math.e**2, math.pi / 2, 3, 4]])
    torch.testing.assert_close(
        coder().encode(box), torch.tensor([[2.0, 5, 2 + math.e**2 / 2, 1, 0, 2, 1, 0, 3, 4]]), rtol=1e-6, atol=1e-6
    )


def test_filters() -> None:
    boxes = torch.tensor([[0.0, 0, 0], [1, 1, 1], [1.01, 0, 0], [0, 0, -1.01]])
    scores = torch.tensor([0.0, 0.5, 0.6, 0.7])
    limits = [-1, -1, -1, 1, 1, 1]
    assert coder().keep(boxes, scores).tolist() == [True] * 4
    assert coder(score_threshold=0.0).keep(boxes, scores).tolist() == [True] * 4
    assert coder(score_threshold=0.5).keep(boxes, scores).tolist() == [False, False, True, True]
    assert coder(post_center_range=limits).keep(boxes, scores).tolist() == [True, True, False, False]
    both = coder(post_center_range=limits, score_threshold=0.4).keep(boxes, scores)
    assert both.tolist() == [False, True, False, False]


def test_radius_is_that_of_mmdet3d() -> None:
    sizes = torch.rand(500, 2, generator=torch.Generator().manual_seed(0)) * 30 + 0.05
    for overlap in (0.1, 0.5, 0.7):
        expected = torch.stack([slow_radius((length, width), overlap) for length, width in sizes])
        torch.testing.assert_close(gaussian_radius(sizes, overlap), expected, rtol=1e-5, atol=1e-5)


def slow_heatmap(boxes: list[Tensor], labels: list[Tensor], shape: tuple[int, ...], min_radius: int) -> Tensor:
    heatmap = torch.zeros(shape)
    for sample, objects, classes in zip(heatmap, boxes, labels, strict=True):
        for box, label in zip(objects, classes, strict=True):
            length, width = box[3] / CELL[0], box[4] / CELL[1]
            if length > 0 and width > 0:
                radius = max(min_radius, int(slow_radius((width, length), 0.1)))
                x, y = int((box[0] - ORIGIN[0]) / CELL[0]), int((box[1] - ORIGIN[1]) / CELL[1])
                draw_heatmap_gaussian(sample[label], torch.tensor([y, x]), radius)
    return heatmap


@pytest.mark.parametrize('grid', [(32, 13), (13, 32), (7, 7)])
@pytest.mark.parametrize('counts', [(20, 0, 35), (0, 0), (1,)])
@pytest.mark.parametrize('beyond', [1.0, 1.7])
def test_heatmap_is_that_of_mmdet3d(grid: tuple[int, int], counts: tuple[int, ...], beyond: float) -> None:
    boxes = [boxes_of(count, seed, beyond) for seed, count in enumerate(counts)]
    if counts[0] > 2:
        boxes[0][1, 3] = 0.0
    labels = [torch.arange(count) % 4 for count in counts]
    shape = (len(counts), 4, *grid)
    found = heatmap_targets(boxes, labels, shape, ORIGIN, CELL, 0.1, 2)
    torch.testing.assert_close(found, slow_heatmap(boxes, labels, shape, 2), rtol=1e-6, atol=1e-7)


def test_a_peak_is_the_largest_of_its_neighbourhood() -> None:
    heatmap = torch.rand(2, 10, 9, 7, generator=torch.Generator().manual_seed(0))
    found = peaks(heatmap, 3, 'nuScenes')
    for b in range(2):
        for c in range(10):
            for x in range(9):
                for y in range(7):
                    inner = 0 < x < 8 and 0 < y < 6
                    largest = inner and heatmap[b, c, x, y] == heatmap[b, c, x - 1 : x + 2, y - 1 : y + 2].max()
                    expected = heatmap[b, c, x, y] if c in (8, 9) or largest else 0
                    assert found[b, c, x, y] == expected


@pytest.mark.parametrize(('dataset', 'untouched'), [(None, ()), ('Waymo', (1, 2)), ('nuScenes', (8, 9))])
def test_point_like_classes(dataset: str | None, untouched: tuple[int, ...]) -> None:
    heatmap = torch.rand(1, 10, 9, 9, generator=torch.Generator().manual_seed(0)) + 0.1
    found = peaks(heatmap, 5, dataset)
    assert tuple(c for c in range(10) if torch.equal(found[:, c], heatmap[:, c])) == untouched


def test_a_neighbourhood_of_one_cell_changes_nothing() -> None:
    heatmap = torch.rand(1, 3, 5, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(peaks(heatmap, 1, None), heatmap)


def detections(number: int, seed: int, extent: float) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    boxes = torch.rand(number, 9, generator=generator) * torch.tensor([extent, extent, 1, 1, 1, 1, 6, 1, 1]) + 0.3
    return boxes, torch.rand(number, generator=generator), torch.randint(10, (number,), generator=generator)


@pytest.mark.parametrize(
    ('dataset', 'limits'), [('nuScenes', {8: 0.175, 9: 0.175}), ('Waymo', dict.fromkeys(range(3), 0.7))]
)
@pytest.mark.parametrize(('number', 'extent'), [(0, 5.0), (1, 5.0), (200, 5.0), (1500, 300.0)])
def test_circle_suppression_is_that_of_mmdet3d(dataset: str, limits: dict, number: int, extent: float) -> None:
    boxes, scores, labels = detections(number, 0, extent)
    expected = torch.ones(number, dtype=torch.bool)
    for label, limit in limits.items():
        members = (labels == label).nonzero().flatten()
        kept = circle_nms.py_func(torch.cat((boxes[members, :2], scores[members, None]), 1).numpy(), limit)
        expected[members] = False
        expected[members[list(kept)]] = True
    found = suppress(boxes, scores, labels, {'nms_type': 'circle', 'dataset': dataset})
    assert torch.equal(found, expected)
    assert bool(found.all()) == (number <= 1)


@pytest.mark.parametrize('levels', [1, 3])
def test_equal_scores_in_circle_suppression_are_taken_as_mmdet3d_takes_them(levels: int) -> None:
    """Its compiled sort is not that of numpy, and neither is stable."""
    boxes, _, _ = detections(120, 3, 4.0)
    scores = torch.randint(levels, (120,), generator=torch.Generator().manual_seed(0)) / 4 + 0.25
    kept = circle_nms(torch.cat((boxes[:, :2], scores[:, None]), 1).numpy(), 0.7)
    found = suppress(boxes, scores, torch.zeros(120, dtype=torch.int64), {'nms_type': 'circle', 'dataset': 'Waymo'})
    assert found.nonzero().flatten().tolist() == sorted(map(int, kept))
    assert 1 < len(kept) < 83


def test_equal_scores_in_rotated_suppression_leave_the_first() -> None:
    boxes = detections(200, 3, 2.0)[0][:40].repeat(5, 1)  # everything five times
    scores = torch.randint(2, (200,), generator=torch.Generator().manual_seed(0)) / 4 + 0.25
    found = suppress(boxes, scores, torch.full((200,), 8), {'nms_type': 'rotate', 'dataset': 'nuScenes'})
    shared, areas = bev_intersection(boxes, boxes), boxes[:, 3:5].prod(1)
    iou, expected = shared / (areas[:, None] + areas - shared), []
    for i in sorted(range(200), key=lambda i: -scores[i]):
        if all(iou[i, j] < 0.175 for j in expected):
            expected.append(i)
    assert found.nonzero().flatten().tolist() == sorted(expected)
    assert len(expected) > 1


@pytest.mark.parametrize(('limit', 'rotated', 'plain'), [(0.5, [0], [0, 1]), (0.501, [0, 1], [0, 1])])
def test_an_overlap_of_exactly_the_limit(limit: float, rotated: list[int], plain: list[int]) -> None:
    """mmcv 2.1.0 on a CPU: ``nms_rotated`` suppresses at equality, ``nms`` does not; ours follows the former."""
    boxes = torch.tensor([[0.0, 0, 0, 4, 2, 1, 0], [1.0, 0, 0, 2, 2, 1, 0]])  # the second is half of the first
    scores, labels = torch.tensor([0.9, 0.8]), torch.zeros(2, dtype=torch.int64)
    assert nms_rotated(boxes[:, [0, 1, 3, 4, 6]], scores, limit)[1].tolist() == rotated
    corners = torch.cat((boxes[:, :2] - boxes[:, 3:5] / 2, boxes[:, :2] + boxes[:, 3:5] / 2), 1)
    assert nms(corners, scores, limit)[1].tolist() == plain
    with patch.dict(RADIUS, {'Waymo': {0: limit}}):
        found = suppress(boxes, scores, labels, {'nms_type': 'rotate', 'dataset': 'Waymo'})
    assert found.nonzero().flatten().tolist() == rotated


@pytest.mark.parametrize('number', [0, 1, 150])
def test_rotated_suppression(number: int) -> None:
    boxes, scores, labels = detections(number, 1, 3.0)
    expected = torch.ones(number, dtype=torch.bool)
    shared, areas = bev_intersection(boxes, boxes), boxes[:, 3:5].prod(1)
    iou = shared / (areas[:, None] + areas - shared)
    order = scores.argsort(descending=True).tolist()
    for place, i in enumerate(order):
        better = [j for j in order[:place] if labels[j] == labels[i] and expected[j]]
        expected[i] = labels[i] < 8 or all(iou[i, j] <= 0.175 for j in better)
    found = suppress(boxes, scores, labels, {'nms_type': 'rotate', 'dataset': 'nuScenes'})
    assert torch.equal(found, expected)
    assert bool(found.all()) == (number <= 1)
    assert suppress(boxes, scores, labels, {'nms_type': None, 'dataset': 'nuScenes'}).all()


@pytest.mark.parametrize(('setting', 'most'), [('pre_maxsize', 2), ('post_maxsize', 1)])
def test_limits_of_rotated_suppression(setting: str, most: int) -> None:
    boxes, scores, _ = detections(20, 2, 100.0)
    labels = torch.full((20,), 8)
    found = suppress(boxes, scores, labels, {'nms_type': 'rotate', 'dataset': 'nuScenes', setting: most})
    assert found.nonzero().flatten().tolist() == sorted(scores.topk(most).indices.tolist())
