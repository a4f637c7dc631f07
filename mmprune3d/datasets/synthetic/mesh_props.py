"""Meshes of traffic cones and barriers (frame as in `mesh_vehicles`)."""

from __future__ import annotations

import numpy as np

from . import materials as m
from .materials import Material
from .shapes import Mesh, block, cylinder, extrusion, panel

Extent = tuple[float, float, float]


def traffic_cone(extent: Extent, rng: np.random.Generator) -> list[Mesh]:
    """An orange cone with white bands on a square foot, or a slim bollard with bands."""
    length, width, height = extent
    radius = 0.42 * min(length, width)
    slim = float(rng.uniform(0.25, 0.35)) if rng.random() < 0.8 else 0.8
    parts = [block((-length / 2, -width / 2, 0), (length / 2, width / 2, 0.06 * height), m.ORANGE, Material.RUBBER)]
    levels, colors = (0.05, 0.30, 0.48, 0.66, 0.82, 1.0), (m.ORANGE, m.WHITE, m.ORANGE, m.WHITE, m.ORANGE)
    for low, high, color in zip(levels[:-1], levels[1:], colors):
        radii = tuple(radius * (1 - (1 - slim) * level) for level in (low, high))
        material = Material.REFLECTOR if color is m.WHITE else Material.RUBBER
        parts.append(cylinder((0, 0, low * height), (0, 0, high * height), radii, color, material, 10))
    return parts


def barrier(extent: Extent, rng: np.random.Generator) -> list[Mesh]:
    """A striped board on feet, a water-filled plastic block or a concrete wall with stripes, along the longer side."""
    length, width, height = extent
    long, short = max(length, width), min(length, width)
    parts = (_board, _board, _plastic, _concrete)[int(rng.integers(4))](long, short, height)
    if width > length:  # the mesh is built along x and then turned to lie along y
        turn = np.float32([[0, -1, 0], [1, 0, 0], [0, 0, 1]])
        parts = [Mesh(part.vertices @ turn.T, part.faces, part.colors, part.materials) for part in parts]
    return parts


def _stripes(long: float, y: float, low: float, high: float, slant: float) -> list[Mesh]:
    """Red and white slanted plates on both faces at +-y."""
    count = max(3, round(long / 0.35))
    edges = np.linspace(-long / 2, long / 2, count + 1)
    parts = []
    for side in (-1, 1):
        for i, (a, b) in enumerate(zip(edges[:-1], edges[1:])):
            shift = slant if i not in (0, count - 1) else 0.0
            face = np.array(
                [(a, side * y, low), (b, side * y, low), (b + shift, side * y, high), (a + shift, side * y, high)]
            )
            parts.append(
                panel(
                    face, (0, 1, 0, 1), (m.RED, m.WHITE)[i % 2], Material.REFLECTOR, 0.006, (0.0, 0.0, (low + high) / 2)
                )
            )
    return parts


def _board(long: float, short: float, height: float) -> list[Mesh]:
    thick = min(0.06, 0.2 * short)
    parts = [
        block((-long / 2, -thick, z0 * height), (long / 2, thick, z1 * height), m.WHITE, Material.PAINT)
        for z0, z1 in ((0.62, 1.0), (0.20, 0.48))
    ]
    parts += _stripes(long, thick, 0.62 * height, height, 0.08) + _stripes(
        long, thick, 0.20 * height, 0.48 * height, 0.06
    )
    for x in (-0.38 * long, 0.38 * long):
        parts.append(block((x - 0.05, -short / 2, 0), (x + 0.05, short / 2, 0.07 * height), m.DARK, Material.RUBBER))
        parts.append(block((x - 0.03, -0.04, 0.05 * height), (x + 0.03, 0.04, 0.95 * height), m.STEEL, Material.METAL))
    return parts


def _profile(short: float, height: float) -> np.ndarray:
    """Half of the cross-section of a concrete safety barrier."""
    return np.array(
        [
            (-0.5 * short, 0),
            (0.5 * short, 0),
            (0.48 * short, 0.22 * height),
            (0.2 * short, 0.45 * height),
            (0.15 * short, height),
            (-0.15 * short, height),
            (-0.2 * short, 0.45 * height),
            (-0.48 * short, 0.22 * height),
        ]
    )


def _wall(long: float, short: float, height: float, color: m.Color, material: Material) -> Mesh:
    piece = extrusion(_profile(short, height), long / 2, color, material)
    return Mesh(piece.vertices[:, [1, 0, 2]], piece.faces[:, ::-1].copy(), piece.colors, piece.materials)


def _plastic(long: float, short: float, height: float) -> list[Mesh]:
    gap, color = 0.02 * long, (m.RED, m.WHITE)
    pieces = []
    for i, x in enumerate((-0.25 * long, 0.25 * long)):
        piece = _wall(long / 2 - gap, short, height, color[i], Material.PAINT)
        pieces.append(Mesh(piece.vertices + np.float32([x, 0, 0]), piece.faces, piece.colors, piece.materials))
    return pieces


def _concrete(long: float, short: float, height: float) -> list[Mesh]:
    return [
        _wall(long, short, height, (0.62, 0.61, 0.58), Material.WALL),
        *_stripes(long, 0.19 * short, 0.55 * height, 0.9 * height, 0.08),
    ]
