"""Static objects of a town, which are not annotated: streets, buildings, trees and poles."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .layout import Block, Grid, Placement
from .paths import lane_point
from .scene import Building, Light, Pole, Road, Town, Tree

USES = ('houses', 'park', 'lot', 'site')
"""Uses of a block: houses, a park, a car park or yard, a construction site."""


@dataclass(frozen=True)
class Land:
    """A block and its use, one of `USES`."""

    block: Block
    use: str


def assign_land(rng: np.random.Generator, grid: Grid) -> tuple[Land, ...]:
    """Draws the use of every block."""
    return tuple(Land(block, str(rng.choice(USES, p=[0.56, 0.16, 0.17, 0.11]))) for block in grid.blocks())


def make_light(rng: np.random.Generator) -> Light:
    """Draws the position and strength of the sun, and the clouds."""
    azimuth, elevation = float(rng.uniform(0.0, 2 * np.pi)), float(np.deg2rad(rng.uniform(18.0, 70.0)))
    return Light(azimuth, elevation, sun=float(rng.uniform(0.3, 1.0)), clouds=float(rng.uniform(0.0, 1.0)))


def build_town(
    rng: np.random.Generator,
    grid: Grid,
    land: tuple[Land, ...],
    placement: Placement,
    route: np.ndarray,
    reach: float = 150.0,
) -> Town:
    """Builds everything within `reach` metres of the ego vehicle's route.

    Args:
        rng: Random generator of all variation.
        grid: Street grid.
        land: Use of the blocks.
        placement: Position of the plan in the global frame.
        route: Positions of the ego vehicle in the plan's frame, shape (T, 2).
        reach: Objects farther than this from all of `route` are left out; streets are not cut.

    Returns:
        The town in the global frame.
    """
    builder = _Builder(rng, placement, route, reach)
    for piece in land:
        builder.fill(piece)
    builder.line_streets(grid)
    corners = placement.points(np.array([[0.0, 0.0], [grid.size[0], 0.0], [0.0, grid.size[1]], list(grid.size)]))
    extent = (*corners.min(axis=0).tolist(), *corners.max(axis=0).tolist())
    roads = tuple(_roads(grid, placement))
    return Town(roads, tuple(builder.buildings), tuple(builder.trees), tuple(builder.poles), extent)


def _roads(grid: Grid, placement: Placement) -> list[Road]:
    rows = [(street, (0.0, street.position), (grid.size[0], street.position)) for street in grid.rows]
    runs = [
        (grid.columns[c], (grid.columns[c].position, a), (grid.columns[c].position, b))
        for c, a, b in grid.column_runs()
    ]
    return [
        Road(placement.point(*start), placement.point(*end), 2 * street.half_width, street.lanes, street.pavement)
        for street, start, end in rows + runs
    ]


class _Builder:
    """Collects the static objects of a town near the route."""

    def __init__(self, rng: np.random.Generator, placement: Placement, route: np.ndarray, reach: float) -> None:
        self._rng, self._placement, self._route, self._reach = rng, placement, route[::10], reach
        self.buildings: list[Building] = []
        self.trees: list[Tree] = []
        self.poles: list[Pole] = []

    def fill(self, land: Land) -> None:
        """Adds buildings and plants to a block."""
        area = np.prod(np.subtract(land.block.high, land.block.low))
        if land.use == 'houses':
            self._houses(land.block)
        for _ in range(int(area / {'houses': 900.0, 'park': 130.0, 'lot': 900.0, 'site': 1500.0}[land.use])):
            inset = 1.5 if land.use == 'park' else None
            self._plant(land.block, inset)

    def _houses(self, block: Block) -> None:
        """Adds rows of buildings along all four sides."""
        width, depth = np.subtract(block.high, block.low)
        setback = float(self._rng.uniform(0.3, 5.0)) if self._rng.random() < 0.6 else 0.3
        for side, length in enumerate((width, depth, width, depth)):
            start, thickness = setback, float(self._rng.uniform(9.0, 15.0))
            # The sides along y leave the corners to the sides along x.
            start, stop = (start, length - setback) if side % 2 == 0 else (start + 16.0, length - setback - 16.0)
            while start < stop - 6.0:
                extent = min(float(self._rng.uniform(9.0, 26.0)), stop - start)
                self._house(block, side, start, extent, setback, thickness)
                start += extent + (float(self._rng.uniform(1.5, 9.0)) if self._rng.random() < 0.5 else 0.0)

    def _house(self, block: Block, side: int, start: float, extent: float, setback: float, depth: float) -> None:
        rng = self._rng
        middle, inward = (
            start + extent / 2,
            setback + depth / 2 + (float(rng.uniform(0.0, 1.5)) if rng.random() < 0.4 else 0.0),
        )
        (west, south), (east, north) = block.low, block.high
        center = [
            (west + middle, south + inward),
            (east - inward, south + middle),
            (east - middle, north - inward),
            (west + inward, north - middle),
        ]
        if not self._in_reach(center[side]):
            return
        height = float(
            rng.choice([rng.uniform(3.5, 8.0), rng.uniform(8.0, 18.0), rng.uniform(18.0, 40.0)], p=[0.4, 0.45, 0.15])
        )
        yaw = self._placement.angle + side * np.pi / 2
        self.buildings.append(
            Building(self._placement.point(*center[side]), (extent, depth), float(yaw), height, self._seed())
        )

    def _plant(self, block: Block, inset: float | None) -> None:
        """Adds one tree or bush: anywhere in a park, otherwise close to the edge of the block."""
        low, high = np.array(block.low), np.array(block.high)
        spot = self._rng.uniform(low + 1.5, high - 1.5)
        if inset is None:
            axis = int(self._rng.integers(2))
            spot[axis] = low[axis] + 0.9 if self._rng.random() < 0.5 else high[axis] - 0.9
        bush = self._rng.random() < (0.35 if inset else 0.8)
        self._tree(spot, bush, crown=0.7 if bush and inset is None else None)

    def _tree(self, spot: np.ndarray, bush: bool, crown: float | None = None) -> None:
        height = float(self._rng.uniform(0.8, 2.0) if bush else self._rng.uniform(4.5, 11.0))
        radius = float(self._rng.uniform(0.5, 1.1) if bush else self._rng.uniform(1.3, 2.8))
        if self._in_reach(spot):
            self.trees.append(Tree(self._placement.point(*spot), height, crown or radius, self._seed()))

    def line_streets(self, grid: Grid) -> None:
        """Adds lamps, signs and trees along the kerbs, and traffic lights at the junctions."""
        for node in grid.nodes():
            for heading in range(4):
                if grid.has_arm(node, heading):
                    self._line_arm(grid, node, heading)

    def _line_arm(self, grid: Grid, node: tuple[int, int], heading: int) -> None:
        """Lines the right-hand kerb of one arm, seen from its junction (the other belongs to the next junction)."""
        rng, street, first = self._rng, grid.street(node, heading), grid.clearance(node, heading)
        after = grid.next_node(node, heading)
        length = (
            60.0
            if after is None
            else float(np.abs(grid.position(after) - grid.position(node)).sum()) - grid.clearance(after, heading + 2)
        )
        kerb, towards_street = street.half_width + 0.45, self._placement.angle + (heading + 1) * np.pi / 2
        # The light for traffic towards this junction stands on its right, which is the left side of the arm.
        self._pole(
            lane_point(grid, node, heading, first - 0.6, -kerb),
            4.0,
            'light',
            self._placement.angle + heading * np.pi / 2,
        )
        planted, spacing = rng.random() < 0.55, float(rng.uniform(8.0, 16.0))
        for k, along in enumerate(np.arange(first + 4.0, length - 2.0, spacing)):
            spot = lane_point(grid, node, heading, float(along), kerb)
            if k % 2 == 0:
                self._pole(spot, float(rng.uniform(6.0, 8.5)), 'lamp', towards_street)
            elif planted:
                self._tree(spot, bush=False, crown=float(rng.uniform(1.0, 1.9)))
            elif rng.random() < 0.4:
                self._pole(
                    spot, float(rng.uniform(2.2, 3.0)), 'sign', self._placement.angle + (heading + 2) * np.pi / 2
                )

    def _pole(self, spot: np.ndarray, height: float, kind: str, yaw: float) -> None:
        if self._in_reach(spot):
            self.poles.append(Pole(self._placement.point(*spot), height, kind, float(yaw)))

    def _in_reach(self, spot: np.ndarray | tuple[float, float]) -> bool:
        return bool((np.linalg.norm(self._route - np.asarray(spot), axis=1) < self._reach).any())

    def _seed(self) -> int:
        return int(self._rng.integers(2**31))
