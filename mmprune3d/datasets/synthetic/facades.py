"""Facades of buildings: one texture per building, made of bays and floors with windows, doors, shops and balconies."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from . import materials as m
from .scene import Building, Town
from .shading import Daylight

TEXELS = 40
"""Side length in texels of the square tile that shows one bay of one floor."""

BAY, FLOOR = 3.0, 3.1
"""Approximate width of a bay and height of a floor in metres; walls have a whole number of both."""

LEVELS = 5


@dataclass(frozen=True, eq=False)
class FacadeAtlas:
    """Textures of all facades in one array.

    Attributes:
        texels: Colours (T,) uint32, bytes RGBX.
        base: Index of the first texel, (buildings, LEVELS) int32.
        shape: Height and width in texels, (buildings, LEVELS, 2) int32; row 0 is at the foot of the wall.
        scale: Texels per metre along and up at level 0, (buildings, 2) float32.
    """

    texels: np.ndarray
    base: np.ndarray
    shape: np.ndarray
    scale: np.ndarray

    def sample(self, building: np.ndarray, along: np.ndarray, height: np.ndarray, footprint: np.ndarray) -> np.ndarray:
        """Albedo at points on walls, (N, 3) uint8.

        Args:
            building: Index of the building (N,).
            along: Distance in metres along its walls (N,).
            height: Height in metres above the ground (N,).
            footprint: Size in metres of the area on the wall that one pixel covers (N,).
        """
        scale = self.scale[building]
        level = np.clip(np.log2(np.maximum(footprint * scale[:, 0], 1.0)) + 0.4, 0, LEVELS - 1).astype(np.int32)
        shape = self.shape[building, level]
        shrink = np.ldexp(np.float32(1.0), -level)
        column = (along * scale[:, 0] * shrink).astype(np.int32) % shape[:, 1]
        row = np.clip((height * scale[:, 1] * shrink).astype(np.int32), 0, shape[:, 0] - 1)
        colors = self.texels[self.base[building, level] + row * shape[:, 1] + column]
        return colors.view(np.uint8).reshape(-1, 4)[:, :3]


def build_facades(town: Town, daylight: Daylight) -> FacadeAtlas:
    """Paints the facades of all buildings of a town; windows mirror the sky of the given daylight."""
    chunks, base, shapes, scales, total = [], [], [], [], 0
    for building in town.buildings:
        image, scale = _facade(building, daylight)
        scales.append(scale)
        rows = []
        for level in range(LEVELS):
            size = (max(1, image.shape[1] >> level), max(1, image.shape[0] >> level))
            small = image if level == 0 else cv2.resize(image, size, interpolation=cv2.INTER_AREA)
            chunks.append(small.reshape(-1, 4))
            rows.append((total, *small.shape[:2]))
            total += small.shape[0] * small.shape[1]
        base.append([row[0] for row in rows])
        shapes.append([row[1:] for row in rows])
    count = len(town.buildings)
    texels = np.concatenate(chunks) if chunks else np.zeros((1, 4), np.uint8)
    return FacadeAtlas(
        np.ascontiguousarray(texels).view(np.uint32).ravel(), np.array(base, np.int64).reshape(count, LEVELS),
        np.array(shapes, np.int32).reshape(count, LEVELS, 2), np.array(scales, np.float32).reshape(count, 2),
    )  # fmt: skip


def _facade(building: Building, daylight: Daylight) -> tuple[np.ndarray, tuple[float, float]]:
    """Texture (H, W, 4) around all four walls, starting at the foot, and its texels per metre along and up."""
    rng = np.random.default_rng(building.seed)
    around = 2 * sum(building.size)
    bays, floors = max(4, round(around / BAY)), max(1, round(building.height / FLOOR))
    wall = np.asarray(m.pick(rng, m.FACADES, 0.12), np.float32)
    shop = floors > 2 and rng.random() < 0.6
    tiles = _tiles(wall, daylight, rng)
    choice = rng.choice(len(tiles), size=(floors, bays), p=_mixture(rng, len(tiles)))
    grid = tiles[choice]
    ground = _ground_tiles(wall, daylight, rng, shop)
    grid[0] = ground[rng.integers(0, len(ground), bays)]
    image = grid.transpose(0, 2, 1, 3, 4).reshape(floors * TEXELS, bays * TEXELS, 3)
    image = image * (1 + rng.normal(0, 0.025, image.shape[:2]).astype(np.float32)[..., None])
    rise = np.linspace(0, 1, image.shape[0], dtype=np.float32)[:, None, None] * building.height
    image *= 0.78 + 0.22 * np.clip(rise / 3.0, 0, 1)
    image[-max(2, TEXELS // 6) :] *= 0.82
    result = np.zeros((*image.shape[:2], 4), np.uint8)
    result[..., :3] = np.clip(image, 0, 1) * 255
    return result, (bays * TEXELS / around, floors * TEXELS / building.height)


def _mixture(rng: np.random.Generator, count: int) -> np.ndarray:
    weights = rng.uniform(0.1, 1.0, count) ** 2
    return weights / weights.sum()


def _box(tile: np.ndarray, span: tuple[float, float, float, float], color: np.ndarray | m.Color) -> None:
    """Fills the rectangle (u0, u1, v0, v1), in fractions from the lower left, of a tile with row 0 at the bottom."""
    u0, u1, v0, v1 = (round(value * TEXELS) for value in span)
    tile[v0:v1, u0:u1] = color


def _tiles(wall: np.ndarray, daylight: Daylight, rng: np.random.Generator) -> np.ndarray:
    """Tiles (6, TEXELS, TEXELS, 3) of the bays of an upper floor in the style of one building."""
    frame = np.float32(m.WHITE if rng.random() < 0.6 else (0.3, 0.22, 0.16))
    half, low = float(rng.uniform(0.17, 0.32)), float(rng.uniform(0.18, 0.32))
    high = float(rng.uniform(0.78, 0.86))
    brick = wall * (1 + 0.06 * np.sin(np.arange(TEXELS) * 2 * np.pi / 4))[:, None, None].astype(np.float32)
    dark, bright = np.float32([0.10, 0.13, 0.17]), 0.45 * daylight.zenith + 0.08
    dusk, tiles = float(daylight.direction[2]) < 0.2, []
    for index in range(6):
        tile = np.broadcast_to(brick if rng.random() < 0.5 else wall, (TEXELS, TEXELS, 3)).copy()
        tile[: TEXELS // 20 + 1] = wall * 0.8  # ledge between floors
        _box(tile, (0.46 - half, 0.54 + half, low - 0.06, high + 0.05), frame)
        pane = dark + (bright - dark) * np.linspace(0.15, 1.0, TEXELS, dtype=np.float32)[:, None, None] * float(
            rng.uniform(0.4, 1.0)
        )
        u0, u1, v0, v1 = (round(v * TEXELS) for v in (0.5 - half, 0.5 + half, low, high))
        tile[v0:v1, u0:u1] = pane[v0:v1]
        if index == 1:
            _box(tile, (0.5 - half, 0.5 + half, (low + high) / 2, high), (0.75, 0.70, 0.6))  # blind
        elif index == 2:
            _box(tile, (0.5 - half, 0.5 - 0.5 * half, low, high), (0.7, 0.66, 0.62))  # curtains
            _box(tile, (0.5 + 0.5 * half, 0.5 + half, low, high), (0.7, 0.66, 0.62))
        elif index == 3:
            _box(tile, (0.12, 0.88, 0.02, 0.30), wall * 0.7)  # balcony
        elif index == 4:
            tile[v0:v1, u0:u1] = (0.95, 0.78, 0.46) if dusk else (0.80, 0.79, 0.76)  # lit room or drawn curtain
        _box(tile, (0.485, 0.515, low, high), frame)
        tiles.append(tile)
    return np.stack(tiles)


def _ground_tiles(wall: np.ndarray, daylight: Daylight, rng: np.random.Generator, shop: bool) -> np.ndarray:
    """Tiles (5, TEXELS, TEXELS, 3) of the ground floor: shop windows with signs, or windows, doors and garages."""
    plinth, tiles = wall * 0.62, []
    for index in range(5):
        tile = np.broadcast_to(wall * 0.92, (TEXELS, TEXELS, 3)).copy()
        tile[: TEXELS // 8] = plinth
        if shop and index < 4:
            sign = np.float32(rng.uniform(0.1, 0.85, 3))
            _box(tile, (0.06, 0.94, 0.10, 0.72), 0.12 + 0.4 * daylight.horizon * float(rng.uniform(0.2, 1.0)))
            _box(tile, (0.06, 0.94, 0.72, 0.88), sign)
            _box(tile, (0.2, 0.8, 0.77, 0.83), np.clip(1.2 - sign, 0, 1))
            if index == 0:
                _box(tile, (0.36, 0.64, 0.0, 0.68), sign * 0.5)
        elif index == 0:
            _box(tile, (0.32, 0.68, 0.0, 0.70), m.pick(rng, m.TRUCK_COLORS))
        elif index == 4:
            _box(tile, (0.08, 0.92, 0.0, 0.74), (0.60, 0.60, 0.58))
            tile[: round(0.74 * TEXELS) : 6, 4:-4] = (0.45, 0.45, 0.44)
        else:
            _box(tile, (0.22, 0.78, 0.26, 0.80), m.WHITE)
            _box(tile, (0.26, 0.74, 0.30, 0.76), (0.16, 0.20, 0.24))
            _box(tile, (0.485, 0.515, 0.30, 0.76), m.WHITE)
        tiles.append(tile)
    return np.stack(tiles)
