"""Pedestrians: walking around blocks and along streets, standing in groups, and sitting."""

from __future__ import annotations

import numpy as np

from .layout import Grid, Node
from .paths import Path, lane_point, ring_walk, street_walks
from .sizes import draw_size
from .tracks import STEP, World, along_path, standing

MOVING, STANDING, SITTING = 'pedestrian.moving', 'pedestrian.standing', 'pedestrian.sitting_lying_down'


class People:
    """Adds pedestrians to a world.

    Args:
        rng: Random generator of all variation.
        grid: Street grid.
        world: World that receives the pedestrians.
        route: Positions of the ego vehicle, shape (T, 2).
    """

    def __init__(self, rng: np.random.Generator, grid: Grid, world: World, route: np.ndarray) -> None:
        self._rng, self._grid, self._world, self._route = rng, grid, world, route[::10]

    def _near(self, spot: np.ndarray, reach: float) -> bool:
        return bool((np.linalg.norm(self._route - spot, axis=1) < reach).any())

    def walk(self, count: int, reach: float = 55.0) -> None:
        """Adds up to `count` walkers who come within `reach` metres of the ego vehicle's route."""
        rng = self._rng
        walks = [
            ring_walk(block, share)
            for block in self._grid.blocks()
            if min(block.pavements) > 0
            for share in (0.25, 0.6)
        ]
        walks += [path for share in (0.35, 0.6, 0.8) for path in street_walks(self._grid, share)]
        lengths = np.array([path.length for path in walks])
        added = 0
        for _ in range(count * 20):
            path = walks[int(rng.choice(len(walks), p=lengths / lengths.sum()))]
            s = float(rng.uniform(0.0, path.length))
            if added < count and self._near(path.pose(np.array([s]))[0][0], reach):
                added += sum(
                    self._start_walk(path, s + k * 0.15, k * 0.9)
                    for k in range(int(rng.choice([1, 2, 3], p=[0.7, 0.2, 0.1])))
                )

    def _start_walk(self, path: Path, start: float, beside: float) -> bool:
        """Adds one walker, shifted sideways by `beside` metres if in company; a few walkers pause on their way."""
        rng = self._rng
        size, speed = (
            draw_size(rng, 'pedestrian'),
            float(np.clip(rng.normal(1.3, 0.25), 0.6, 2.2)) if beside == 0.0 else 1.3,
        )
        time = np.arange(self._world.steps) * STEP
        if rng.random() < 0.12:
            pause = float(rng.uniform(0.0, time[-1]))
            time = np.where(time < pause, time, np.maximum(pause, time - float(rng.uniform(3.0, 12.0))))
        direction = -1 if rng.random() < 0.5 else 1
        track = along_path('pedestrian', size, path, start + direction * speed * time, MOVING, STANDING)
        yaw = track.yaw + (np.pi if direction < 0 else 0.0)
        side = np.stack([-np.sin(track.yaw), np.cos(track.yaw)], axis=1)
        track = type(track)('pedestrian', size, track.xy + beside * side, yaw, MOVING, STANDING)
        return self._world.try_add(track, margin=0.1)

    def stand(self, groups: int, reach: float = 40.0) -> None:
        """Adds groups of one to five people on the pavements, some of them seated."""
        arms = [
            (node, heading) for node in self._grid.nodes() for heading in range(4) if self._grid.has_arm(node, heading)
        ]
        for _ in range(groups * 12):
            node, heading = arms[int(self._rng.integers(len(arms)))]
            along = self._grid.clearance(node, heading) + float(self._rng.uniform(-4.0, 45.0))
            spot = lane_point(self._grid, node, heading, along, self._pavement(node, heading))
            if groups and self._near(spot, reach):
                self._group(spot)
                groups -= 1

    def _pavement(self, node: Node, heading: int) -> float:
        street = self._grid.street(node, heading)
        return street.half_width + float(self._rng.uniform(0.3, 0.8)) * street.pavement

    def _group(self, spot: np.ndarray) -> None:
        rng = self._rng
        for _ in range(int(rng.choice([1, 2, 3, 4, 5], p=[0.35, 0.25, 0.2, 0.1, 0.1]))):
            width, length, height = draw_size(rng, 'pedestrian')
            seated = rng.random() < 0.08
            size = (width, length, round(0.75 * height, 3)) if seated else (width, length, height)
            yaw, place = float(rng.uniform(0.0, 2 * np.pi)), spot + rng.normal(0.0, 0.9, 2)
            self._world.try_add(
                standing('pedestrian', size, place, yaw, self._world.steps, SITTING if seated else STANDING), margin=0.1
            )
