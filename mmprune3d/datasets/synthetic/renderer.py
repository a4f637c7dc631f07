"""The renderer, which simulates all sensors of the car at one time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np

from .camera import CameraSensor
from .camera_view import CameraView, Pose
from .ground import Ground
from .lidar import LidarSensor
from .radar import RadarSensor
from .rig import CAMERAS, RADARS
from .scene import Light, Snapshot, Town
from .shading import Daylight
from .visibility import visible_fractions
from .world import ActorLibrary, ActorWorld, StaticWorld

SENSORS = ('camera', 'lidar', 'radar')

REACH = 130.0
"""Distance in metres from the car up to which actors are sensed."""


FINE_GROUND = 28.0
"""Texel size in metres of the ground near the car, times the image width in pixels."""


@dataclass(frozen=True, eq=False)
class Rendered:
    """Outputs of the sensors, as dictionaries by channel unless stated otherwise; empty for sensors that are off.

    Attributes:
        images: Images (H, W, 3) uint8 RGB.
        instance_maps: Instance id of the actor in each pixel (H, W) int32, -1 elsewhere.
        depths: Depth along the optical axis (H, W) float32 in metres.
        points: LiDAR points (N, 5) float32 x, y, z, intensity (0..255), ring in the LIDAR_TOP frame.
        point_instances: Instance ids of the LiDAR points (N,) int32, -1 for the town.
        radars: Arrays (N,) of `radar.RADAR_DTYPE`, in the frame of each radar.
        radar_instances: Instance ids of the radar points (N,) int32, -1 for the town and clutter.
        visibility: Instance -> fraction (0..1) that all cameras together see; only with cameras.
        lidar_counts: Instance -> number of LiDAR returns, for every actor in reach.
        radar_counts: Instance -> number of radar detections, for every actor in reach.
    """

    images: dict[str, np.ndarray] = field(default_factory=dict)
    instance_maps: dict[str, np.ndarray] = field(default_factory=dict)
    depths: dict[str, np.ndarray] = field(default_factory=dict)
    points: np.ndarray = field(default_factory=lambda: np.zeros((0, 5), np.float32))
    point_instances: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    radars: dict[str, np.ndarray] = field(default_factory=dict)
    radar_instances: dict[str, np.ndarray] = field(default_factory=dict)
    visibility: dict[int, float] = field(default_factory=dict)
    lidar_counts: dict[int, int] = field(default_factory=dict)
    radar_counts: dict[int, int] = field(default_factory=dict)


class Renderer:
    """Renders the snapshots of one scene.

    The result depends only on the arguments of `__init__` and `render`, not on previous calls, threads or processes:
    noise is seeded by (seed, index, sensor).

    Args:
        town: Static objects of the scene.
        light: Light of the scene.
        image_size: Width and height of all images in pixels.
        seed: Seed of sky, ground, exposures and noise.
        sensors: Sensors to prepare, a subset of `SENSORS`.
        supersample: Rays per pixel and axis; 2 gives smoother pictures for four times the cost.

    Raises:
        ValueError: If a sensor is unknown or `supersample` is less than 1.
    """

    def __init__(
        self,
        town: Town,
        light: Light,
        image_size: tuple[int, int],
        seed: int,
        sensors: Sequence[str] = SENSORS,
        supersample: int = 1,
    ) -> None:
        """Builds meshes, and paints ground, facades and sky."""
        self._sensors = _checked(sensors, SENSORS)
        if supersample < 1:
            raise ValueError(f'supersample must be at least 1, got {supersample}')
        self._seed, self._size = seed, image_size
        self._static, self._library = StaticWorld(town), ActorLibrary()
        width, height = image_size[0] * supersample, image_size[1] * supersample
        self._views = {channel: CameraView(spec, width, height) for channel, spec in CAMERAS.items()}
        texel = float(np.clip(FINE_GROUND / width, 0.015, 0.10))
        ground = Ground(town, Daylight.from_light(light), seed, texel)
        self._camera = (
            CameraSensor(self._static, ground, light, self._views, seed) if 'camera' in self._sensors else None
        )
        self._lidar = LidarSensor(self._static, ground.coarse)
        self._radars = {channel: RadarSensor(self._static, spec) for channel, spec in RADARS.items()}

    def render(self, snapshot: Snapshot, index: int, sensors: Sequence[str] | None = None) -> Rendered:
        """Measures one snapshot.

        Args:
            snapshot: State of the world at one time.
            index: Number of the snapshot, >= 0, which seeds the noise; it must differ between snapshots of a scene.
            sensors: Subset of the sensors given at construction; None: all of them.

        Raises:
            ValueError: If a sensor was not prepared, or the car is not on the ground.
        """
        chosen = self._sensors if sensors is None else _checked(sensors, self._sensors)
        if abs(snapshot.ego.position[2]) > 1e-3:
            raise ValueError(f'the car must stand on the ground, got z = {snapshot.ego.position[2]}')
        pose, actors = Pose.from_ego(snapshot.ego), self._library.place(snapshot, REACH)
        result: dict = {}
        if 'camera' in chosen:
            result |= self._render_cameras(pose, actors, index)
            result['visibility'] = visible_fractions(self._views, pose, self._static, actors)
        if 'lidar' in chosen:
            points, owners = self._lidar.scan(pose, actors, self._rng(index, 100))
            result |= {'points': points, 'point_instances': owners, 'lidar_counts': _counts(actors, owners)}
        if 'radar' in chosen:
            result |= self._scan_radars(pose, snapshot, actors, index)
        return Rendered(**result)

    def _rng(self, index: int, stream: int) -> np.random.Generator:
        return np.random.default_rng((self._seed, index, stream))

    def _render_cameras(self, pose: Pose, actors: ActorWorld, index: int) -> dict:
        colors = self._camera.actor_colors(actors)
        images, instances, depths = {}, {}, {}
        for stream, channel in enumerate(self._views):
            picture = self._camera.render(channel, pose, actors, colors, self._rng(index, stream))
            images[channel] = self._shrink(picture.image, cv2.INTER_AREA)
            instances[channel] = self._shrink(picture.instances, cv2.INTER_NEAREST)
            depths[channel] = self._shrink(picture.depth, cv2.INTER_NEAREST)
        return {'images': images, 'instance_maps': instances, 'depths': depths}

    def _shrink(self, image: np.ndarray, interpolation: int) -> np.ndarray:
        if image.shape[1] == self._size[0]:
            return image
        return cv2.resize(image, self._size, interpolation=interpolation)

    def _scan_radars(self, pose: Pose, snapshot: Snapshot, actors: ActorWorld, index: int) -> dict:
        radars, owners = {}, {}
        for stream, (channel, radar) in enumerate(self._radars.items()):
            radars[channel], owners[channel] = radar.scan(
                pose, snapshot.ego.velocity, actors, self._rng(index, 200 + stream)
            )
        counts = _counts(actors, np.concatenate(list(owners.values())))
        return {'radars': radars, 'radar_instances': owners, 'radar_counts': counts}


def _checked(sensors: Sequence[str], valid: Sequence[str]) -> tuple[str, ...]:
    unknown = [name for name in sensors if name not in valid]
    if unknown:
        raise ValueError(f'unknown sensors {unknown}, valid are {list(valid)}')
    return tuple(sensors)


def _counts(actors: ActorWorld, owners: np.ndarray) -> dict[int, int]:
    """Instance -> number of its occurrences in `owners`."""
    ids, numbers = np.unique(owners[owners >= 0], return_counts=True)
    found = dict(zip(ids.tolist(), numbers.tolist()))
    return {state.actor.instance: found.get(state.actor.instance, 0) for state in actors.states}
