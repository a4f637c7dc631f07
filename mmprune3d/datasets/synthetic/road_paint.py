"""Polygons of streets seen from above: pavements, kerbs, asphalt, lane markings, zebra crossings and stop lines."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from . import materials as m
from .scene import Road

ASPHALT, PAVEMENT, KERB, WHITE = (84, 85, 88), (150, 147, 141), (178, 176, 170), (225, 225, 220)
_SHIFT = 4


class Drawing:
    """Convex polygons in global metres, each with a colour and a kind of ground, in the order of painting."""

    def __init__(self) -> None:
        """Creates an empty drawing."""
        self.shapes: list[tuple[np.ndarray, tuple[int, int, int], str]] = []
        self._bounds: np.ndarray | None = None

    def polygon(self, points: np.ndarray, color: tuple[int, int, int], kind: str) -> None:
        """Adds a polygon of (N, 2) points; `kind` is a key of `materials.GROUND_REFLECTIVITY`."""
        self.shapes.append((points, color, kind))
        self._bounds = None

    def within(self, low: np.ndarray, high: np.ndarray) -> list[tuple[np.ndarray, tuple[int, int, int], str]]:
        """The polygons that may touch the rectangle from `low` to `high`."""
        if not self.shapes:
            return []
        if self._bounds is None:
            self._bounds = np.array([[*points.min(axis=0), *points.max(axis=0)] for points, _, _ in self.shapes])
        touching = (self._bounds[:, :2] <= high).all(axis=1) & (self._bounds[:, 2:] >= low).all(axis=1)
        return [self.shapes[index] for index in np.flatnonzero(touching)]


@dataclass(frozen=True, eq=False)
class Canvas:
    """Images that are painted in global metres.

    Attributes:
        albedo: Colours (H, W, 3) uint8.
        reflectivity: LiDAR intensity (H, W) uint8.
        origin: Global (x, y) of texel corner (0, 0).
        resolution: Metres per texel.
    """

    albedo: np.ndarray
    reflectivity: np.ndarray
    origin: tuple[float, float]
    resolution: float

    def paint(self, drawing: Drawing) -> None:
        """Paints the polygons of a drawing that are inside the images."""
        low = np.asarray(self.origin)
        high = low + np.array(self.reflectivity.shape[::-1]) * self.resolution
        for points, color, kind in drawing.within(low, high):
            self.polygon(points, color, kind)

    def texels(self, points: np.ndarray) -> np.ndarray:
        """Texel coordinates (N, 2) (column, row) of global points, with centres of texels at integers."""
        return (np.asarray(points, np.float64) - self.origin) / self.resolution - 0.5

    def polygon(self, points: np.ndarray, color: tuple[int, int, int], kind: str) -> None:
        """Fills a convex polygon with a colour and with the reflectivity of a kind of ground."""
        fixed = np.round(self.texels(points) * (1 << _SHIFT)).astype(np.int32)
        cv2.fillConvexPoly(self.albedo, fixed, color, cv2.LINE_AA, _SHIFT)
        cv2.fillConvexPoly(self.reflectivity, fixed, m.GROUND_REFLECTIVITY[kind], cv2.LINE_8, _SHIFT)

    def stencil(self, mask: np.ndarray, points: np.ndarray) -> None:
        """Sets a convex polygon to 0 in a mask that has the size of the images."""
        fixed = np.round(self.texels(points) * (1 << _SHIFT)).astype(np.int32)
        cv2.fillConvexPoly(mask, fixed, 0, cv2.LINE_8, _SHIFT)


@dataclass(frozen=True)
class _Frame:
    """A street with its direction and the intervals (from, to) of its length that are inside junctions."""

    road: Road
    start: np.ndarray
    along: np.ndarray
    left: np.ndarray
    length: float
    junctions: tuple[tuple[float, float], ...]

    def rectangle(self, span: tuple[float, float], across: tuple[float, float]) -> np.ndarray:
        """Corners (4, 2) of a stretch of the street; `across` is measured from the middle to the left."""
        ends = [self.start + s * self.along for s in span]
        sides = [c * self.left for c in across]
        return np.array([ends[0] + sides[0], ends[1] + sides[0], ends[1] + sides[1], ends[0] + sides[1]])


def draw_roads(drawing: Drawing, roads: Sequence[Road], rng: np.random.Generator) -> None:
    """Draws all streets; asphalt covers the pavements of crossing streets, and junctions have no lane markings."""
    frames = [_frame(road, roads) for road in roads]
    for frame in frames:
        reach = frame.road.width / 2 + frame.road.pavement
        drawing.polygon(frame.rectangle((0, frame.length), (-reach, reach)), PAVEMENT, 'pavement')
        _slabs(drawing, frame)
    for frame in frames:
        reach = frame.road.width / 2 + 0.18
        drawing.polygon(frame.rectangle((0, frame.length), (-reach, reach)), KERB, 'kerb')
    for frame in frames:
        half = frame.road.width / 2
        drawing.polygon(frame.rectangle((0, frame.length), (-half, half)), ASPHALT, 'asphalt')
    for frame in frames:
        _wear(drawing, frame, rng)
    for frame in frames:
        _lane_lines(drawing, frame)
        _crossings(drawing, frame)


def _frame(road: Road, roads: Sequence[Road]) -> _Frame:
    start, end = np.asarray(road.start, np.float64), np.asarray(road.end, np.float64)
    length = float(np.linalg.norm(end - start))
    along = (end - start) / max(length, 1e-9)
    left = np.array([-along[1], along[0]])
    spans = [_junction(start, along, left, length, road, other) for other in roads if other is not road]
    return _Frame(road, start, along, left, length, tuple(span for span in spans if span is not None))


def _junction(
    start: np.ndarray, along: np.ndarray, left: np.ndarray, length: float, road: Road, other: Road
) -> tuple[float, float] | None:
    """The interval of a street that another street's carriageway crosses, or None."""
    a, b = np.asarray(other.start, np.float64) - start, np.asarray(other.end, np.float64) - start
    other_length = float(np.linalg.norm(b - a))
    direction = (b - a) / max(other_length, 1e-9)
    sine = float(along[0] * direction[1] - along[1] * direction[0])
    if abs(sine) < 0.3:
        return None
    reach = -float(a @ left) / sine  # distance along the other street to its intersection with the middle of this one
    middle = float((a + reach * direction) @ along)
    half = other.width / 2 / abs(sine)
    slack = road.width / 2 + 1.0
    if not (-slack <= reach <= other_length + slack and -half <= middle <= length + half):
        return None
    return middle - half, middle + half


def _free(frame: _Frame, margin: float) -> list[tuple[float, float]]:
    """Intervals of a street outside its junctions, shortened by `margin` metres at each junction."""
    spans, at = [], 0.0
    for low, high in sorted(frame.junctions):
        if low - margin > at:
            spans.append((at, low - margin))
        at = max(at, high + margin)
    if at < frame.length:
        spans.append((at, frame.length))
    return spans


def _slabs(drawing: Drawing, frame: _Frame) -> None:
    """Joints of the paving slabs, 1.2 m apart."""
    inner, outer = frame.road.width / 2 + 0.18, frame.road.width / 2 + frame.road.pavement
    for s in np.arange(0.0, frame.length, 1.2):
        for side in (-1, 1):
            drawing.polygon(frame.rectangle((s, s + 0.05), (side * inner, side * outer)), (122, 119, 114), 'pavement')
    for c in np.arange(inner + 1.2, outer, 1.2):
        for side in (-1, 1):
            drawing.polygon(
                frame.rectangle((0, frame.length), (side * c, side * (c + 0.05))), (122, 119, 114), 'pavement'
            )


def _wear(drawing: Drawing, frame: _Frame, rng: np.random.Generator) -> None:
    """Gutters, wheel tracks, repaired patches and manhole covers."""
    half, lane = frame.road.width / 2, frame.road.width / max(frame.road.lanes, 1)
    for side in (-1, 1):
        for span in _free(frame, 0.0):
            drawing.polygon(frame.rectangle(span, (side * half, side * (half - 0.3))), (70, 70, 72), 'asphalt')
    for index in range(frame.road.lanes):
        middle = -half + (index + 0.5) * lane
        for offset in (-0.8, 0.8):
            for span in _free(frame, 0.0):
                drawing.polygon(
                    frame.rectangle(span, (middle + offset - 0.3, middle + offset + 0.3)), (78, 79, 82), 'asphalt'
                )
    for _ in range(int(frame.length / 12)):
        s, c = float(rng.uniform(0, frame.length)), float(rng.uniform(-half + 1, half - 1))
        size, tone = rng.uniform(0.6, 3.0, 2), int(rng.integers(62, 98))
        drawing.polygon(
            frame.rectangle((s, s + size[0] * 1.5), (c - size[1] / 3, c + size[1] / 3)),
            (tone, tone, tone + 2),
            'asphalt',
        )
    angle = np.arange(10) * math.pi / 5
    circle = 0.33 * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    for s in np.arange(float(rng.uniform(5, 15)), frame.length, 31.0):
        drawing.polygon(frame.start + s * frame.along + 0.25 * lane * frame.left + circle, (58, 57, 56), 'asphalt')


def _lane_lines(drawing: Drawing, frame: _Frame) -> None:
    """Solid edge lines, a solid double middle line on wide streets, dashes between lanes."""
    half, lanes = frame.road.width / 2, frame.road.lanes
    lane = frame.road.width / max(lanes, 1)
    for span in _free(frame, 5.4):
        for side in (-1, 1):
            drawing.polygon(frame.rectangle(span, (side * (half - 0.50), side * (half - 0.38))), WHITE, 'marking')
        for index in range(1, lanes):
            c = -half + index * lane
            if lanes >= 4 and 2 * index == lanes:
                for shift in (-0.15, 0.15):
                    drawing.polygon(frame.rectangle(span, (c + shift - 0.06, c + shift + 0.06)), WHITE, 'marking')
                continue
            for s in np.arange(span[0], span[1] - 1.0, 6.0):
                drawing.polygon(frame.rectangle((s, min(s + 3.0, span[1])), (c - 0.075, c + 0.075)), WHITE, 'marking')


def _crossings(drawing: Drawing, frame: _Frame) -> None:
    """Draws zebra crossings on each arm of every junction, and stop lines on the right-hand side before them."""
    half = frame.road.width / 2
    for low, high in frame.junctions:
        for edge, sign in ((low, -1.0), (high, 1.0)):
            near, far, stop = edge + sign * 1.0, edge + sign * 4.0, edge + sign * 5.0
            if not (min(near, far) > 0 and max(near, far) < frame.length):
                continue
            for c in np.arange(-half + 0.35, half - 0.6, 1.0):
                drawing.polygon(frame.rectangle((near, far), (c, c + 0.5)), WHITE, 'marking')
            side = (-half + 0.4, -0.1) if sign < 0 else (0.1, half - 0.4)
            drawing.polygon(frame.rectangle((stop - 0.2, stop + 0.2), side), WHITE, 'marking')
