"""A scene: a town, its light, and the motion of all actors, drawn from one seed."""

from __future__ import annotations

import numpy as np

from .driving import make_signals
from .layout import make_grid, make_placement
from .people import People
from .places import Scenery
from .scene import Actor, ActorState, EgoState, Snapshot
from .town import assign_land, build_town, make_light
from .tracks import STEP, Track, World
from .traffic import REAR_AXLE, fill_streets, send_ego

STANDSTILL = 0.2
"""Speed in m/s below which a vehicle or pedestrian counts as standing."""


class Scene:
    """One drive of the ego vehicle through a town; the same seed gives the same scene.

    Args:
        seed: Non-negative integers that select the scene.
        duration: Length of the scene in seconds.

    Attributes:
        town: Static objects, which are not annotated.
        light: Sun and sky.
        actors: All objects that can be annotated in this scene.
    """

    def __init__(self, seed: tuple[int, ...], duration: float = 20.0) -> None:
        # One stream of random numbers per part, so that a change in one part does not change the others.
        plan, land_use, motion, looks, build = (np.random.default_rng((*seed, part)) for part in range(5))
        self.duration = duration
        grid = make_grid(plan)
        self._placement = make_placement(plan, grid.size)
        land, self.light = assign_land(land_use, grid), make_light(land_use)
        world = World(int(np.ceil(duration / STEP)) + 2)
        signals = make_signals(motion, grid)
        self._ego = send_ego(motion, grid, world, signals, duration)
        scenery, people = Scenery(motion, grid, world, self._ego.xy), People(motion, grid, world, self._ego.xy)
        for _ in range(int(motion.choice([0, 1, 2], p=[0.15, 0.7, 0.15]))):
            scenery.build_zone()
        scenery.scatter(cones=2, barriers=3)
        scenery.lean_cycles(racks=3)
        scenery.park_along_kerbs()
        scenery.fill_yards(land)
        people.stand(groups=int(motion.integers(1, 6)))
        people.walk(count=int(motion.integers(5, 20)))
        fill_streets(motion, grid, world, signals, self._ego, attempts=int(motion.integers(100, 260)))
        self.town = build_town(build, grid, land, self._placement, self._ego.xy)
        self._tracks = [track for track in world.tracks if track is not self._ego]
        self.actors = tuple(
            Actor(k, track.label, track.size, int(looks.integers(2**31))) for k, track in enumerate(self._tracks)
        )

    def snapshot(self, time: float, reach: float = 120.0) -> Snapshot:
        """The state of the world at `time`, with the actors within `reach` metres of the ego vehicle.

        Args:
            time: Seconds since the start, 0 to `duration`.
            reach: Distance in metres.

        Returns:
            The snapshot in the global frame.

        Raises:
            ValueError: If `time` is outside of the scene.
        """
        if not 0.0 <= time <= self.duration:
            raise ValueError(f'time must be within 0 and {self.duration} seconds, got {time}')
        middle, yaw, velocity = self._ego.at(time)
        position = self._placement.point(*(middle - REAR_AXLE * np.array([np.cos(yaw), np.sin(yaw)])))
        ego = EgoState((*position, 0.0), self._turn(yaw), self._velocity(velocity))
        states = []
        for actor, track in zip(self.actors, self._tracks):
            center, heading, speed = track.at(time)
            if np.hypot(*(center - middle)) < reach:
                states.append(self._state(actor, track, center, heading, speed))
        return Snapshot(time, ego, tuple(states))

    def _state(self, actor: Actor, track: Track, center: np.ndarray, yaw: float, velocity: np.ndarray) -> ActorState:
        attribute = track.moving if np.hypot(*velocity) > STANDSTILL else track.still
        position = (*self._placement.point(*center), actor.size[2] / 2)
        return ActorState(actor, position, self._turn(yaw), self._velocity(velocity), attribute)

    def _turn(self, yaw: float) -> float:
        return float((yaw + self._placement.angle + np.pi) % (2 * np.pi) - np.pi)

    def _velocity(self, velocity: np.ndarray) -> tuple[float, float]:
        moved = self._placement.vectors(velocity)
        return float(moved[0]), float(moved[1])
