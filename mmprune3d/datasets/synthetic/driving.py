"""Behaviour of drivers: they keep distance, brake for curves and obstacles, and stop at red lights."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .layout import Grid, Node
from .paths import Route
from .tracks import STEP, World

ACCELERATION = 1.6
BRAKING = 2.2
HARDEST_BRAKING = 7.0
STANDSTILL_GAP = 2.5
HEADWAY = 1.2
SIGHT = 40.0
PLAN_STEP = 2
"""Number of steps of a track between two decisions of a driver."""


@dataclass(frozen=True)
class Signals:
    """Traffic lights: a phase in seconds for each junction that has them; junctions without lights are absent."""

    phases: dict[Node, float]
    cycle: float = 26.0

    def is_red(self, node: Node, axis: int, time: float) -> bool:
        """Returns whether traffic along `axis` must stop at `node` at `time`; between greens both are red for 1.5 s."""
        if node not in self.phases:
            return False
        part = (time + self.phases[node] + axis * self.cycle / 2) % self.cycle
        return part > self.cycle / 2 - 1.5


def make_signals(rng: np.random.Generator, grid: Grid) -> Signals:
    """Draws the phases of traffic lights, at about two thirds of the junctions."""
    return Signals({node: float(rng.uniform(0.0, 26.0)) for node in grid.nodes() if rng.random() < 0.65})


@dataclass(frozen=True)
class Driver:
    """A vehicle on a route: `start` is the arc length of its middle, `speed` its speed in m/s on a free road."""

    route: Route
    start: float
    speed: float
    length: float
    width: float


def drive(driver: Driver, world: World, signals: Signals) -> np.ndarray:
    """Simulates a driver among the accepted tracks with the Intelligent Driver Model (Treiber et al., 2000).

    Args:
        driver: The driver with vehicle and route.
        world: All other tracks, whose motion is fixed.
        signals: Traffic lights.

    Returns:
        Arc lengths of the vehicle's middle, one per step of `world`.
    """
    limit_s, limits = driver.route.path.speed_limits()
    s, speed = driver.start, min(driver.speed, float(np.interp(driver.start, limit_s, limits)))
    steps, positions, dt = np.arange(0, world.steps + PLAN_STEP, PLAN_STEP), [], PLAN_STEP * STEP
    for step in steps:
        positions.append(s)
        wanted = max(0.5, min(driver.speed, float(np.interp(s + 0.5 * speed, limit_s, limits))))
        gap, leader = _gap_ahead(driver, s, world, int(step))
        for other_gap, other_speed in _red_lights(driver, s, speed, signals, step * STEP):
            gap, leader = min((gap, leader), (other_gap, other_speed))
        acceleration = _idm(speed, wanted, gap, leader)
        after = max(0.0, speed + acceleration * dt)
        s, speed = s + 0.5 * (speed + after) * dt, after
    return np.interp(np.arange(world.steps), steps, positions)


def _idm(speed: float, wanted: float, gap: float, leader: float) -> float:
    """Acceleration in m/s2 of the Intelligent Driver Model."""
    dynamic = STANDSTILL_GAP + max(
        0.0, speed * HEADWAY + speed * (speed - leader) / (2 * np.sqrt(ACCELERATION * BRAKING))
    )
    free = 1 - (speed / wanted) ** 4
    return float(np.clip(ACCELERATION * (free - (dynamic / max(gap, 0.1)) ** 2), -HARDEST_BRAKING, ACCELERATION))


def _red_lights(driver: Driver, s: float, speed: float, signals: Signals, time: float) -> list[tuple[float, float]]:
    """Gap and speed (0) of each red light before which the driver can still stop; the gap ends at the stop line."""
    found = []
    for stop in driver.route.stops:
        distance = stop.s - s - driver.length / 2
        if (
            -0.5 < distance < SIGHT
            and signals.is_red(stop.node, stop.axis, time)
            and speed**2 < 2 * 3.5 * max(distance, 0.1)
        ):
            found.append((distance + STANDSTILL_GAP - 0.5, 0.0))
    return found


def _gap_ahead(driver: Driver, s: float, world: World, step: int) -> tuple[float, float]:
    """Distance in metres from the front to the first obstacle, now or in 1.5 s, and its speed along the path."""
    nose = s + driver.length / 2
    ahead = nose + np.arange(0.0, SIGHT, 1.0)
    xy, yaw = driver.route.path.pose(ahead)
    gap, leader = np.inf, 0.0
    for later in (0, 15):
        centers, radii, velocities = world.circles(step + later)
        near = np.abs(centers - xy[0]).max(axis=1) < SIGHT + 8.0 if len(centers) else np.zeros(0, bool)
        centers, radii, velocities = centers[near], radii[near], velocities[near]
        distance = np.linalg.norm(xy[:, None] - centers[None], axis=2) - radii[None]
        blocked = distance < driver.width / 2 + 0.35
        rows = np.flatnonzero(blocked.any(axis=1))
        if len(rows) and rows[0] < gap:
            gap, k = float(rows[0]), int(np.argmin(distance[rows[0]]))
            leader = float(velocities[k] @ np.array([np.cos(yaw[rows[0]]), np.sin(yaw[rows[0]])]))
    return gap, max(leader, 0.0)
