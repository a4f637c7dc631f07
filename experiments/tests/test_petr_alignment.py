from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from experiments.petr.alignment import NEAR, REACH, align, alignment_loss, cell_targets, random_points
from mmprune3d.ops.cameras import as_4x4
from tests.test_models.test_petr.small import CAMERAS, HEIGHT, PC_RANGE, WIDTH, build, cameras, head_config

CANVAS, CELLS = (HEIGHT, WIDTH), (HEIGHT // 8, WIDTH // 8)


def projections(batch: int) -> Tensor:
    cam2img, lidar2cam = cameras()
    one = np.stack([as_4x4(inner) @ outer for inner, outer in zip(cam2img, lidar2cam)])
    return torch.as_tensor(one, dtype=torch.float32).expand(batch, -1, -1, -1)


def one_point(point: Tensor, matrices: Tensor) -> list[float]:
    """The target of one point, cell by cell."""
    weights = []
    for matrix in matrices:
        u, v, depth = (matrix @ torch.cat([point, torch.ones(1)]))[:3].tolist()
        column, row = u / max(depth, NEAR) / 8, v / max(depth, NEAR) / 8
        visible = depth > NEAR and 0 <= column < CELLS[1] and 0 <= row < CELLS[0]
        for r in range(CELLS[0]):
            for c in range(CELLS[1]):
                squared = (column - c - 0.5) ** 2 + (row - r - 0.5) ** 2
                weights.append(math.exp(-squared / 2) if visible and squared < REACH**2 else 0.0)
    total = sum(weights)
    return [weight / total if total else 0.0 for weight in weights]


def test_targets_equal_those_computed_cell_by_cell() -> None:
    torch.manual_seed(0)
    points, matrices = random_points(2, 12, PC_RANGE), projections(2)
    expected = torch.tensor([[one_point(point, m) for point in sample] for sample, m in zip(points, matrices)])
    found = cell_targets(points, matrices, CANVAS, CELLS)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    seen = found.sum(-1) > 0
    assert seen.any() and not seen.all()


def test_alignment_learns_where_points_are_seen() -> None:
    head = build(head_config())
    memory = torch.randn(3, CAMERAS, 32, *CELLS)
    before = {name: value.clone() for name, value in head.state_dict().items()}
    losses = align(head, projections(3), memory, CANVAS, steps=60, lr=3e-3, batch=1, count=50, report=100)
    torch.manual_seed(1)
    points = random_points(3, 200, PC_RANGE)
    after = alignment_loss(head, points, projections(3), memory, CANVAS)
    assert after < losses[0] - 0.5
    changed = {name for name, value in head.state_dict().items() if not torch.equal(value, before[name])}
    trained = ('query_embedding', 'position_encoder', 'adapt_pos3d', 'transformer.decoder.layers')
    assert changed and all(name.startswith(trained) for name in changed)
    assert not any('attentions.0' in name or 'ffns' in name or 'norms' in name for name in changed)
