"""Curves along which actors move: polylines by arc length, routes through the street grid, and walks on pavements."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .layout import DIRECTIONS, LANE_WIDTH, Block, Grid, Node

SPACING = 0.5


class Path:
    """A polyline, resampled every half metre, that gives the pose at any arc length.

    Args:
        points: Corners of the line, shape (N, 2), N >= 2, in metres.
    """

    def __init__(self, points: np.ndarray) -> None:
        steps = np.linalg.norm(np.diff(points, axis=0), axis=1)
        keep = np.concatenate([[True], steps > 1e-6])
        points, along = points[keep], np.concatenate([[0.0], np.cumsum(steps[steps > 1e-6])])
        self.length = float(along[-1])
        self._s = np.linspace(0.0, self.length, max(2, round(self.length / SPACING) + 1))
        self._xy = np.stack([np.interp(self._s, along, points[:, k]) for k in (0, 1)], axis=1)
        tangent = np.gradient(self._xy, self._s, axis=0)
        self._yaw = np.unwrap(np.arctan2(tangent[:, 1], tangent[:, 0]))

    def pose(self, s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Positions (N, 2) and headings (N,) in radians at arc lengths `s` (N,), which are clamped to the path."""
        xy = np.stack([np.interp(s, self._s, self._xy[:, k]) for k in (0, 1)], axis=-1)
        return xy, np.interp(s, self._s, self._yaw)

    def speed_limits(self, lateral: float = 2.2, braking: float = 2.0) -> tuple[np.ndarray, np.ndarray]:
        """Arc lengths and the speed limit (m/s) at each that keeps lateral acceleration and braking comfortable."""
        curvature = np.abs(np.gradient(self._yaw, self._s))
        limit = np.sqrt(lateral / np.maximum(curvature, 1e-3))
        for k in range(len(limit) - 2, -1, -1):
            limit[k] = min(limit[k], np.sqrt(limit[k + 1] ** 2 + 2 * braking * (self._s[k + 1] - self._s[k])))
        return self._s, limit


@dataclass(frozen=True)
class StopLine:
    """A stop line of a route: its arc length, the junction behind it and the axis (0 along x, 1 along y)."""

    s: float
    node: Node
    axis: int


@dataclass(frozen=True)
class Route:
    """A drivable path with the stop lines on it."""

    path: Path
    stops: tuple[StopLine, ...]


def lane_point(grid: Grid, node: Node, heading: int, along: float, offset: float) -> np.ndarray:
    """A point `along` metres from `node` towards `heading` and `offset` metres to the right of the centre line."""
    forward = np.array(DIRECTIONS[heading % 4])
    return grid.position(node) + along * forward + offset * np.array([forward[1], -forward[0]])


def plan_route(
    rng: np.random.Generator, grid: Grid, node: Node, heading: int, length: float, shift: float = 0.0
) -> Route:
    """Draws a drive of about `length` metres in right-hand lanes that leaves `node` in direction `heading`.

    Args:
        rng: Random generator of the turns.
        grid: Street grid.
        node: Junction where the route begins, behind its crossing.
        heading: First heading, 0..3.
        length: Length in metres after which the route ends.
        shift: Offset in metres to the right of the middle of the lane (for cyclists).

    Returns:
        The path and its stop lines.
    """
    per_side = grid.street(node, heading).lanes // 2
    lane = int(rng.integers(per_side)) if shift == 0.0 else per_side - 1
    points, stops, total = [], [], 0.0
    while True:
        offset = (lane + 0.5) * LANE_WIDTH + shift
        points.append(lane_point(grid, node, heading, grid.clearance(node, heading), offset)[None])
        after = grid.next_node(node, heading)
        if after is None or total > length:
            points.append(lane_point(grid, node, heading, grid.clearance(node, heading) + 60.0, offset)[None])
            break
        end = lane_point(grid, after, heading + 2, grid.clearance(after, heading + 2), -offset)
        total += float(np.linalg.norm(end - points[-1][-1]))
        stops.append(StopLine(total, after, heading % 2))
        turn = _choose_turn(rng, grid, after, heading, lane)
        heading, lane = (heading + turn) % 4, _lane_after(grid, after, heading + turn, turn, lane)
        exit_offset = (lane + 0.5) * LANE_WIDTH + shift
        start = lane_point(grid, after, heading, grid.clearance(after, heading), exit_offset)
        curve = _turn_curve(end, (heading - turn) % 4, start, heading)
        total += float(np.linalg.norm(np.diff(curve, axis=0), axis=1).sum())
        points.append(curve)
        node = after
    return Route(Path(np.concatenate(points)), tuple(stops))


def _choose_turn(rng: np.random.Generator, grid: Grid, node: Node, heading: int, lane: int) -> int:
    """A turn that the junction has and the lane allows: 0 straight on, 1 left, -1 right."""
    outermost = lane == grid.street(node, heading).lanes // 2 - 1
    allowed = [(0, 0.5)] + ([(1, 0.22)] if lane == 0 else []) + ([(-1, 0.28)] if outermost else [])
    allowed = [(turn, weight) for turn, weight in allowed if grid.has_arm(node, (heading + turn) % 4)]
    weights = np.array([weight for _, weight in allowed])
    return allowed[int(rng.choice(len(allowed), p=weights / weights.sum()))][0]


def _lane_after(grid: Grid, node: Node, heading: int, turn: int, lane: int) -> int:
    return {0: lane, 1: 0, -1: grid.street(node, heading).lanes // 2 - 1}[turn]


def _turn_curve(start: np.ndarray, heading: int, end: np.ndarray, new_heading: int, samples: int = 24) -> np.ndarray:
    """A cubic Bezier curve through a junction, tangent to the lanes at both ends; shape (samples, 2)."""
    pull = 0.55 * float(np.abs(end - start).max()) if heading != new_heading else float(np.linalg.norm(end - start)) / 3
    first, second = start + pull * np.array(DIRECTIONS[heading]), end - pull * np.array(DIRECTIONS[new_heading])
    t = np.linspace(0.0, 1.0, samples)[:, None]
    return (1 - t) ** 3 * start + 3 * (1 - t) ** 2 * t * first + 3 * (1 - t) * t**2 * second + t**3 * end


def ring_walk(block: Block, share: float, turns: int = 2) -> Path:
    """A walk around a block on its pavements, at `share` of the pavement's width from the buildings."""
    west, south, east, north = (share * width for width in block.pavements)
    low, high = (block.low[0] - west, block.low[1] - south), (block.high[0] + east, block.high[1] + north)
    corners = np.array([low, (high[0], low[1]), high, (low[0], high[1])])
    rounded = []
    for k, corner in enumerate(corners):
        before, after = (other - corner for other in (corners[k - 1], corners[(k + 1) % 4]))
        rounded.append(_round_corner(corner, before / np.linalg.norm(before), after / np.linalg.norm(after)))
    lap = np.concatenate(rounded)
    return Path(np.concatenate([lap] * turns + [lap[:1]]))


def _round_corner(corner: np.ndarray, before: np.ndarray, after: np.ndarray, radius: float = 1.5) -> np.ndarray:
    t = np.linspace(0.0, 1.0, 6)[:, None]
    return (1 - t) ** 2 * (corner + radius * before) + 2 * (1 - t) * t * corner + t**2 * (corner + radius * after)


def street_walks(grid: Grid, share: float) -> list[Path]:
    """Straight walks on both pavements of every street, across the side streets, `share` of the width from the kerb."""
    walks = []
    for row in grid.rows:
        offset = row.half_width + share * row.pavement
        walks += [
            Path(np.array([[0.0, row.position + side * offset], [grid.size[0], row.position + side * offset]]))
            for side in (-1, 1)
        ]
    for column, start, end in grid.column_runs():
        street = grid.columns[column]
        offset = street.half_width + share * street.pavement
        walks += [
            Path(np.array([[street.position + side * offset, start], [street.position + side * offset, end]]))
            for side in (-1, 1)
        ]
    return walks
