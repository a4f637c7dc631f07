"""LiDAR returns lie where the geometry says, and files load with the devkit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from nuscenes.utils.data_classes import LidarPointCloud

from mmprune3d.datasets.synthetic.lidar import save_lidar
from mmprune3d.datasets.synthetic.renderer import Rendered, Renderer
from mmprune3d.datasets.synthetic.rig import LIDAR, rotation_matrix, yaw_matrix
from mmprune3d.datasets.synthetic.scene import ActorState, Snapshot, Town

from .small_town import LIGHT, actor, empty_town, snapshot, walled_town


def scan(town: Town, view: Snapshot, index: int = 0) -> Rendered:
    return Renderer(town, LIGHT, (64, 32), seed=4, sensors=('lidar',)).render(view, index)


def to_global(points: np.ndarray, view: Snapshot) -> np.ndarray:
    ego = points[:, :3] @ rotation_matrix(LIDAR.rotation).T + LIDAR.translation
    return ego @ yaw_matrix(view.ego.yaw).T + view.ego.position


def outside(points: np.ndarray, state: ActorState) -> np.ndarray:
    """Metres by which points lie outside of a box; 0 inside."""
    local = (points - state.center) @ yaw_matrix(state.yaw)
    width, length, height = state.actor.size
    return np.maximum(np.abs(local) - np.array([length, width, height]) / 2, 0).max(axis=1)


@pytest.mark.parametrize('label', ['car', 'bus', 'pedestrian', 'motorcycle', 'barrier', 'traffic_cone'])
def test_returns_of_an_actor_lie_in_its_box(label: str) -> None:
    state = actor(3, label, 7.0, 5.0, yaw=0.8)
    view = snapshot(state, yaw=0.4, at=(1.0, -2.0))
    rendered = scan(empty_town(), view)
    returns = to_global(rendered.points[rendered.point_instances == 3], view)
    gap = outside(returns, state)
    assert len(returns) == rendered.lidar_counts[3] > 8
    assert gap.max() < 4 * LIDAR.range_noise and np.quantile(gap, 0.99) < 3 * LIDAR.range_noise
    assert (gap == 0).mean() > 0.75


def test_boxes_hold_few_returns_of_the_ground() -> None:
    state = actor(3, 'car', 8.0, 3.0)
    rendered = scan(empty_town(), snapshot(state))
    inside = outside(to_global(rendered.points, snapshot()), state) == 0
    assert (rendered.point_instances[inside] == 3).mean() > 0.9


def test_ground_wall_and_rings() -> None:
    rendered = scan(walled_town(18.0), snapshot())
    points, rings = rendered.points, rendered.points[:, 4].astype(int)
    distance = np.linalg.norm(points[:, :3], axis=1)
    elevation = np.arcsin(points[:, 2] / distance)
    assert np.allclose(elevation, np.array(LIDAR.elevations)[rings], atol=1e-4)
    assert set(rings) == set(range(32))
    ego = to_global(points, snapshot())
    assert (rendered.point_instances == -1).all()
    low = rings < 10
    assert abs(ego[low, 2].mean()) < 0.005 and ego[low, 2].std() < 2 * LIDAR.range_noise
    level = (rings == 23) & (points[:, 1] > 0) & (np.abs(points[:, 0]) < 5)
    assert level.sum() > 50
    assert ego[level, 0].mean() == pytest.approx(18.0, abs=0.01)
    assert 0.01 < ego[level, 0].std() < 0.03


def test_far_and_dark_things_return_less() -> None:
    near = scan(empty_town(), snapshot(actor(0, 'truck', 20.0, 0.0))).lidar_counts[0]
    far = scan(empty_town(), snapshot(actor(0, 'truck', 60.0, 0.0))).lidar_counts[0]
    assert near > 4 * far > 0
    rendered = scan(empty_town(), snapshot())
    assert np.linalg.norm(rendered.points[:, :3], axis=1).max() < 80  # grazing ground beyond gives nothing back


def test_intensity_depends_on_material() -> None:
    rendered = scan(empty_town(), snapshot(actor(0, 'barrier', 6.0, 1.0), actor(1, 'pedestrian', 6.0, -2.0)))
    strength = [rendered.points[rendered.point_instances == instance, 3] for instance in (0, 1)]
    assert strength[0].max() > 2 * strength[1].max() > 0
    assert rendered.points[:, 3].min() >= 0 and rendered.points[:, 3].max() <= 255


def test_noise_differs_between_snapshots() -> None:
    first, second = (scan(empty_town(), snapshot(), index) for index in (0, 1))
    assert first.points.shape != second.points.shape or not np.array_equal(first.points, second.points)


def test_file_loads_with_the_devkit(tmp_path: Path) -> None:
    points = scan(empty_town(), snapshot()).points
    path = tmp_path / 'scan.pcd.bin'
    save_lidar(points, path)
    assert np.array_equal(LidarPointCloud.from_file(str(path)).points, points[:, :4].T)
    assert path.stat().st_size == 20 * len(points)
    with pytest.raises(ValueError, match=r'\(N, 5\)'):
        save_lidar(points[:, :4], path)
