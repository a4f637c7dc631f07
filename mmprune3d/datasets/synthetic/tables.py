"""The records that one scene adds to the thirteen tables of the nuScenes v1.0 format."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from datetime import datetime, timezone

import numpy as np

from .scene import CATEGORIES, ActorState, EgoState
from .vocabulary import Record, SensorRecord, Tables, make_token

EPOCH = 1_533_000_000_000_000
"""Timestamp (microseconds) of the first scene; each scene has its own 100 seconds."""


@dataclass(frozen=True)
class Observation:
    """An actor at a keyframe and its visibility to the sensors; `visibility` is the visible fraction of its pixels."""

    state: ActorState
    lidar_points: int
    radar_points: int
    visibility: float

    @property
    def seen(self) -> bool:
        """Returns whether any sensor saw the actor."""
        return self.lidar_points + self.radar_points > 0 or self.visibility > 0.0


@dataclass(frozen=True)
class Frame:
    """One instant of a scene: file name per recorded channel, and the observations if it is a keyframe."""

    time: float
    is_key: bool
    ego: EgoState
    files: dict[str, str]
    observations: tuple[Observation, ...] = ()


@dataclass(frozen=True)
class SceneRecord:
    """Name and number of a scene, and the values from which all of its tokens are made."""

    name: str
    number: int
    scope: str
    description: str

    @property
    def logfile(self) -> str:
        """Name of the drive, the first part of all file names."""
        return f'synthetic-{self.name}'

    def timestamp(self, time: float) -> int:
        """Timestamp in microseconds of an instant of the scene."""
        return EPOCH + self.number * 100_000_000 + round(time * 1e6)

    def token(self, *parts: object) -> str:
        """A token that depends only on the data set's seed, the scene and `parts`."""
        return make_token(self.scope, self.name, *parts)


def yaw_rotation(yaw: float) -> list[float]:
    """Quaternion (w, x, y, z) of a rotation by `yaw` radians about z."""
    return [round(float(np.cos(yaw / 2)), 12), 0.0, 0.0, round(float(np.sin(yaw / 2)), 12)]


def box_record(state: ActorState) -> Record:
    """Translation, size and rotation of an actor in the format of an annotation."""
    center = [round(value, 3) for value in state.center]
    return {'translation': center, 'size': list(state.actor.size), 'rotation': yaw_rotation(state.yaw)}


def pose_record(ego: EgoState) -> Record:
    """Translation and rotation of the ego vehicle in the format of the table of poses."""
    return {'rotation': yaw_rotation(ego.yaw), 'translation': [round(value, 6) for value in ego.position]}


def visibility_token(fraction: float) -> str:
    """Token of the visibility level ('1'..'4') of a visible fraction."""
    return str(1 + sum(fraction > bound for bound in (0.4, 0.6, 0.8)))


def scene_tables(scene: SceneRecord, sensors: tuple[SensorRecord, ...], frames: list[Frame], map_file: str) -> Tables:
    """Builds the table records of one scene.

    Args:
        scene: Name, number and seed of the scene.
        sensors: Sensors that recorded it.
        frames: Instants of the scene in order of time; the first and the last one are keyframes.
        map_file: File name of the map mask.

    Returns:
        Table name -> records.
    """
    keys = [frame for frame in frames if frame.is_key]
    samples = _chain(
        [
            {'token': scene.token('sample', k), 'timestamp': scene.timestamp(f.time), 'scene_token': scene.token()}
            for k, f in enumerate(keys)
        ]
    )
    log = {'token': scene.token('log'), 'logfile': scene.logfile, 'vehicle': 'synthetic', 'location': 'synthetic-town'}
    log['date_captured'] = datetime.fromtimestamp(scene.timestamp(0.0) / 1e6, timezone.utc).strftime('%Y-%m-%d')
    tables = {
        'log': [log],
        'map': [
            {
                'token': scene.token('map'),
                'category': 'semantic_prior',
                'filename': map_file,
                'log_tokens': [log['token']],
            }
        ],
        'scene': [_scene_row(scene, samples)],
        'sample': samples,
        'calibrated_sensor': [_calibration(scene, sensor) for sensor in sensors],
    }
    return tables | _sensor_tables(scene, sensors, frames) | _annotation_tables(scene, keys)


def _scene_row(scene: SceneRecord, samples: list[Record]) -> Record:
    return {
        'token': scene.token(),
        'log_token': scene.token('log'),
        'nbr_samples': len(samples),
        'name': scene.name,
        'first_sample_token': samples[0]['token'],
        'last_sample_token': samples[-1]['token'],
        'description': scene.description,
    }


def _calibration(scene: SceneRecord, sensor: SensorRecord) -> Record:
    return {
        'token': scene.token('calibration', sensor.channel),
        'sensor_token': make_token('sensor', sensor.channel),
        'translation': list(sensor.translation),
        'rotation': list(sensor.rotation),
        'camera_intrinsic': [list(row) for row in sensor.intrinsic],
    }


def _chain(records: list[Record]) -> list[Record]:
    """Links each record to its neighbours by `prev` and `next`."""
    tokens = ['', *(record['token'] for record in records), '']
    for record, before, after in zip(records, tokens, tokens[2:]):
        record.update(prev=before, next=after)
    return records


def _sensor_tables(scene: SceneRecord, sensors: tuple[SensorRecord, ...], frames: list[Frame]) -> Tables:
    """Records of sample data and ego poses; data between keyframes belong to the following sample."""
    data, poses = [], []
    for sensor in sensors:
        rows, sample = [], 0
        for frame in frames:
            if sensor.channel in frame.files:
                rows.append(_data_row(scene, sensor, frame, scene.token('sample', sample)))
                poses.append({'token': rows[-1]['token'], 'timestamp': rows[-1]['timestamp'], **pose_record(frame.ego)})
            sample += frame.is_key
        data += _chain(rows)
    return {'sample_data': data, 'ego_pose': poses}


def _data_row(scene: SceneRecord, sensor: SensorRecord, frame: Frame, sample: str) -> Record:
    stamp = scene.timestamp(frame.time)
    token = scene.token('data', sensor.channel, stamp)
    return {
        'token': token,
        'sample_token': sample,
        'ego_pose_token': token,
        'timestamp': stamp,
        'is_key_frame': frame.is_key,
        'calibrated_sensor_token': scene.token('calibration', sensor.channel),
        'filename': frame.files[sensor.channel],
        'fileformat': 'jpg' if sensor.modality == 'camera' else 'pcd',
        'height': sensor.height,
        'width': sensor.width,
    }


def _annotation_tables(scene: SceneRecord, keys: list[Frame]) -> Tables:
    """Records of annotations and instances; an object is annotated from the first to the last keyframe with a view."""
    sightings: dict[int, list[tuple[int, Observation]]] = defaultdict(list)
    for k, frame in enumerate(keys):
        for observation in frame.observations:
            sightings[observation.state.actor.instance].append((k, observation))
    annotations, instances = [], []
    for number in sorted(sightings):
        seen = [k for k, observation in sightings[number] if observation.seen]
        if seen:
            kept = [(k, observation) for k, observation in sightings[number] if seen[0] <= k <= seen[-1]]
            rows = _chain([_annotation_row(scene, k, observation) for k, observation in kept])
            instances.append(_instance_row(scene, kept[0][1], rows))
            annotations += rows
    return {'sample_annotation': annotations, 'instance': instances}


def _annotation_row(scene: SceneRecord, sample: int, observation: Observation) -> Record:
    state = observation.state
    return {
        'token': scene.token('annotation', state.actor.instance, sample),
        'sample_token': scene.token('sample', sample),
        'instance_token': scene.token('instance', state.actor.instance),
        'visibility_token': visibility_token(observation.visibility),
        'attribute_tokens': [make_token('attribute', state.attribute)] if state.attribute else [],
        **box_record(state),
        'num_lidar_pts': observation.lidar_points,
        'num_radar_pts': observation.radar_points,
    }


def _instance_row(scene: SceneRecord, observation: Observation, rows: list[Record]) -> Record:
    actor = observation.state.actor
    return {
        'token': scene.token('instance', actor.instance),
        'category_token': make_token('category', CATEGORIES[actor.label]),
        'nbr_annotations': len(rows),
        'first_annotation_token': rows[0]['token'],
        'last_annotation_token': rows[-1]['token'],
    }
