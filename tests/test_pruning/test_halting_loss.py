"""Targets and losses of token halting, against loops and the functions of mmdet3d, mmdet and mmcv."""

from __future__ import annotations

from math import cos, exp, floor, log, sin

import pytest
import torch
from mmcv.ops import points_in_boxes_cpu
from mmdet.models.losses import GaussianFocalLoss
from mmdet3d.models.utils import draw_heatmap_gaussian
from mmdet3d.models.utils import gaussian_radius as published_radius
from torch import Tensor

from mmprune3d.pruning import halting_loss
from mmprune3d.pruning.halting_loss import (
    POSITIVES,
    gaussian_radius,
    sparsity_loss,
    token_heatmap,
    uniform_sparsity_loss,
)

VOXEL, RANGE = (0.5, 0.4, 6.0), (-10.0, -8.0, -2.0, 10.0, 8.0, 4.0)
NX, NY = 40, 40


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def boxes_of(number: int, seed: int) -> Tensor:
    """Boxes of cars and pedestrians in all directions, some with centres a little outside the range; 9 columns."""
    low = torch.tensor([-10.5, -8.5, -1, 0.4, 0.4, 1, -4, -3, -3])
    return random(number, 9, seed=seed) * torch.tensor([21.0, 17, 2, 7, 3, 2, 8, 6, 6]) + low


def scene(seed: int = 0) -> tuple[Tensor, list[Tensor]]:
    """Three samples: a third of the cells with 7 boxes, a tenth with none, every cell with 20 that overlap."""
    coords = []
    for b, share in enumerate((0.3, 0.1, 1.0)):
        y, x = (random(NY, NX, seed=seed + b) < share).nonzero().unbind(1)
        coords.append(torch.stack([torch.full_like(y, b), torch.zeros_like(y), y, x], 1))
    return torch.cat(coords), [boxes_of(7, seed), torch.zeros(0, 9), boxes_of(20, seed + 1)]


def heat_slowly(coords: Tensor, boxes: list[Tensor], overlap: float, min_radius: int, positives: str) -> list[float]:
    """One box and one token at a time."""
    heat = [0.0] * len(coords)
    for sample, some in enumerate(boxes):
        for box in some.double():
            x, y, _, length, width, _, yaw = box[:7].tolist()
            size = torch.tensor(width / VOXEL[1]), torch.tensor(length / VOXEL[0])
            sigma = (2 * max(min_radius, int(published_radius(size, overlap))) + 1) / 6
            cx, cy = floor((x - RANGE[0]) / VOXEL[0]), floor((y - RANGE[1]) / VOXEL[1])
            nearest = None
            for row, (b, _, iy, ix) in enumerate(coords.tolist()):
                dx, dy = RANGE[0] + (ix + 0.5) * VOXEL[0] - x, RANGE[1] + (iy + 0.5) * VOXEL[1] - y
                along, across = dx * cos(yaw) + dy * sin(yaw), -dx * sin(yaw) + dy * cos(yaw)
                if b != sample or abs(along) >= length / 2 or abs(across) >= width / 2:
                    continue
                heat[row] = max(heat[row], exp(-((ix - cx) ** 2 + (iy - cy) ** 2) / (2 * sigma**2)))
                nearest = min(nearest or (100, 0), (dx**2 + dy**2, row))
            if nearest and positives == 'nearest_token':
                heat[nearest[1]] = 1.0
    return heat


@pytest.mark.parametrize('positives', POSITIVES)
@pytest.mark.parametrize(('overlap', 'min_radius'), [(0.1, 2), (0.3, 0)])
def test_heatmap_equals_the_slow_obvious_way(positives: str, overlap: float, min_radius: int) -> None:
    coords, boxes = scene()
    found = token_heatmap(coords, boxes, VOXEL, RANGE, overlap, min_radius, positives)
    expected = torch.tensor(heat_slowly(coords, boxes, overlap, min_radius, positives))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert torch.equal(found == 1, expected == 1) and 5 < int((found == 1).sum()) < len(coords) / 10
    assert not found[coords[:, 0] == 1].any()


def test_boxes_in_small_portions_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    coords, boxes = scene()
    whole = token_heatmap(coords, boxes, VOXEL, RANGE, positives='nearest_token')
    monkeypatch.setattr(halting_loss, '_PAIRS', 3 * 1600)
    assert torch.equal(token_heatmap(coords, boxes, VOXEL, RANGE, positives='nearest_token'), whole)


def test_tokens_with_a_value_are_those_inside_boxes_of_mmcv() -> None:
    coords, boxes = scene(seed=4)
    found = token_heatmap(coords, boxes, VOXEL, RANGE)
    for sample, some in enumerate(boxes):
        own = coords[:, 0] == sample
        centres = (coords[own][:, [3, 2]] + 0.5) * torch.tensor(VOXEL[:2]) + torch.tensor(RANGE[:2])
        flat = some[:, :7].clone()
        flat[:, 2], flat[:, 5] = -1.0, 2.0
        points = torch.cat([centres, torch.zeros(len(centres), 1)], 1)[None]
        inside = points_in_boxes_cpu(points, flat[None])[0].any(1) if len(some) else torch.zeros(len(centres)).bool()
        assert torch.equal(found[own] > 0, inside)


def test_heatmap_is_that_of_mmdet3d_inside_the_box() -> None:
    """CenterHead draws the same Gaussian, but on the whole square around the object; here nothing is left out."""
    y, x = torch.ones(NY, NX).nonzero().unbind(1)
    coords = torch.stack([torch.zeros_like(y), torch.zeros_like(y), y, x], 1)
    box = torch.tensor([1.3, -0.7, 0, 4.6, 1.9, 1.6, 0.4])
    radius = max(2, int(published_radius((box[4] / VOXEL[1], box[3] / VOXEL[0]), 0.1)))
    centre = ((box[:2] - torch.tensor(RANGE[:2])) / torch.tensor(VOXEL[:2])).int()
    drawn = draw_heatmap_gaussian(torch.zeros(NY, NX), centre, radius)
    found = token_heatmap(coords, [box[None]], VOXEL, RANGE).view(NY, NX)
    compared = (found > 0) & (drawn > 0)
    torch.testing.assert_close(found[compared], drawn[compared])
    assert compared.sum() > 20 and found[centre[1], centre[0]] == 1


def test_a_hollow_object_has_a_positive_token_only_if_asked() -> None:
    """Tokens on the outline of a car."""
    box = torch.tensor([[0.1, 0.1, 0, 5.0, 3.0, 1.6, 0.0]])
    coords = torch.tensor([[0, 0, 20, 16], [0, 0, 18, 20], [0, 0, 20, 24], [0, 0, 23, 20], [0, 0, 39, 39]])
    literal = token_heatmap(coords, [box], VOXEL, RANGE)
    asked = token_heatmap(coords, [box], VOXEL, RANGE, positives='nearest_token')
    assert 0 < literal[:4].max() < 0.9
    assert asked.tolist() == [*literal[:1].tolist(), 1.0, *literal[2:4].tolist(), 0.0]


@pytest.mark.parametrize('overlap', [0.0, 0.1, 0.5, 0.7, 1.0])
def test_radius_is_the_published_one(overlap: float) -> None:
    size = random(500, 2, seed=2) * 40 + 0.1
    published = torch.stack([published_radius((width, length), overlap) for length, width in size])
    torch.testing.assert_close(gaussian_radius(size, overlap), published, rtol=1e-4, atol=1e-5)


def test_heatmap_without_tokens_or_boxes() -> None:
    coords, boxes = scene()
    assert token_heatmap(coords[:0], boxes, VOXEL, RANGE).shape == (0,)
    assert not token_heatmap(coords, [item[:0] for item in boxes], VOXEL, RANGE).any()
    flat = boxes[0].clone()
    flat[:, 4] = 0
    for positives in POSITIVES:
        assert not token_heatmap(coords, [flat, *boxes[1:2], boxes[2][:0]], VOXEL, RANGE, positives=positives).any()


def test_errors_of_the_heatmap() -> None:
    coords, boxes = scene()
    with pytest.raises(ValueError, match='cell, nearest_token'):
        token_heatmap(coords, boxes, VOXEL, RANGE, positives='centre')
    with pytest.raises(ValueError, match='boxes of 2 samples'):
        token_heatmap(coords, boxes[:2], VOXEL, RANGE)
    with pytest.raises(ValueError, match='7 or more'):
        token_heatmap(coords, [item[:, :5] for item in boxes], VOXEL, RANGE)
    with pytest.raises(ValueError, match=r'overlap=1\.5'):
        token_heatmap(coords, boxes, VOXEL, RANGE, overlap=1.5)


def targets(number: int = 300) -> tuple[Tensor, Tensor]:
    """Scores with both extremes, and a heatmap with zeros, ones and values next to the limit 1 - 1e-4 of a positive."""
    scores, heatmap = random(number, seed=11), random(number, seed=12).sqrt()
    scores[:4] = torch.tensor([0.0, 0.0, 1.0, 1.0])
    heatmap[:6] = torch.tensor([0.0, 1.0, 0.0, 1.0, 1 - 5e-5, 1 - 2e-4])
    heatmap[6:100] = 0
    return scores, heatmap


@pytest.mark.parametrize(('alpha', 'gamma'), [(2.0, 4.0), (1.0, 3.0)])
def test_loss_equals_the_focal_loss_of_mmdet(alpha: float, gamma: float) -> None:
    scores, heatmap = targets()
    snapped = torch.where(heatmap >= 1 - 1e-4, 1.0, heatmap)
    expected = GaussianFocalLoss(alpha=alpha, gamma=gamma, reduction='mean')(scores, snapped)
    torch.testing.assert_close(sparsity_loss(scores, heatmap, alpha, gamma), expected)


def test_loss_equals_equation_19() -> None:
    scores, heatmap = (item[6:] for item in targets())
    heatmap[:3] = 1.0
    total = 0.0
    for s, m in zip(scores.double().tolist(), heatmap.double().tolist(), strict=True):
        total += (1 - s) ** 2 * log(s) if m >= 1 - 1e-4 else (1 - m) ** 4 * s**2 * log(1 - s)
    assert float(sparsity_loss(scores, heatmap)) == pytest.approx(-total / len(scores), rel=1e-5)


def test_gradients_are_finite_at_the_extremes_and_right_elsewhere() -> None:
    scores, heatmap = targets()
    logits = torch.logit(scores.double()).clamp(-200, 200).requires_grad_()
    grad = torch.autograd.grad(sparsity_loss(logits.sigmoid(), heatmap.double()), logits)[0]
    assert grad.isfinite().all()
    grad = torch.autograd.grad(sparsity_loss(scores.requires_grad_(), heatmap), scores)[0]
    assert grad.isfinite().all()
    inner = scores.detach()[4:20].double().clamp(0.05, 0.95).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: sparsity_loss(s, heatmap[4:20].double()), inner)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_scores_in_half_precision(dtype: torch.dtype) -> None:
    scores, heatmap = targets()
    scores = scores.to(dtype)
    torch.testing.assert_close(sparsity_loss(scores, heatmap), sparsity_loss(scores.float(), heatmap))


def test_uniform_loss_is_the_mean_score() -> None:
    scores = random(50).requires_grad_()
    loss = uniform_sparsity_loss(scores)
    torch.testing.assert_close(loss, scores.mean())
    assert torch.equal(torch.autograd.grad(loss, scores)[0], torch.full((50,), 1 / 50))


def test_losses_without_tokens_are_zero_and_have_gradients() -> None:
    scores = torch.zeros(0, requires_grad=True)
    for loss in (sparsity_loss(scores, torch.zeros(0)), uniform_sparsity_loss(scores)):
        assert loss.item() == 0
        assert torch.autograd.grad(loss, scores)[0].shape == (0,)
