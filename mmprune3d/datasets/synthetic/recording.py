"""Records one scene: renders its instants, writes the sensor files and the map mask, and returns the table records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mmprune3d.files import write_image

from .scene import ActorState, Snapshot, Town
from .simulation import Scene
from .tables import Frame, Observation, SceneRecord, box_record, pose_record, scene_tables
from .vocabulary import SensorRecord, Tables

KEY_INTERVAL = 0.5
ANNOTATION_RANGE = 80.0
"""Distance in metres from the ego vehicle beyond which objects are not annotated."""
MAP_RESOLUTION = 0.1


@dataclass(frozen=True)
class SceneJob:
    """All settings that determine the files of one scene.

    Attributes:
        name: Official nuScenes scene name, such as 'scene-0001'.
        number: Position in the data set; determines the timestamps.
        seed: Data set seed, split (0 train, 1 val) and number within the split.
        samples: Number of keyframes.
        image_size: Width and height in pixels.
        sensors: Modalities, a subset of 'camera', 'lidar', 'radar'.
        sweeps: Number of recordings between two keyframes.
        sweep_sensors: Modalities that record sweeps.
        jpeg_quality: Quality of the images, 1 to 100.
    """

    name: str
    number: int
    seed: tuple[int, int, int]
    samples: int
    image_size: tuple[int, int]
    sensors: tuple[str, ...]
    sweeps: int
    sweep_sensors: tuple[str, ...]
    jpeg_quality: int

    def instants(self) -> list[tuple[float, bool]]:
        """Times in seconds with a flag for keyframes; the last one is a keyframe."""
        parts = self.sweeps + 1
        return [(k * KEY_INTERVAL / parts, k % parts == 0) for k in range((self.samples - 1) * parts + 1)]


def rig_records(image_size: tuple[int, int], modalities: Sequence[str]) -> tuple[SensorRecord, ...]:
    """Records of the sensors of the chosen modalities, as the nuScenes tables need them."""
    from .rig import CAMERAS, LIDAR, RADARS, scaled_intrinsic

    records = []
    for spec in CAMERAS.values() if 'camera' in modalities else ():
        intrinsic = tuple(tuple(float(value) for value in row) for row in scaled_intrinsic(spec, *image_size))
        records.append(SensorRecord(spec.channel, 'camera', spec.translation, spec.rotation, intrinsic, *image_size))
    if 'lidar' in modalities:
        records.append(SensorRecord(LIDAR.channel, 'lidar', LIDAR.translation, LIDAR.rotation, ()))
    for spec in RADARS.values() if 'radar' in modalities else ():
        records.append(SensorRecord(spec.channel, 'radar', spec.translation, spec.rotation, ()))
    return tuple(records)


def record_scene(job: SceneJob, root: Path) -> Tables:
    """Records a scene below `root` and returns its table records.

    Args:
        job: Settings of the scene.
        root: Folder of the data set; the folders of the channels are created when needed.

    Returns:
        Table name -> records of this scene.
    """
    from .renderer import Renderer

    scene = Scene(job.seed, duration=max(job.samples - 1, 1) * KEY_INTERVAL)
    renderer_seed = int(np.random.SeedSequence(job.seed).generate_state(1)[0])
    renderer = Renderer(scene.town, scene.light, image_size=job.image_size, seed=renderer_seed, sensors=job.sensors)
    record = SceneRecord(job.name, job.number, f'synthetic-{job.seed[0]}', _describe(scene))
    sensors, frames = rig_records(job.image_size, job.sensors), []
    for index, (time, is_key) in enumerate(job.instants()):
        snapshot, modalities = scene.snapshot(time), job.sensors if is_key else job.sweep_sensors
        rendered = renderer.render(snapshot, index, sensors=modalities)
        present = [sensor for sensor in sensors if sensor.modality in modalities]
        files = {s.channel: file_name(record, s, time, is_key) for s in present}
        for sensor in present:
            _save(rendered, sensor, root / files[sensor.channel], job.jpeg_quality)
        observations = observe(snapshot, rendered, sensors) if is_key else ()
        frames.append(Frame(time, is_key, snapshot.ego, files, observations))
    map_file = f'maps/{record.token("map")}.png'
    save_map(scene.town, root / map_file)
    return scene_tables(record, sensors, frames, map_file)


def _describe(scene: Scene) -> str:
    first, last = scene.snapshot(0.0).ego, scene.snapshot(scene.duration).ego
    turn = np.rad2deg((last.yaw - first.yaw + np.pi) % (2 * np.pi) - np.pi)
    way = 'straight on' if abs(turn) < 30 else 'turn left' if turn > 0 else 'turn right'
    sky = 'cloudy' if scene.light.clouds > 0.5 else 'sunny'
    return f'Synthetic town, {sky}, {way}'


def file_name(scene: SceneRecord, sensor: SensorRecord, time: float, is_key: bool) -> str:
    """Path of a recording relative to the data root, in the pattern of nuScenes."""
    suffix = {'camera': 'jpg', 'lidar': 'pcd.bin', 'radar': 'pcd'}[sensor.modality]
    folder = 'samples' if is_key else 'sweeps'
    return f'{folder}/{sensor.channel}/{scene.logfile}__{sensor.channel}__{scene.timestamp(time)}.{suffix}'


def _save(rendered: object, sensor: SensorRecord, path: Path, jpeg_quality: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if sensor.modality == 'camera':
        write_image(path, np.ascontiguousarray(rendered.images[sensor.channel][..., ::-1]), jpeg_quality)
    elif sensor.modality == 'lidar':
        from .lidar import save_lidar

        save_lidar(rendered.points, path)
    else:
        from .radar import save_radar

        save_radar(rendered.radars[sensor.channel], path)


def observe(snapshot: Snapshot, rendered: object, sensors: tuple[SensorRecord, ...]) -> tuple[Observation, ...]:
    """Observations of each actor in annotation range; LiDAR points are counted with the devkit's rule."""
    states = [
        s
        for s in snapshot.actors
        if np.hypot(*np.subtract(s.center[:2], snapshot.ego.position[:2])) <= ANNOTATION_RANGE
    ]
    lidar = next((sensor for sensor in sensors if sensor.modality == 'lidar'), None)
    counts = count_points(snapshot, states, rendered.points, lidar) if lidar else [0] * len(states)
    return tuple(
        Observation(state, count, int(rendered.radar_counts.get(key, 0)), float(rendered.visibility.get(key, 0.0)))
        for state, count, key in ((state, count, state.actor.instance) for state, count in zip(states, counts))
    )


def count_points(
    snapshot: Snapshot, states: Sequence[ActorState], points: np.ndarray, lidar: SensorRecord
) -> list[int]:
    """Counts the LiDAR points inside of each box, with the arithmetic of the devkit's `points_in_box`.

    The boxes are transformed from the tables to the sensor frame in the same steps as in `NuScenes.get_sample_data`, so
    that counting again with the devkit gives the same numbers.
    """
    from nuscenes.utils.data_classes import Box
    from nuscenes.utils.geometry_utils import points_in_box
    from pyquaternion import Quaternion

    pose, counts = pose_record(snapshot.ego), []
    steps = [
        (record[0], Quaternion(record[1]).inverse)
        for record in ((pose['translation'], pose['rotation']), (lidar.translation, lidar.rotation))
    ]
    xyz = np.asarray(points, np.float32)[:, :3].T
    xyz = xyz[:, np.argsort(xyz[0], kind='stable')]
    for state in states:
        entry = box_record(state)
        center, reach = np.array(entry['translation']), float(np.linalg.norm(entry['size']))
        for translation, inverse in steps:
            center = inverse.rotation_matrix @ (center - translation)
        first, last = np.searchsorted(xyz[0], (center[0] - reach, center[0] + reach))
        close = xyz[:, first:last]
        close = close[:, np.abs(close[1] - center[1]) < reach]
        if not close.shape[1]:
            counts.append(0)
            continue
        box = Box(entry['translation'], entry['size'], Quaternion(entry['rotation']))
        for translation, inverse in steps:
            box.translate(-np.array(translation))
            box.rotate(inverse)
        counts.append(int(points_in_box(box, close).sum()))
    return counts


def save_map(town: Town, path: Path) -> None:
    """Writes the mask of streets and pavements for the devkit's `MapMask`: 0.1 m per pixel, the top row first."""
    import cv2

    width, height = (int(np.ceil(value / MAP_RESOLUTION)) for value in town.extent[2:])
    mask = np.zeros((height, width), np.uint8)
    for road in town.roads:
        start, end = np.array(road.start), np.array(road.end)
        forward = (end - start) / np.linalg.norm(end - start)
        side = (road.width / 2 + road.pavement) * np.array([-forward[1], forward[0]])
        corners = np.stack([start + side, end + side, end - side, start - side]) / MAP_RESOLUTION
        corners[:, 1] = height - corners[:, 1]
        cv2.fillPoly(mask, [np.round(corners).astype(np.int32)], 255)
    write_image(path, mask)
