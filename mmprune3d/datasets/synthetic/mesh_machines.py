"""Meshes of construction vehicles: excavators and wheel loaders (frame as in `mesh_vehicles`)."""

from __future__ import annotations

import numpy as np

from . import materials as m
from .materials import Material
from .mesh_vehicles import Extent, glasshouse, plates, wheels
from .shapes import Mesh, block, cylinder, extrusion, frustum_corners


def construction_vehicle(extent: Extent, rng: np.random.Generator) -> list[Mesh]:
    """An excavator on tracks with a raised arm, or a wheel loader with a shovel."""
    return _excavator(extent, rng) if rng.random() < 0.55 else _loader(extent, rng)


def _excavator(extent: Extent, rng: np.random.Generator) -> list[Mesh]:
    length, width, height = extent
    half, rear, front = width / 2, -length / 2, length / 2
    color = m.pick(rng, m.CONSTRUCTION_COLORS)
    track, body = 0.26 * height, 0.58 * length
    parts = []
    for side in (-1, 1):
        y0, y1 = sorted((side * half, side * 0.55 * half))
        shape = np.array(
            [
                (rear, 0.4),
                (rear + 0.1 * body, 0.0),
                (rear + 0.95 * body, 0.0),
                (rear + body, 0.4),
                (rear + 0.95 * body, 1.0),
                (rear + 0.05 * body, 1.0),
            ]
        )
        piece = extrusion(shape * [1, track], (y1 - y0) / 2, m.TYRE, Material.RUBBER)
        parts.append(
            Mesh(piece.vertices + np.float32([0, (y0 + y1) / 2, 0]), piece.faces, piece.colors, piece.materials)
        )
    parts.append(
        block((rear + 0.02, -0.9 * half, track), (rear + 0.8 * body, 0.9 * half, 0.55 * height), color, Material.PAINT)
    )
    parts.append(
        block(
            (rear, -0.85 * half, track + 0.02), (rear + 0.25 * body, 0.85 * half, 0.62 * height), m.DARK, Material.PAINT
        )
    )
    cabin = frustum_corners(
        (rear + 0.40 * body, rear + 0.86 * body),
        (0.1 * half, 0.9 * half),
        (rear + 0.42 * body, rear + 0.78 * body),
        (0.14 * half, 0.86 * half),
        (0.45 * height, 0.92 * height),
    )
    parts += glasshouse(cabin, [(0.1, 0.9, 0.3, 0.92)], color)
    elbow = (rear + 0.95 * body, -0.3 * half, height - 0.05 * height)
    wrist = (front - 0.08 * length, -0.3 * half, 0.36 * height)
    thick = 0.055 * height
    parts.append(
        cylinder((rear + 0.62 * body, -0.3 * half, 0.5 * height), elbow, (1.4 * thick, thick), color, Material.PAINT, 6)
    )
    parts.append(cylinder(elbow, wrist, (thick, 0.8 * thick), color, Material.PAINT, 6))
    bucket = np.array([(0.0, 0.36), (-0.12, 0.16), (-0.04, 0.06), (0.0, 0.10), (0.05, 0.30)])
    shovel = extrusion(
        np.stack([front - 0.05 * length + bucket[:, 0] * length, bucket[:, 1] * height], 1),
        0.3 * half,
        m.DARK,
        Material.METAL,
    )
    parts.append(Mesh(shovel.vertices + np.float32([0, -0.3 * half, 0]), shovel.faces, shovel.colors, shovel.materials))
    parts.append(
        cylinder(
            (rear + 0.6 * body, 0.5 * half, 0.92 * height),
            (rear + 0.6 * body, 0.5 * half, height),
            (0.07, 0.07),
            m.INDICATOR,
            Material.LAMP,
            6,
        )
    )
    return parts


def _loader(extent: Extent, rng: np.random.Generator) -> list[Mesh]:
    length, width, height = extent
    half, rear, front = width / 2, -length / 2, length / 2
    color, radius = m.pick(rng, m.CONSTRUCTION_COLORS), 0.22 * height
    parts = [
        block(
            (rear, -0.8 * half, radius),
            (rear + 0.38 * length, 0.8 * half, 0.56 * height),
            color,
            Material.PAINT,
            (0.95, 0.9),
        )
    ]
    parts.append(
        block(
            (rear + 0.38 * length, -0.5 * half, radius),
            (front - 0.2 * length, 0.5 * half, 0.40 * height),
            color,
            Material.PAINT,
        )
    )
    cabin = frustum_corners(
        (rear + 0.30 * length, rear + 0.55 * length),
        (-0.6 * half, 0.6 * half),
        (rear + 0.32 * length, rear + 0.53 * length),
        (-0.55 * half, 0.55 * half),
        (0.5 * height, height),
    )
    parts += glasshouse(cabin, [(0.1, 0.9, 0.2, 0.92)], color)
    for side in (-1, 1):
        y = side * 0.42 * half
        parts.append(
            cylinder(
                (rear + 0.55 * length, y, 0.48 * height),
                (front - 0.16 * length, y, 0.26 * height),
                (0.05 * height, 0.05 * height),
                color,
                Material.PAINT,
                6,
            )
        )
    bucket = np.array([(-0.18, 0.36), (-0.17, 0.04), (-0.02, 0.0), (0.0, 0.02), (-0.09, 0.12)])
    parts.append(
        extrusion(np.stack([front + bucket[:, 0] * length, bucket[:, 1] * height], 1), half, m.STEEL, Material.METAL)
    )
    parts += plates(
        np.array(
            [
                (rear, -half * 0.8, radius),
                (rear, half * 0.8, radius),
                (rear, half * 0.8, 0.55 * height),
                (rear, -half * 0.8, 0.55 * height),
            ]
        ),
        [(0.2, 0.8, 0.2, 0.8)],
        m.DARK,
        Material.METAL,
        np.zeros(3),
    )
    return parts + wheels((rear + 0.2 * length, front - 0.30 * length), 0.97 * half, radius, 0.4)
