"""The vocabulary of nuScenes: names of tables, categories, attributes and visibility levels, and their tables."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

Record = dict[str, object]
Tables = dict[str, list[Record]]

VERSION = 'v1.0-trainval'
TABLE_NAMES = (
    'attribute', 'calibrated_sensor', 'category', 'ego_pose', 'instance', 'log', 'map', 'sample', 'sample_annotation',
    'sample_data', 'scene', 'sensor', 'visibility',
)  # fmt: skip
ALL_CATEGORIES = (
    'human.pedestrian.adult', 'human.pedestrian.child', 'human.pedestrian.wheelchair', 'human.pedestrian.stroller',
    'human.pedestrian.personal_mobility', 'human.pedestrian.police_officer', 'human.pedestrian.construction_worker',
    'animal', 'vehicle.car', 'vehicle.motorcycle', 'vehicle.bicycle', 'vehicle.bus.bendy', 'vehicle.bus.rigid',
    'vehicle.truck', 'vehicle.construction', 'vehicle.emergency.ambulance', 'vehicle.emergency.police',
    'vehicle.trailer', 'movable_object.barrier', 'movable_object.trafficcone', 'movable_object.pushable_pullable',
    'movable_object.debris', 'static_object.bicycle_rack',
)  # fmt: skip
ATTRIBUTES = (
    'vehicle.moving', 'vehicle.stopped', 'vehicle.parked', 'cycle.with_rider', 'cycle.without_rider',
    'pedestrian.sitting_lying_down', 'pedestrian.standing', 'pedestrian.moving',
)  # fmt: skip
VISIBILITY_LEVELS = ('v0-40', 'v40-60', 'v60-80', 'v80-100')


@dataclass(frozen=True)
class SensorRecord:
    """A sensor in the format of the tables: pose sensor -> ego; `intrinsic` is empty unless it is a camera."""

    channel: str
    modality: str
    translation: tuple[float, ...]
    rotation: tuple[float, ...]
    intrinsic: tuple[tuple[float, ...], ...]
    width: int = 0
    height: int = 0


def make_token(*parts: object) -> str:
    """A token of 32 hexadecimal digits that depends only on `parts`."""
    return hashlib.blake2b('/'.join(map(str, parts)).encode(), digest_size=16).hexdigest()


def shared_tables(sensors: tuple[SensorRecord, ...]) -> Tables:
    """Builds the tables that are the same for all scenes."""
    return {
        'category': [
            {'token': make_token('category', name), 'name': name, 'description': name} for name in ALL_CATEGORIES
        ],
        'attribute': [
            {'token': make_token('attribute', name), 'name': name, 'description': name} for name in ATTRIBUTES
        ],
        'visibility': [
            {'token': str(k + 1), 'level': level, 'description': f'visibility of the whole object is {level[1:]}%'}
            for k, level in enumerate(VISIBILITY_LEVELS)
        ],
        'sensor': [
            {'token': make_token('sensor', s.channel), 'channel': s.channel, 'modality': s.modality} for s in sensors
        ],
    }
