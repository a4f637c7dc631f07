"""The street plan of a synthetic town: an irregular grid of streets of different width, with some segments missing.

Everything here is in the plan's own frame, with streets along x and y; `Placement` transforms results to the global
frame, so that the streets of a town have arbitrary directions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

LANE_WIDTH = 3.5
PARKING_WIDTH = 2.8
MARGIN = 110.0
DIRECTIONS = ((1.0, 0.0), (0.0, 1.0), (-1.0, 0.0), (0.0, -1.0))
"""Unit vectors of the headings 0..3: east, north, west, south of the plan."""

Node = tuple[int, int]


@dataclass(frozen=True)
class Street:
    """One line of the grid at `position` (its x or y), with `lanes` in both directions together and kerb parking."""

    position: float
    lanes: int
    pavement: float

    @property
    def half_width(self) -> float:
        """Distance from the centre line to the kerb in metres."""
        return self.lanes * LANE_WIDTH / 2 + PARKING_WIDTH

    @property
    def reach(self) -> float:
        """Distance from the centre line to the building line in metres."""
        return self.half_width + self.pavement


@dataclass(frozen=True)
class Block:
    """Land between streets: the rectangle inside the building lines, and the pavement widths around it (W, S, E, N)."""

    low: tuple[float, float]
    high: tuple[float, float]
    pavements: tuple[float, float, float, float]

    @property
    def center(self) -> tuple[float, float]:
        """Centre of the rectangle as (x, y) in metres."""
        return (self.low[0] + self.high[0]) / 2, (self.low[1] + self.high[1]) / 2


@dataclass(frozen=True)
class Placement:
    """Rigid motion from the plan's frame to the global frame: rotate by `angle`, then add `offset`."""

    angle: float
    offset: tuple[float, float]

    def points(self, xy: np.ndarray) -> np.ndarray:
        """Rotates and moves points of shape (..., 2)."""
        return self.vectors(xy) + np.asarray(self.offset)

    def vectors(self, xy: np.ndarray) -> np.ndarray:
        """Rotates vectors of shape (..., 2)."""
        c, s = np.cos(self.angle), np.sin(self.angle)
        return np.asarray(xy) @ np.array([[c, s], [-s, c]])

    def point(self, x: float, y: float) -> tuple[float, float]:
        """Rotates and moves one point; returns Python floats."""
        moved = self.points(np.array([x, y]))
        return float(moved[0]), float(moved[1])


@dataclass(frozen=True)
class Grid:
    """Streets along y (`columns`) and along x (`rows`); `closed` holds (column, row) of each missing column segment.

    Segment (c, r) of column c lies between rows r and r + 1. Nodes are (column, row) pairs; `size` is the extent.
    """

    columns: tuple[Street, ...]
    rows: tuple[Street, ...]
    closed: frozenset[Node]
    size: tuple[float, float]

    def position(self, node: Node) -> np.ndarray:
        """Position of the centre of a junction, shape (2,), in metres."""
        return np.array([self.columns[node[0]].position, self.rows[node[1]].position])

    def street(self, node: Node, heading: int) -> Street:
        """The street on which one leaves `node` in direction `heading`."""
        return self.columns[node[0]] if heading % 2 else self.rows[node[1]]

    def has_arm(self, node: Node, heading: int) -> bool:
        """Returns whether a street leaves `node` in direction `heading`."""
        column, row = node
        return not (heading == 1 and (column, row) in self.closed) and not (
            heading == 3 and (column, row - 1) in self.closed
        )

    def next_node(self, node: Node, heading: int) -> Node | None:
        """The junction at the end of an arm, or None if the arm ends at the border of the town."""
        column, row = node[0] + (heading == 0) - (heading == 2), node[1] + (heading == 1) - (heading == 3)
        inside = 0 <= column < len(self.columns) and 0 <= row < len(self.rows)
        return (column, row) if inside else None

    def clearance(self, node: Node, heading: int) -> float:
        """Distance from the centre of `node` to the stop line of its arm towards `heading`."""
        return self.street(node, heading + 1).reach + 1.0

    def nodes(self) -> list[Node]:
        """All junctions of the grid as (column, row) pairs."""
        return [(c, r) for c in range(len(self.columns)) for r in range(len(self.rows))]

    def column_runs(self) -> list[tuple[int, float, float]]:
        """Unbroken stretches (column, y start, y end) of streets along y; a broken one ends at the kerb of a row."""
        runs = []
        for c in range(len(self.columns)):
            start = 0.0
            for r, row in enumerate(self.rows):
                if (c, r) in self.closed:
                    runs.append((c, start, row.position - row.half_width))
                    start = self.rows[r + 1].position + self.rows[r + 1].half_width
            runs.append((c, start, self.size[1]))
        return runs

    def blocks(self) -> list[Block]:
        """The land between streets; the blocks on both sides of a missing segment are merged."""
        blocks = []
        for r in range(-1, len(self.rows)):
            left = None
            for c in range(-1, len(self.columns)):
                left = c if left is None else left
                if (c + 1, r) not in self.closed:
                    blocks.append(self._block(left, c + 1, r))
                    left = None
        return blocks

    def _block(self, left: int, right: int, below: int) -> Block:
        west, west_pavement = _edge(self.columns, left, 0.0, 1)
        east, east_pavement = _edge(self.columns, right, self.size[0], -1)
        south, south_pavement = _edge(self.rows, below, 0.0, 1)
        north, north_pavement = _edge(self.rows, below + 1, self.size[1], -1)
        return Block((west, south), (east, north), (west_pavement, south_pavement, east_pavement, north_pavement))


def _edge(streets: tuple[Street, ...], index: int, border: float, side: int) -> tuple[float, float]:
    """Building line on one `side` of a street and its pavement width, or the border of town if there is no street."""
    if not 0 <= index < len(streets):
        return border, 0.0
    return streets[index].position + side * streets[index].reach, streets[index].pavement


def make_grid(rng: np.random.Generator, lines: int = 5) -> Grid:
    """Draws a grid of `lines` x `lines` streets, 65 to 115 m apart; about every eighth column segment is missing."""
    columns, width = _make_streets(rng, lines)
    rows, height = _make_streets(rng, lines)
    closed: set[Node] = set()
    for c in range(1, lines - 1):
        for r in range(lines - 1):
            # Neighbouring segments are kept, so that every junction has at least three arms.
            if rng.random() < 0.2 and (c, r - 1) not in closed and (c - 1, r) not in closed:
                closed.add((c, r))
    return Grid(columns, rows, frozenset(closed), (width, height))


def _make_streets(rng: np.random.Generator, lines: int) -> tuple[tuple[Street, ...], float]:
    positions = MARGIN + np.concatenate([[0.0], np.cumsum(rng.uniform(65.0, 115.0, lines - 1))])
    lanes = rng.choice([2, 4], size=lines, p=[0.6, 0.4])
    pavements = rng.uniform(3.2, 4.8, lines)
    streets = tuple(Street(float(p), int(n), float(w)) for p, n, w in zip(positions, lanes, pavements))
    return streets, float(positions[-1] + MARGIN)


def make_placement(rng: np.random.Generator, size: tuple[float, float]) -> Placement:
    """Draws the town's orientation; the offset makes all global coordinates positive, as nuScenes map masks need."""
    angle = float(rng.uniform(0.0, 2 * np.pi))
    corners = np.array([[0.0, 0.0], [size[0], 0.0], [0.0, size[1]], list(size)])
    low = Placement(angle, (0.0, 0.0)).points(corners).min(axis=0)
    return Placement(angle, (float(-low[0]), float(-low[1])))
