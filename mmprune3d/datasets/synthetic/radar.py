"""Radars: sparse detections with radial velocities, and the radar file format of nuScenes."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from .camera_view import Pose
from .rig import RadarSpec, rotation_matrix
from .world import ActorWorld, StaticWorld

_SMALL = ('is_quality_valid', 'ambig_state', 'x_rms', 'y_rms', 'invalid_state', 'pdh0', 'vx_rms', 'vy_rms')

RADAR_DTYPE = np.dtype(
    [(name, '<f4') for name in ('x', 'y', 'z')]
    + [('dyn_prop', 'i1'), ('id', '<i2')]
    + [(name, '<f4') for name in ('rcs', 'vx', 'vy', 'vx_comp', 'vy_comp')]
    + [(name, 'i1') for name in _SMALL]
)
"""The 18 fields of a nuScenes radar point; the bytes of an array of this type are the body of a radar file."""

MOVING, STATIONARY, ONCOMING, CROSSING = 0, 1, 2, 6
"""Values of the field `dyn_prop` and their meaning."""

_ECHOES = {
    'car': (3.0, 10.0), 'truck': (5.0, 17.0), 'bus': (6.0, 18.0), 'trailer': (5.0, 16.0),
    'construction_vehicle': (4.0, 14.0), 'pedestrian': (0.8, -4.0), 'motorcycle': (1.5, 2.0), 'bicycle': (1.0, -1.0),
    'traffic_cone': (0.25, -10.0), 'barrier': (1.2, 1.0),
}  # fmt: skip
"""Class -> (mean number of detections at short range, radar cross-section in dBsm)."""

STATIC_RAYS = 48
CLUTTER = 3.0
LARGEST = 125
RANGE_NOISE, AZIMUTH_NOISE, SPEED_NOISE = 0.12, math.radians(0.4), 0.1


class RadarSensor:
    """One radar; positions are in its own frame with z = 0, velocities along the line of sight.

    Args:
        static: Geometry of the town.
        spec: Specification of the radar.
    """

    def __init__(self, static: StaticWorld, spec: RadarSpec) -> None:
        """Stores the calibration of the radar."""
        self._static, self._spec = static, spec
        self._rotation = rotation_matrix(spec.rotation)

    def scan(
        self, pose: Pose, velocity: tuple[float, float], actors: ActorWorld, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Simulates one measurement.

        Args:
            pose: Pose of the car.
            velocity: Velocity of the car (vx, vy) in the global frame.
            actors: Actors near the car.
            rng: Random generator of the noise.

        Returns:
            Detections, an (N,) array of `RADAR_DTYPE`, and instance ids (N,) int32, -1 for the town and clutter;
            N <= `LARGEST`.
        """
        turn = pose.rotation @ self._rotation
        origin = pose.rotation @ np.asarray(self._spec.translation) + pose.position
        points, speeds, sections, owners = self._targets(turn, origin, actors, rng)
        static = self._echoes(turn, origin, actors, rng)
        points = np.concatenate([points, static])[:LARGEST]
        speeds = np.concatenate([speeds, np.zeros((len(static), 2))])[:LARGEST] @ turn[:2, :2]
        sections = np.concatenate([sections, rng.normal(2.0, 5.0, len(static))])[:LARGEST]
        owners = np.concatenate([owners, np.full(len(static), -1)])[:LARGEST]
        return self._measure(points, speeds, np.asarray(velocity) @ turn[:2, :2], sections, rng), owners.astype(
            np.int32
        )

    def _measure(
        self, points: np.ndarray, speeds: np.ndarray, own: np.ndarray, sections: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        """Detections of (N, 2) points that move over the ground with `speeds` (N, 2), all in the radar frame."""
        count = len(points)
        reach = np.hypot(points[:, 0], points[:, 1]) + rng.normal(0, RANGE_NOISE, count)
        azimuth = np.arctan2(points[:, 1], points[:, 0]) + rng.normal(0, AZIMUTH_NOISE, count)
        sight = np.stack([np.cos(azimuth), np.sin(azimuth)], axis=1)
        over_ground = (speeds * sight).sum(axis=1) + rng.normal(0, SPEED_NOISE, count)
        relative = over_ground - sight @ own
        result = np.zeros(count, RADAR_DTYPE)
        result['x'], result['y'] = (reach[:, None] * sight).T
        result['vx_comp'], result['vy_comp'] = (over_ground[:, None] * sight).T
        result['vx'], result['vy'] = (relative[:, None] * sight).T
        total = np.hypot(speeds[:, 0], speeds[:, 1])
        crossing = np.abs(over_ground) < 0.4 * total
        kind = np.where(crossing, CROSSING, np.where(over_ground < 0, ONCOMING, MOVING))
        result['dyn_prop'] = np.where(total < 0.5, STATIONARY, kind)
        result['id'], result['rcs'] = np.arange(count), np.round(2 * sections) / 2
        for field, value in (
            ('is_quality_valid', 1),
            ('ambig_state', 3),
            ('x_rms', 19),
            ('y_rms', 20),
            ('pdh0', 1),
            ('vx_rms', 16),
            ('vy_rms', 3),
        ):
            result[field] = value
        return result

    def _targets(
        self, turn: np.ndarray, origin: np.ndarray, actors: ActorWorld, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Points (N, 2) on actors, radar frame; their velocities (N, 2), global frame; cross-sections; instances."""
        points, speeds, sections, owners = [np.zeros((0, 2))], [np.zeros((0, 2))], [np.zeros(0)], [np.zeros(0)]
        for index, state in enumerate(actors.states):
            local = (np.asarray(state.center) - origin) @ turn
            reach = math.hypot(local[0], local[1])
            mean, section = _ECHOES[state.actor.label]
            wanted = int(rng.poisson(mean * max(0.2, 1.0 - reach / self._spec.max_range)))
            if wanted == 0 or reach > self._spec.max_range or abs(math.atan2(local[1], local[0])) > self._spec.half_fov:
                continue
            chosen = self._visible(index, origin, actors, wanted, rng)
            points.append(((chosen - origin) @ turn)[:, :2])
            speeds.append(np.repeat([state.velocity], len(chosen), axis=0))
            sections.append(rng.normal(section, 4.0, len(chosen)))
            owners.append(np.full(len(chosen), state.actor.instance))
        return np.concatenate(points), np.concatenate(speeds), np.concatenate(sections), np.concatenate(owners)

    def _visible(
        self, index: int, origin: np.ndarray, actors: ActorWorld, wanted: int, rng: np.random.Generator
    ) -> np.ndarray:
        """Up to `wanted` points (N, 3) on an actor that the radar sees; some echoes pass below other cars."""
        surface = actors.meshes[index].samples @ actors.rotations[index].T + np.asarray(
            actors.states[index].center, np.float32
        )
        directions = (surface - origin).astype(np.float32)
        hits = actors.rays.first_hits(origin, directions, 1.01)
        wall = self._static.rays.first_hits(origin, directions, 0.99).face >= 0
        seen = np.flatnonzero((hits.face >= 0) & (actors.owner[hits.face] == index) & ~wall)
        if len(seen):
            return surface[rng.choice(seen, min(wanted, len(seen)), replace=False)]
        through = not wall.any() and rng.random() < 0.3
        return surface[rng.integers(0, len(surface), 1)] if through else surface[:0]

    def _echoes(self, turn: np.ndarray, origin: np.ndarray, actors: ActorWorld, rng: np.random.Generator) -> np.ndarray:
        """Points (N, 2) in the radar frame on buildings, trees and poles, and random clutter."""
        azimuth = rng.uniform(-self._spec.half_fov, self._spec.half_fov, STATIC_RAYS)
        local = np.stack([np.cos(azimuth), np.sin(azimuth), rng.uniform(0.0, 0.08, STATIC_RAYS)], axis=1)
        directions = (local @ turn.T).astype(np.float32)
        hits = self._static.rays.first_hits(origin, directions, self._spec.max_range)
        seen = hits.face >= 0
        if actors.rays is not None:
            seen &= actors.rays.first_hits(origin, directions, hits.distance).face < 0
        walls = (local * hits.distance[:, None])[seen, :2]
        count = int(rng.poisson(CLUTTER))
        reach, angle = (
            rng.uniform(2, 0.7 * self._spec.max_range, count),
            rng.uniform(-1, 1, count) * self._spec.half_fov,
        )
        return np.concatenate([walls, np.stack([reach * np.cos(angle), reach * np.sin(angle)], axis=1)])


def save_radar(array: np.ndarray, path: str | Path) -> None:
    """Writes detections as the binary `.pcd` that nuScenes uses for radar; an empty array becomes one NaN point.

    The devkit rejects files without points and interprets a NaN in the first point as an empty file.

    Raises:
        ValueError: If the dtype of the array is not `RADAR_DTYPE`.
    """
    if array.dtype != RADAR_DTYPE:
        raise ValueError(f'expected an array of RADAR_DTYPE, got {array.dtype}')
    if len(array) == 0:
        array = np.zeros(1, RADAR_DTYPE)
        array['x'] = np.nan
    kinds = [RADAR_DTYPE[name] for name in RADAR_DTYPE.names]
    header = [
        '# .PCD v0.7 - Point Cloud Data file format',
        'VERSION 0.7',
        'FIELDS ' + ' '.join(RADAR_DTYPE.names),
        'SIZE ' + ' '.join(str(kind.itemsize) for kind in kinds),
        'TYPE ' + ' '.join('F' if kind.kind == 'f' else 'I' for kind in kinds),
        'COUNT ' + ' '.join('1' for _ in kinds),
        f'WIDTH {len(array)}',
        'HEIGHT 1',
        'VIEWPOINT 0 0 0 1 0 0 0',
        f'POINTS {len(array)}',
        'DATA binary',
    ]
    # The devkit expects one byte after the last point, as in its own files.
    Path(path).write_bytes(('\n'.join(header) + '\n').encode('ascii') + array.tobytes() + b'\n')
