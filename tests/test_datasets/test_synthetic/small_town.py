"""Small worlds for the tests of the sensors."""

from __future__ import annotations

import math

from mmprune3d.datasets.synthetic.scene import (
    Actor,
    ActorState,
    Building,
    EgoState,
    Light,
    Pole,
    Road,
    Snapshot,
    Town,
    Tree,
)  # fmt: skip

LIGHT = Light(azimuth=0.8, elevation=0.9, sun=0.8, clouds=0.2)
EXTENT = (-60.0, -60.0, 60.0, 60.0)
SIZES = {
    'car': (1.95, 4.6, 1.7), 'truck': (2.5, 7.5, 3.1), 'bus': (2.9, 11.0, 3.4), 'trailer': (2.8, 11.0, 3.8),
    'construction_vehicle': (2.8, 6.5, 3.2), 'pedestrian': (0.67, 0.73, 1.77), 'motorcycle': (0.78, 2.1, 1.48),
    'bicycle': (0.6, 1.7, 1.35), 'traffic_cone': (0.4, 0.4, 1.05), 'barrier': (2.5, 0.5, 1.0),
}  # fmt: skip


def empty_town() -> Town:
    """Grass as far as one can see."""
    return Town((), (), (), (), EXTENT)


def walled_town(distance: float) -> Town:
    """One wide building whose wall is the plane x = `distance`."""
    return Town((), (Building((distance + 5.0, 0.0), (10.0, 60.0), 0.0, 12.0, 3),), (), (), EXTENT)


def street_town() -> Town:
    """A crossing with a house, a tree and all kinds of poles."""
    roads = (Road((-60.0, 0.0), (60.0, 0.0), 8.0, 2, 3.0), Road((25.0, -60.0), (25.0, 60.0), 8.0, 2, 3.0))
    poles = tuple(Pole((10.0 + i, -6.0), 4.0 + i, kind, 0.3) for i, kind in enumerate(('lamp', 'sign', 'light')))
    trees = (Tree((8.0, 9.0), 6.0, 2.0, 1), Tree((14.0, 9.0), 1.2, 0.8, 2))
    return Town(roads, (Building((5.0, 20.0), (14.0, 12.0), 0.2, 9.0, 4),), trees, poles, EXTENT)


def actor(
    instance: int,
    label: str,
    x: float,
    y: float,
    yaw: float = 0.0,
    velocity: tuple[float, float] = (0.0, 0.0),
    size: tuple[float, float, float] | None = None,
) -> ActorState:
    """An object of the usual size of its class, standing on the ground."""
    size = size or SIZES[label]
    return ActorState(Actor(instance, label, size, 50 + instance), (x, y, size[2] / 2), yaw, velocity, '')


def snapshot(
    *actors: ActorState, yaw: float = 0.0, at: tuple[float, float] = (0.0, 0.0), speed: float = 0.0
) -> Snapshot:
    """The car at a place with some actors."""
    velocity = (speed * math.cos(yaw), speed * math.sin(yaw))
    return Snapshot(0.25, EgoState((*at, 0.0), yaw, velocity), tuple(actors))
