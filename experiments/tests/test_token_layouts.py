"""Layouts of tokens for benchmarks: which pillars points occupy, and which tokens halt last."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from experiments.halting import token_layouts
from experiments.halting.token_layouts import (
    NUSCENES,
    WAYMO,
    Grid,
    TokenLayout,
    occupied,
    priority,
    real_layout,
    rendered_layout,
)
from tests.real_data import each_frame, frame_folder

SMALL = Grid((-8.0, -4.0, -2.0, 8.0, 4.0, 4.0), 0.5)


def layout_with(*boxes: tuple[float, ...], grid: Grid = SMALL) -> TokenLayout:
    coords = torch.zeros(1, 4, dtype=torch.int64)
    return TokenLayout(torch.zeros(1, 5), coords, grid, torch.tensor(boxes).reshape(-1, 7), 'test')


@pytest.fixture(scope='module')
def rendered() -> TokenLayout:
    return rendered_layout(3000, seed=1)


def test_pillars_up_to_the_last_row_and_column() -> None:
    assert WAYMO.shape == (468, 468)
    assert SMALL.shape == (32, 16)
    below = 74.8799
    points = torch.tensor(
        [
            [below, below, 0],
            [-74.88, -74.88, 0],
            [-74.88, -74.88, 1],
            [0.01, -74.8, 0],
            [0.01, -75.0, 0],
            [74.88, 0, 0],
            [0, 0, 4],
        ]
    )
    inside, coords = occupied(points, WAYMO)
    assert coords.tolist() == [[0, 0, 0, 0], [0, 0, 0, 234], [0, 0, 467, 467]]
    assert torch.equal(inside, points[:4])


def test_a_rendered_scan_has_the_tokens_asked_for(rendered: TokenLayout) -> None:
    assert 3000 <= len(rendered.coords) < 6000
    cells = rendered.coords[:, 2] * 468 + rendered.coords[:, 3]
    assert (cells.diff() > 0).all()
    assert int(cells.min()) >= 0
    assert int(rendered.coords.max()) < 468
    assert torch.equal(occupied(rendered.points, WAYMO)[1], rendered.coords)
    assert 0 < float(rendered.points[:, 3].max()) <= 1
    ground = rendered.points[:, 2].abs() < 0.1
    assert ground.float().mean() > 0.3


def test_boxes_of_a_rendered_scan_are_where_its_points_stand_up(rendered: TokenLayout) -> None:
    standing = rendered.points[rendered.points[:, 2] > 0.2]
    hit, misplaced = 0, 0
    for box in rendered.boxes:
        turned = box * torch.tensor([-1, 1, 1, 1, 1, 1, 1])
        hit += int(inside(standing, box))
        misplaced += int(inside(standing, turned))
    assert len(rendered.boxes) > 20
    assert hit > 0.5 * len(rendered.boxes)
    assert misplaced < 0.7 * hit


def inside(points: torch.Tensor, box: torch.Tensor) -> bool:
    """Whether one point is in the box."""
    x, y = points[:, 0] - box[0], points[:, 1] - box[1]
    along, across = x * box[6].cos() + y * box[6].sin(), y * box[6].cos() - x * box[6].sin()
    found = (along.abs() < box[3] / 2) & (across.abs() < box[4] / 2) & ((points[:, 2] - box[2]).abs() < box[5] / 2)
    return bool(found.any())


def test_rendering_is_repeatable(rendered: TokenLayout) -> None:
    token_layouts._surroundings.cache_clear()
    again = rendered_layout(3000, seed=1)
    assert torch.equal(again.points, rendered.points)
    assert torch.equal(again.boxes, rendered.boxes)


def test_more_pillars_than_a_scan_can_reach_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_layouts, 'MOST_BEAMS', 8)
    with pytest.raises(ValueError, match=r'8 beams reach .* of 99999 pillars'):
        rendered_layout(99999, seed=1)


def test_a_real_frame_comes_from_its_file(tmp_path: Path) -> None:
    points = np.array([[1.0, -2.0, 0.5, 51.0, 7.0], [1.1, -2.0, 0.5, 255.0, 7.0], [900.0, 0, 0, 0, 0]], np.float32)
    points.tofile(tmp_path / 'frame.bin')
    layout = real_layout(tmp_path / 'frame.bin', 5)
    assert torch.allclose(layout.points, torch.tensor([[1.0, -2, 0.5, 0.2, 0], [1.1, -2, 0.5, 1, 0]]))
    assert layout.coords.tolist() == [[0, 0, 153, 163]]
    assert layout.boxes.shape == (0, 7)
    assert layout.origin == 'file frame.bin'
    with pytest.raises(ValueError, match='15 numbers are no points of 4'):
        real_layout(tmp_path / 'frame.bin', 4)
    with pytest.raises(ValueError, match='no point in the area'):
        real_layout(tmp_path / 'frame.bin', 5, Grid((10, 10, 0, 20, 20, 1), 1))


@pytest.mark.parametrize('name', each_frame())
def test_the_real_nuscenes_frames(name: str, tmp_path: Path) -> None:
    """As many pillars as cells of a histogram have points; a point on a border may fall on either side."""
    (file,) = frame_folder(name, tmp_path).glob('*LIDAR_TOP*')
    layout = real_layout(file)
    assert layout.grid is NUSCENES
    x, y, z = np.fromfile(file, np.float32).reshape(-1, 5)[:, :3].T.astype(float)
    inside = (z >= -5) & (z < 3)
    counts, *_ = np.histogram2d(x[inside], y[inside], bins=320, range=[[-51.2, 51.2]] * 2)
    assert len(layout.coords) == pytest.approx((counts > 0).sum(), abs=3) and len(layout.coords) > 4000


def test_tokens_near_objects_come_first() -> None:
    boxes = ((1.0, 0.5, 0, 4.0, 2.0, 1.5, 0.7), (-6.0, -2.0, 0, 1.0, 1.0, 1.0, 0.0))
    scores = priority(layout_with(*boxes), 'objects')
    assert scores.shape == (16, 32)
    assert 0 < float(scores.min()) < float(scores.max()) == 1
    for row, column in ((0, 0), (8, 17), (8, 18), (9, 25), (15, 31), (4, 4)):
        x, y = -8 + 0.5 * (column + 0.5), -4 + 0.5 * (row + 0.5)
        nearest = min(distance_by_sampling(x, y, box) for box in boxes)
        assert 1 / float(scores[row, column]) - 1 == pytest.approx(nearest, abs=0.05)


def distance_by_sampling(x: float, y: float, box: tuple[float, ...]) -> float:
    """Distance to the nearest of many points of the box."""
    along, across = np.meshgrid(np.linspace(-0.5, 0.5, 201) * box[3], np.linspace(-0.5, 0.5, 201) * box[4])
    cos, sin = math.cos(box[6]), math.sin(box[6])
    away = np.hypot(box[0] + along * cos - across * sin - x, box[1] + along * sin + across * cos - y)
    return float(away.min())


def test_scattered_tokens_are_random_and_repeatable() -> None:
    layout = layout_with()
    scores = priority(layout, 'scattered', seed=3)
    assert torch.equal(scores, priority(layout, 'scattered', seed=3))
    assert not torch.equal(scores, priority(layout, 'scattered', seed=4))
    assert 0 < float(scores.min()) < float(scores.max()) <= 1


def test_priorities_that_cannot_be_had() -> None:
    with pytest.raises(ValueError, match="no priority 'nearest'; valid are objects, scattered"):
        priority(layout_with(), 'nearest')
    with pytest.raises(ValueError, match='needs boxes'):
        priority(layout_with(), 'objects')
