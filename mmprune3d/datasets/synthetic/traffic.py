"""Moving vehicles: the ego vehicle, the vehicle ahead of it, and the traffic around it."""

from __future__ import annotations

import numpy as np

from .driving import Driver, Signals, drive
from .layout import Grid
from .paths import Route, plan_route
from .places import pick
from .sizes import draw_size
from .tracks import Track, World, along_path

EGO_SIZE = (1.73, 4.08, 1.56)
REAR_AXLE = 1.4
"""Distance in metres from the rear axle, the origin of the ego frame, to the middle of the vehicle."""
MOVING_MIX = {'car': 0.70, 'truck': 0.13, 'bus': 0.08, 'rig': 0.045, 'motorcycle': 0.05, 'bicycle': 0.055}
HITCH = 0.6


def send_ego(rng: np.random.Generator, grid: Grid, world: World, signals: Signals, duration: float) -> Track:
    """Adds the ego vehicle, often behind another one, on a drive that stays inside town, to `world`.

    Returns:
        The ego vehicle's track, whose positions are those of the middle of the vehicle.
    """
    speed = float(rng.uniform(6.0, 11.5))
    route = _inner_route(rng, grid, speed * duration + 60.0)
    start = float(rng.uniform(4.0, 30.0))
    if rng.random() < 0.6:
        label = pick(rng, {'car': 0.7, 'truck': 0.12, 'bus': 0.1, 'rig': 0.08})
        launch(rng, world, signals, route, start + float(rng.uniform(22.0, 45.0)), label, float(rng.uniform(5.0, 11.0)))
    driver = Driver(route, start, speed, EGO_SIZE[1], EGO_SIZE[0])
    middle = drive(driver, world, signals)
    rear, yaw = route.path.pose(middle - REAR_AXLE)
    xy = rear + REAR_AXLE * np.stack([np.cos(yaw), np.sin(yaw)], axis=1)
    ego = Track('ego', EGO_SIZE, xy, yaw)
    if not world.is_free(ego):
        world.clear()
    world.add(ego)
    return ego


def _inner_route(rng: np.random.Generator, grid: Grid, length: float) -> Route:
    """The one of several random drives that stays farthest from the border of town."""
    best, best_distance, nodes = None, -np.inf, grid.nodes()
    for _ in range(30):
        node, heading = nodes[int(rng.integers(len(nodes)))], int(rng.integers(4))
        if not grid.has_arm(node, heading) or grid.next_node(node, heading) is None:
            continue
        route = plan_route(rng, grid, node, heading, length)
        xy, _ = route.path.pose(np.linspace(0.0, min(length, route.path.length), 40))
        distance = float(np.minimum(xy, np.array(grid.size) - xy).min())
        # A drive that ends early cannot be used; beyond 130 m from the border all drives are equally good.
        distance = min(distance, 130.0) if route.path.length > length - 40.0 else -1.0
        if distance > best_distance:
            best, best_distance = route, distance
    return best


def launch(
    rng: np.random.Generator,
    world: World,
    signals: Signals,
    route: Route,
    start: float,
    label: str,
    speed: float,
    reach: np.ndarray | None = None,
) -> bool:
    """Drives a vehicle along `route` and accepts it if it hits nothing; a 'rig' is a truck with a trailer.

    Args:
        rng: Random generator of sizes.
        world: All other tracks; the vehicle is added to it.
        signals: Traffic lights.
        route: Route of the vehicle.
        start: Arc length of its middle at the beginning.
        label: A detection class or 'rig'.
        speed: Speed on a free road in m/s.
        reach: Positions (T, 2) of the ego vehicle; a vehicle that never comes within 95 m of it is dropped.

    Returns:
        Whether the vehicle was accepted.
    """
    parts = [(part, draw_size(rng, part)) for part in (('truck', 'trailer') if label == 'rig' else (label,))]
    length = sum(size[1] for _, size in parts) + HITCH * (len(parts) - 1)
    start = max(start, length / 2)
    if start > route.path.length - 5.0:
        return False
    middle = drive(Driver(route, start, speed, length, parts[0][1][0]), world, signals)
    tracks, front = [], middle + length / 2
    for part, size in parts:
        cycle = part in ('motorcycle', 'bicycle')
        moving, still = ('cycle.with_rider',) * 2 if cycle else ('vehicle.moving', 'vehicle.stopped')
        tracks.append(along_path(part, size, route.path, front - size[1] / 2, moving, still))
        front = front - size[1] - HITCH
    if reach is not None and np.linalg.norm(tracks[0].xy - reach, axis=1).min() > 95.0:
        return False
    return world.try_add(*tracks)


def fill_streets(
    rng: np.random.Generator, grid: Grid, world: World, signals: Signals, ego: Track, attempts: int
) -> int:
    """Tries `attempts` vehicles at random positions near the ego vehicle's route; returns the number accepted."""
    accepted = 0
    for _ in range(attempts):
        label = pick(rng, MOVING_MIX)
        cycle = label == 'bicycle'
        speed = float(rng.uniform(3.0, 6.0) if cycle else rng.uniform(6.0, 12.0))
        node, heading = (int(rng.integers(len(grid.columns))), int(rng.integers(len(grid.rows)))), int(rng.integers(4))
        away = np.linalg.norm(ego.xy[::10] - grid.position(node), axis=1).min()
        if away > 150.0 or not grid.has_arm(node, heading) or grid.next_node(node, heading) is None:
            continue
        route = plan_route(rng, grid, node, heading, speed * world.steps * 0.1 + 110.0, shift=1.1 if cycle else 0.0)
        accepted += launch(rng, world, signals, route, float(rng.uniform(3.0, 90.0)), label, speed, ego.xy)
    return accepted
