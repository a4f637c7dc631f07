"""The ground of a town, painted as a map seen from above: streets, markings, pavements, grass and shadows.

Cameras look up their ground pixels in it, at coarser levels for greater distances; the LiDAR looks up its intensities.
A scene has one coarse map, and a fine map of the surroundings of the car that is painted again when the car has moved.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

from . import materials as m
from .mesh_town import corners, crown_base
from .road_paint import Canvas, Drawing, draw_roads
from .scene import Town
from .shading import Daylight

MAX_SIDE = 3072
"""Largest side length of the coarse map in texels."""

FINEST = 0.08
"""Smallest texel size of the coarse map in metres."""

NEAR_SIDE, NEAR_STEP = 40.0, 10.0
"""Side length of the fine map in metres, and spacing of the grid on which its centre lies."""

NEAR_REACH = (NEAR_SIDE - NEAR_STEP) / 2 - 0.5
"""Distance from the car in metres, along x or y, up to which the fine map is valid."""

_TILE = 64
_SCALES = ((14.0, 14.0), (2.5, 9.0), (0.35, 12.0))
"""Sizes in metres and strengths of the patches in the texture of grass."""


@dataclass(frozen=True, eq=False)
class GroundMap:
    """A painted map of the ground.

    Attributes:
        origin: Global (x, y) of the outer corner of texel (0, 0); columns run along x, rows along y.
        resolution: Metres per texel of level 0.
        levels: Images (H, W, 4) uint8, each half the size of the previous one: lit RGB, and 255 where the sun shines.
        reflectivity: LiDAR intensity (H, W) uint8 at level 0.
    """

    origin: tuple[float, float]
    resolution: float
    levels: tuple[np.ndarray, ...]
    reflectivity: np.ndarray

    def intensity(self, points: np.ndarray) -> np.ndarray:
        """LiDAR reflectivity (N,) float32 at (N, 2) global positions; outside of the map the border value is used."""
        height, width = self.reflectivity.shape
        index = ((points - np.asarray(self.origin, np.float32)) / self.resolution).astype(np.int32)
        rows, columns = np.clip(index[:, 1], 0, height - 1), np.clip(index[:, 0], 0, width - 1)
        return self.reflectivity[rows, columns].astype(np.float32)


class Ground:
    """Paints the ground of one scene in a given light; the same arguments give the same maps.

    Args:
        town: Streets and objects on the ground.
        daylight: Light of the scene.
        seed: Seed of grass, grain and wear.
        texel: Metres per texel of the fine map.

    Attributes:
        coarse: Map of the bounding box of the town's objects, or of the town's extent if it has no objects.
    """

    def __init__(self, town: Town, daylight: Daylight, seed: int, texel: float) -> None:
        """Draws the polygons and paints the coarse map."""
        rng = np.random.default_rng((seed, 71))
        self._town, self._daylight, self._texel = town, daylight, texel
        self._patches = [_patches(rng, sigma) for _, sigma in _SCALES]
        self._grain = np.clip(rng.normal(128.0, 7.0, (_TILE * 4, _TILE * 4)), 0, 255).astype(np.uint8)
        self._drawing = Drawing()
        for building in town.buildings:
            self._drawing.polygon(_grown(corners(building), 3.0), (150, 145, 136), 'pavement')
        draw_roads(self._drawing, town.roads, rng)
        self._shadows = _shadow_polygons(town, daylight)
        self._near: tuple[tuple[float, float], GroundMap] | None = None
        x0, y0, x1, y1 = _bounds(town)
        resolution = max(FINEST, max(x1 - x0, y1 - y0) / MAX_SIDE)
        shape = (math.ceil((y1 - y0) / resolution), math.ceil((x1 - x0) / resolution))
        self.coarse = self._paint((x0, y0), shape, resolution, 6)

    def near(self, position: np.ndarray) -> GroundMap:
        """The fine map around a global (x, y), valid up to `NEAR_REACH`; it depends only on the position."""
        middle = np.round(np.asarray(position[:2], np.float64) / NEAR_STEP) * NEAR_STEP
        origin = (float(middle[0]) - NEAR_SIDE / 2, float(middle[1]) - NEAR_SIDE / 2)
        if self._near is None or self._near[0] != origin:
            side = round(NEAR_SIDE / self._texel)
            self._near = (origin, self._paint(origin, (side, side), self._texel, 3))
        return self._near[1]

    def _paint(self, origin: tuple[float, float], shape: tuple[int, int], resolution: float, levels: int) -> GroundMap:
        albedo = np.empty((*shape, 3), np.uint8)
        albedo[:] = (92, 108, 52)
        for (metres, _), tile in zip(_SCALES, self._patches):
            if metres > 2 * resolution:
                cv2.multiply(
                    albedo, _stretched(tile, origin, shape, resolution, metres, cv2.INTER_LINEAR), albedo, scale=1 / 128
                )
        canvas = Canvas(albedo, np.full(shape, m.GROUND_REFLECTIVITY['grass'], np.uint8), origin, resolution)
        canvas.paint(self._drawing)
        grain = _stretched(self._grain, origin, shape, resolution, max(resolution, 0.04), cv2.INTER_LINEAR)
        cv2.multiply(albedo, cv2.merge([grain] * 3), albedo, scale=1 / 128)
        sunny = np.full(shape, 255, np.uint8)
        for polygon in self._shadows:
            canvas.stencil(sunny, polygon)
        images = [_light(_contact(albedo, self._town, canvas), sunny, self._daylight)]
        for _ in range(levels - 1):
            size = (max(1, images[-1].shape[1] // 2), max(1, images[-1].shape[0] // 2))
            images.append(cv2.resize(images[-1], size, interpolation=cv2.INTER_AREA))
        return GroundMap(origin, resolution, tuple(images), canvas.reflectivity)


def _bounds(town: Town) -> tuple[float, float, float, float]:
    """The part of the town's extent that contains its objects, with a margin."""
    places = [b.center for b in town.buildings] + [t.position for t in town.trees] + [p.position for p in town.poles]
    if not places:
        return town.extent
    low, high = np.min(places, axis=0) - 25.0, np.max(places, axis=0) + 25.0
    x0, y0, x1, y1 = town.extent
    return max(x0, float(low[0])), max(y0, float(low[1])), min(x1, float(high[0])), min(y1, float(high[1]))


def _patches(rng: np.random.Generator, sigma: float) -> np.ndarray:
    """Colour factors (_TILE, _TILE, 3) uint8 about 128 that vary the grass between green and straw."""
    tile = np.clip(rng.normal(128.0, sigma, (_TILE, _TILE, 3)) * (1.06, 1.0, 1.0) - (7, 0, 0), 0, 255).astype(np.uint8)
    tile[..., 1] = tile[..., 0] // 2 + tile[..., 1] // 2
    return tile


def _stretched(
    tile: np.ndarray,
    origin: tuple[float, float],
    shape: tuple[int, int],
    resolution: float,
    metres: float,
    interpolation: int,
) -> np.ndarray:
    """Cuts a map out of a plane that repeats a tile with `metres` per cell; neighbouring maps match at their edges."""
    scale = resolution / metres
    period = tile.shape[0] * metres
    shift = [(value % period + resolution / 2) / metres - 0.5 for value in origin]
    matrix = np.array([[scale, 0.0, shift[0]], [0.0, scale, shift[1]]])
    return cv2.warpAffine(
        tile, matrix, (shape[1], shape[0]), flags=interpolation | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_WRAP
    )


def _grown(outline: np.ndarray, margin: float) -> np.ndarray:
    """Moves the corners of a rectangle (4, 2) outwards by `margin`."""
    middle = outline.mean(axis=0)
    return middle + (outline - middle) * (1 + margin / max(float(np.abs(outline - middle).max()), 1.0))


def _contact(albedo: np.ndarray, town: Town, canvas: Canvas) -> np.ndarray:
    """Darkens the ground along the foot of buildings, where half of the sky is hidden."""
    texel = 0.5
    shape = tuple(math.ceil(side * canvas.resolution / texel) for side in albedo.shape[:2])
    mask = np.zeros(shape, np.uint8)
    for building in town.buildings:
        cv2.fillPoly(mask, [np.round((corners(building) - canvas.origin) / texel - 0.5).astype(np.int32)], 255)
    soft = cv2.blur(mask, (7, 7))
    factor = (255 - soft.astype(np.float32) * 0.45).astype(np.uint8)
    full = cv2.resize(factor, (albedo.shape[1], albedo.shape[0]))
    return cv2.multiply(albedo, cv2.merge([full] * 3), scale=1 / 255)


def _shadow_polygons(town: Town, daylight: Daylight) -> list[np.ndarray]:
    """Outlines on the ground of the shadows of buildings, trees and poles."""
    shift = -daylight.direction[:2] / max(float(daylight.direction[2]), 0.05)
    result = []
    for building in town.buildings:
        ground = corners(building)
        result.append(_hull(ground, ground + building.height * shift))
    angle = np.arange(12) * math.pi / 6
    circle = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    for tree in town.trees:
        low, crown = crown_base(tree), tree.height - crown_base(tree)
        rings = [tree.position + shift * (low + part * crown) + size * tree.crown_radius * circle
                 for part, size in ((0.15, 0.6), (0.5, 0.92), (0.9, 0.5))]  # fmt: skip
        result += [_hull(*rings), _streak(tree.position, shift * low, 0.03 * tree.height)]
    return result + [_streak(pole.position, shift * pole.height, 0.08) for pole in town.poles]


def _hull(*points: np.ndarray) -> np.ndarray:
    return cv2.convexHull(np.concatenate(points).astype(np.float32))[:, 0]


def _streak(foot: tuple[float, float], along: np.ndarray, half: float) -> np.ndarray:
    """The outline of the shadow of a thin object."""
    across = np.array([-along[1], along[0]]) / max(float(np.hypot(*along)), 1e-6) * half
    start = np.asarray(foot)
    return np.array([start - across, start + across, start + along + across, start + along - across])


def _light(albedo: np.ndarray, sunny: np.ndarray, daylight: Daylight) -> np.ndarray:
    """Albedo times sunlight or skylight and, as last channel, the mask of the sunlit texels: (H, W, 4)."""
    ramp = np.arange(256, dtype=np.float32)[:, None]
    tables = [np.clip(ramp * factor, 0, 255).astype(np.uint8)[None] for factor in daylight.ground_factors()]
    lit, shaded = (cv2.LUT(albedo, table) for table in tables)
    cv2.copyTo(shaded, cv2.bitwise_not(sunny), lit)
    return cv2.merge([lit, sunny])
