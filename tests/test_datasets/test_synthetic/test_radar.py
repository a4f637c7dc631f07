"""Radar detections: files for the devkit, velocities, occlusion."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from nuscenes.utils.data_classes import RadarPointCloud

from mmprune3d.datasets.synthetic.radar import (
    AZIMUTH_NOISE,
    CROSSING,
    LARGEST,
    MOVING,
    ONCOMING,
    RADAR_DTYPE,
    SPEED_NOISE,
    STATIONARY,
    save_radar,
)  # fmt: skip
from mmprune3d.datasets.synthetic.renderer import Renderer
from mmprune3d.datasets.synthetic.rig import RADARS, rotation_matrix, yaw_matrix
from mmprune3d.datasets.synthetic.scene import Snapshot, Town

from .small_town import LIGHT, actor, empty_town, snapshot, walled_town

YAW = 0.7


def detections(
    town: Town, view: Snapshot, channel: str = 'RADAR_FRONT', turns: int = 12
) -> tuple[np.ndarray, np.ndarray]:
    renderer = Renderer(town, LIGHT, (64, 32), seed=4, sensors=('radar',))
    results = [renderer.render(view, index) for index in range(turns)]
    return (
        np.concatenate([result.radars[channel] for result in results]),
        np.concatenate([result.radar_instances[channel] for result in results]),
    )


def driving(velocity: tuple[float, float], speed: float = 6.0) -> Snapshot:
    """A truck 20 m ahead of the car, which drives along `YAW`; velocities along and across that."""
    forward, left = yaw_matrix(YAW)[:2, 0], yaw_matrix(YAW)[:2, 1]
    place, moving = 20 * forward + 3 * left, velocity[0] * forward + velocity[1] * left
    return snapshot(actor(5, 'truck', *place, yaw=YAW, velocity=tuple(moving)), yaw=YAW, speed=speed)


def test_velocities_are_radial_and_compensated() -> None:
    array, owners = detections(empty_town(), driving((-9.0, 2.0)))
    own = array[owners == 5]
    assert len(own) > 20
    sight = np.stack([own['x'], own['y']], axis=1)
    sight /= np.linalg.norm(sight, axis=1, keepdims=True)
    compensated = np.stack([own['vx_comp'], own['vy_comp']], axis=1)
    relative = np.stack([own['vx'], own['vy']], axis=1)
    limit = 4.5 * SPEED_NOISE + 11 * 3 * AZIMUTH_NOISE
    assert np.abs((compensated * sight).sum(axis=1) - sight @ [-9.0, 2.0]).max() < limit
    assert np.abs((relative * sight).sum(axis=1) - sight @ [-15.0, 2.0]).max() < limit
    for vectors in (compensated, relative):
        assert np.abs(vectors[:, 0] * sight[:, 1] - vectors[:, 1] * sight[:, 0]).max() < 1e-4


def test_detections_lie_on_the_actor() -> None:
    view = driving((0.0, 0.0))
    array, owners = detections(empty_town(), view)
    own = array[owners == 5]
    spec = RADARS['RADAR_FRONT']
    local = np.stack([own['x'], own['y'], own['z']], axis=1) @ rotation_matrix(spec.rotation).T + spec.translation
    gap = np.abs(local[:, :2] - [20, 3]) - [7.5 / 2, 2.5 / 2]
    assert gap.max() < 0.8
    assert (own['z'] == 0).all()
    assert (array['dyn_prop'] == STATIONARY).all()


@pytest.mark.parametrize(('velocity', 'kind'), [((8.0, 0.0), MOVING), ((-8.0, 0.0), ONCOMING), ((0.0, 8.0), CROSSING)])
def test_dynamic_property(velocity: tuple[float, float], kind: int) -> None:
    array, owners = detections(empty_town(), driving(velocity))
    assert (array[owners == 5]['dyn_prop'] == kind).all()
    assert (array[owners == -1]['dyn_prop'] == STATIONARY).all()


def test_walls_echo_and_hide() -> None:
    hidden = actor(1, 'car', 40.0, 0.0)
    array, owners = detections(walled_town(15.0), snapshot(hidden))
    assert (owners == -1).all()
    on_wall = np.abs(array['x'] + RADARS['RADAR_FRONT'].translation[0] - 15.0) < 0.6
    assert on_wall.mean() > 0.6


def test_field_of_view_and_number() -> None:
    around = [actor(i, 'car', 15 * np.cos(i), 15 * np.sin(i)) for i in range(6)]
    for channel, spec in RADARS.items():
        array, _ = detections(walled_town(30.0), snapshot(*around), channel, turns=2)
        assert 0 < len(array) <= 2 * LARGEST
        azimuth = np.arctan2(array['y'], array['x'])
        assert np.abs(azimuth).max() < spec.half_fov + 0.25
        assert np.hypot(array['x'], array['y']).max() < spec.max_range + 1


def test_file_loads_with_the_devkit(tmp_path: Path) -> None:
    array, _ = detections(walled_town(15.0), driving((3.0, 0.0)), turns=1)
    path = tmp_path / 'radar.pcd'
    save_radar(array, path)
    loaded = RadarPointCloud.from_file(str(path)).points
    assert loaded.shape == (18, len(array))
    for row, name in enumerate(RADAR_DTYPE.names):
        assert np.allclose(loaded[row], array[name])


def test_empty_and_wrong_arrays(tmp_path: Path) -> None:
    path = tmp_path / 'radar.pcd'
    save_radar(np.zeros(0, RADAR_DTYPE), path)
    assert RadarPointCloud.from_file(str(path)).points.shape == (18, 0)
    with pytest.raises(ValueError, match='RADAR_DTYPE'):
        save_radar(np.zeros((3, 18), np.float32), path)
