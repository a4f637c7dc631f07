"""Data classes of a synthetic drive, which the simulator writes and the sensors read.

Frames and units follow nuScenes. The global frame has x east, y north, z up, in metres; the ground is z = 0. The ego
frame has x forward, y left, z up with its origin under the rear axle, on the ground. Sizes are (width, length,
height), yaw is counter-clockwise about z from the global x axis, in radians, and the length of a box runs along its
yaw.
"""

from __future__ import annotations

from dataclasses import dataclass

CATEGORIES: dict[str, str] = {
    'car': 'vehicle.car',
    'truck': 'vehicle.truck',
    'bus': 'vehicle.bus.rigid',
    'trailer': 'vehicle.trailer',
    'construction_vehicle': 'vehicle.construction',
    'pedestrian': 'human.pedestrian.adult',
    'motorcycle': 'vehicle.motorcycle',
    'bicycle': 'vehicle.bicycle',
    'traffic_cone': 'movable_object.trafficcone',
    'barrier': 'movable_object.barrier',
}
"""Detection class -> the nuScenes category that the generator writes for it."""


@dataclass(frozen=True)
class Road:
    """A straight street from `start` to `end` (x, y); `width` is the carriageway, `pavement` the width on each side."""

    start: tuple[float, float]
    end: tuple[float, float]
    width: float
    lanes: int
    pavement: float


@dataclass(frozen=True)
class Building:
    """A block of `size` (x extent, y extent before rotation by `yaw`) and `height`, centred on `center`."""

    center: tuple[float, float]
    size: tuple[float, float]
    yaw: float
    height: float
    seed: int


@dataclass(frozen=True)
class Tree:
    """A tree with trunk and crown; bushes are trees of small `height`."""

    position: tuple[float, float]
    height: float
    crown_radius: float
    seed: int


@dataclass(frozen=True)
class Pole:
    """A lamp post, sign or traffic light (`kind` 'lamp', 'sign' or 'light'); its arm or face points along `yaw`."""

    position: tuple[float, float]
    height: float
    kind: str
    yaw: float


@dataclass(frozen=True)
class Town:
    """Everything that does not move in a scene, within `extent` = (x_min, y_min, x_max, y_max)."""

    roads: tuple[Road, ...]
    buildings: tuple[Building, ...]
    trees: tuple[Tree, ...]
    poles: tuple[Pole, ...]
    extent: tuple[float, float, float, float]


@dataclass(frozen=True)
class Light:
    """Sun direction (azimuth and elevation in radians), its strength relative to the sky, and cloudiness in 0..1."""

    azimuth: float
    elevation: float
    sun: float
    clouds: float


@dataclass(frozen=True)
class Actor:
    """An annotated object: its detection class (a key of `CATEGORIES`), size (w, l, h) and seed of its appearance."""

    instance: int
    label: str
    size: tuple[float, float, float]
    seed: int


@dataclass(frozen=True)
class ActorState:
    """An actor at one time: box centre (x, y, z), yaw, velocity (vx, vy) in m/s, nuScenes attribute (may be empty)."""

    actor: Actor
    center: tuple[float, float, float]
    yaw: float
    velocity: tuple[float, float]
    attribute: str


@dataclass(frozen=True)
class EgoState:
    """Pose of the ego frame in the global frame, with velocity (vx, vy) in m/s."""

    position: tuple[float, float, float]
    yaw: float
    velocity: tuple[float, float]


@dataclass(frozen=True)
class Snapshot:
    """The state of the world at `time` seconds after the start of the scene."""

    time: float
    ego: EgoState
    actors: tuple[ActorState, ...]
