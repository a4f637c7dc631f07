"""Positions of parked vehicles, cones and barriers: kerbs, yards, and construction zones."""

from __future__ import annotations

import numpy as np

from .layout import LANE_WIDTH, Grid, Node
from .paths import lane_point
from .sizes import draw_size
from .town import Land
from .tracks import World, standing

KERB_MIX = {'car': 0.83, 'truck': 0.10, 'trailer': 0.03, 'bus': 0.04, 'motorcycle': 0.045, 'bicycle': 0.015}
YARD_MIX = {'car': 0.80, 'truck': 0.08, 'trailer': 0.06, 'bus': 0.03, 'construction_vehicle': 0.03}
FREIGHT_MIX = {'truck': 0.3, 'trailer': 0.5, 'construction_vehicle': 0.2}
SITE_MIX = {'construction_vehicle': 0.5, 'truck': 0.25, 'trailer': 0.2, 'car': 0.05}
STILL = {'motorcycle': 'cycle.without_rider', 'bicycle': 'cycle.without_rider', 'traffic_cone': '', 'barrier': ''}


def pick(rng: np.random.Generator, mix: dict[str, float]) -> str:
    """Draws a key of `mix` with a probability proportional to its value."""
    shares = np.array(list(mix.values()))
    return str(rng.choice(list(mix), p=shares / shares.sum()))


class Scenery:
    """Adds standing objects near the ego vehicle's route to a world, where there is room for them.

    Args:
        rng: Random generator of all variation.
        grid: Street grid.
        world: World that receives the objects; the ego vehicle and the vehicle ahead of it must already be in it.
        route: Positions of the ego vehicle, shape (T, 2).
    """

    def __init__(self, rng: np.random.Generator, grid: Grid, world: World, route: np.ndarray) -> None:
        self._rng, self._grid, self._world, self._route = rng, grid, world, route[::10]

    def distance(self, spot: np.ndarray) -> float:
        """Distance in metres from `spot` to the ego vehicle's route."""
        return float(np.linalg.norm(self._route - spot, axis=1).min())

    def put(self, label: str, spot: np.ndarray, yaw: float, margin: float = 0.2) -> bool:
        """Places an object with small random deviations; returns whether there was room."""
        attribute = STILL.get(label, 'vehicle.parked')
        size, yaw = draw_size(self._rng, label), yaw + float(self._rng.normal(0.0, 0.03))
        track = standing(label, size, spot, yaw, self._world.steps, attribute)
        return self._world.try_add(track, margin=margin)

    def arms(self, reach: float) -> list[tuple[Node, int, float, float]]:
        """Arms (node, heading, first and last usable metre) whose middle is within `reach` of the route."""
        arms = []
        for node in self._grid.nodes():
            for heading in range(4):
                after = self._grid.next_node(node, heading)
                if after is None or not self._grid.has_arm(node, heading):
                    continue
                first = self._grid.clearance(node, heading)
                last = float(
                    np.abs(self._grid.position(after) - self._grid.position(node)).sum()
                ) - self._grid.clearance(after, heading + 2)
                if self.distance(lane_point(self._grid, node, heading, (first + last) / 2, 0.0)) < reach:
                    arms.append((node, heading, first, last))
        return arms

    def park_along_kerbs(self, reach: float = 110.0) -> None:
        """Fills the right-hand kerb of every arm with parked vehicles, some kerbs densely, some sparsely."""
        for node, heading, first, last in self.arms(reach):
            density, along = float(self._rng.beta(1.2, 3.0)), first + 6.0
            while along < last - 6.0:
                label = pick(self._rng, KERB_MIX)
                length = draw_size(self._rng, label)[1] + float(self._rng.uniform(0.8, 2.5))
                if along + length < last - 6.0 and self._rng.random() < density:
                    offset = (
                        self._grid.street(node, heading).lanes * LANE_WIDTH / 2
                        + 1.4
                        + float(self._rng.normal(0.0, 0.1))
                    )
                    yaw = heading * np.pi / 2 + (
                        np.pi / 2 if label == 'motorcycle' and self._rng.random() < 0.5 else 0.0
                    )
                    self.put(label, lane_point(self._grid, node, heading, along + length / 2, offset), yaw)
                along += length

    def fill_yards(self, land: tuple[Land, ...], reach: float = 75.0) -> None:
        """Adds rows of parked vehicles on car parks and freight yards, and machines on construction sites."""
        for piece in land:
            low, high = np.array(piece.block.low), np.array(piece.block.high)
            freight = self._rng.random() < 0.3
            slot = (4.2, 15.0) if freight else (3.0, 5.8)
            density = float(self._rng.uniform(0.15, 0.6))
            if piece.use == 'lot':
                self._rows(low + 3.0, high - 3.0, slot, FREIGHT_MIX if freight else YARD_MIX, density, reach)
            elif piece.use == 'site':
                self._rows(low + 3.0, high - 3.0, (9.0, 12.0), SITE_MIX, 0.25, reach)
                self._fence(low + 0.8, high - 0.8, reach)

    def _rows(
        self,
        low: np.ndarray,
        high: np.ndarray,
        slot: tuple[float, float],
        mix: dict[str, float],
        density: float,
        reach: float,
    ) -> None:
        """Adds parked vehicles side by side along x; every second row is left free as an aisle."""
        for y in np.arange(low[1] + slot[1] / 2, high[1] - slot[1] / 2, slot[1] + 6.0):
            for x in np.arange(low[0] + slot[0] / 2, high[0] - slot[0] / 2, slot[0]):
                spot = np.array([x, y])
                if self._rng.random() < density and self.distance(spot) < reach:
                    self.put(pick(self._rng, mix), spot, np.pi / 2 * float(self._rng.choice([-1, 1])))

    def _fence(self, low: np.ndarray, high: np.ndarray, reach: float) -> None:
        """Adds barriers along the edges of a site, with gaps."""
        for axis in (0, 1):
            for edge in (low, high):
                for along in np.arange(low[axis] + 2.0, high[axis] - 2.0, 2.8):
                    spot = edge.copy()
                    spot[axis] = along
                    if self._rng.random() < 0.25 and self.distance(spot) < min(reach, 30.0):
                        self.put('barrier', spot, np.pi / 2 * (1 - axis), margin=0.05)

    def build_zone(self, reach: float = 28.0) -> bool:
        """Adds a construction zone on kerb and pavement: a line of cones or barriers, with machines and workers."""
        arms = [arm for arm in self.arms(np.inf) if arm[3] - arm[2] > 45.0]
        for index in self._rng.permutation(len(arms))[:40]:
            node, heading, first, last = arms[index]
            length = float(self._rng.uniform(16.0, 28.0))
            start = float(self._rng.uniform(first + 5.0, last - length - 5.0))
            if self.distance(lane_point(self._grid, node, heading, start + length / 2, 0.0)) < reach:
                self._zone(node, heading, start, length)
                return True
        return False

    def _zone(self, node: Node, heading: int, start: float, length: float) -> None:
        street, yaw = self._grid.street(node, heading), heading * np.pi / 2
        inner, depth = (
            street.lanes * LANE_WIDTH / 2 + 0.35,
            street.half_width + street.pavement - street.lanes * LANE_WIDTH / 2,
        )

        def spot(along: float, across: float) -> np.ndarray:
            return lane_point(self._grid, node, heading, start + along, inner + across)

        along = 5.0 + float(self._rng.uniform(0.0, 2.0))
        for label in [pick(self._rng, {'construction_vehicle': 0.75, 'truck': 0.15, 'trailer': 0.1}) for _ in range(2)]:
            size = draw_size(self._rng, label)[1]
            if along + size < length - 2.0:
                self.put(label, spot(along + size / 2, 0.5 + depth / 2), yaw)
            along += size + float(self._rng.uniform(2.5, 6.0))
        barriers = self._rng.random() < 0.55
        for along in np.arange(2.0, length - 2.0, 2.8 if barriers else 4.5):
            self.put(
                'barrier' if barriers else 'traffic_cone', spot(along, 0.0), yaw + np.pi / 2 * barriers, margin=0.05
            )
        for along in (0.0, length):
            for across in np.arange(0.1, depth - 0.6, 3.2):
                self.put(
                    'traffic_cone', spot(along + float(self._rng.normal(0.0, 0.15)), float(across)), yaw, margin=0.05
                )

    def scatter(self, cones: int, barriers: int, reach: float = 22.0) -> None:
        """Adds short rows of cones in the gutter and of barriers on the edge of the pavement."""
        arms = self.arms(60.0)
        for label, count, spacing in (('traffic_cone', cones, 3.0), ('barrier', barriers, 2.8)):
            for _ in range(count):
                node, heading, first, last = arms[int(self._rng.integers(len(arms)))]
                along, street = float(self._rng.uniform(first, last)), self._grid.street(node, heading)
                offset = street.half_width + (-0.5 if label == 'traffic_cone' else 0.7)
                for k in range(int(self._rng.integers(2, 5))):
                    spot = lane_point(self._grid, node, heading, along + k * spacing, offset)
                    if self.distance(spot) < reach + 15.0 and along + k * spacing < last:
                        self.put(label, spot, (heading + (label == 'barrier')) * np.pi / 2, margin=0.05)

    def lean_cycles(self, racks: int, reach: float = 30.0) -> None:
        """Adds bicycles and motorcycles on the pavement, in small racks."""
        arms = self.arms(60.0)
        for _ in range(racks):
            node, heading, first, last = arms[int(self._rng.integers(len(arms)))]
            label, along = (
                str(self._rng.choice(['bicycle', 'motorcycle'], p=[0.5, 0.5])),
                float(self._rng.uniform(first, last)),
            )
            offset = self._grid.street(node, heading).reach - 1.1
            for k in range(int(self._rng.integers(1, 4))):
                spot = lane_point(self._grid, node, heading, along + k * 1.4, offset)
                if self.distance(spot) < reach:
                    self.put(label, spot, (heading + 1) * np.pi / 2 + 0.3, margin=0.1)
