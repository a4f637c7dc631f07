"""Meshes of pedestrians and of motorcycles and bicycles, with and without a rider (frame as in `mesh_vehicles`)."""

from __future__ import annotations

import math

import numpy as np

from . import materials as m
from .materials import Color, Material
from .shapes import Mesh, block, cylinder, ellipsoid, merge, ring

Extent = tuple[float, float, float]


def pedestrian(extent: Extent, rng: np.random.Generator, phase: float = 0.25) -> list[Mesh]:
    """A person with head, hair, torso, arms and legs; `phase` in 0..1 is the position in the stride."""
    length, width, height = extent
    skin, hair = m.pick(rng, m.SKINS), m.pick(rng, m.HAIRS)
    top, trousers = m.pick(rng, m.CLOTHES, 0.15), m.pick(rng, m.TROUSERS, 0.15)
    swing = math.sin(2 * math.pi * phase)
    stride, half = 0.42 * length * swing, width / 2
    hip, shoulder, waist = 0.50 * height, 0.80 * height, 0.24 * width
    parts = []
    for side in (-1, 1):
        foot, y = side * stride, side * 0.55 * waist
        knee = (0.55 * foot + 0.04, y, 0.28 * height)
        parts.append(cylinder((0, y, hip + 0.03), knee, (0.055 * height, 0.042 * height), trousers, Material.CLOTH, 6))
        parts.append(
            cylinder(knee, (foot, y, 0.03 * height), (0.042 * height, 0.03 * height), trousers, Material.CLOTH, 6)
        )
        parts.append(
            block((foot - 0.08, y - 0.045, 0.0), (foot + 0.17, y + 0.045, 0.045 * height), m.DARK, Material.RUBBER)
        )
        elbow = (-0.35 * foot - 0.03, side * 0.84 * half, 0.62 * height)
        hand = (-0.8 * foot + 0.06, side * 0.88 * half, 0.49 * height)
        parts.append(
            cylinder((0, side * 0.66 * half, shoulder), elbow, (0.035 * height, 0.03 * height), top, Material.CLOTH, 6)
        )
        parts.append(cylinder(elbow, hand, (0.03 * height, 0.022 * height), top, Material.CLOTH, 6))
        parts.append(ellipsoid(hand, (0.04, 0.04, 0.06), skin, Material.SKIN, 0))
    parts.append(_torso(hip, shoulder, 0.11 * height, 0.70 * half, top))
    parts.append(
        cylinder((0, 0, shoulder), (0, 0, 0.88 * height), (0.035 * height, 0.035 * height), skin, Material.SKIN, 6)
    )
    parts.append(
        ellipsoid((0.01, 0, 0.925 * height), (0.062 * height, 0.052 * height, 0.07 * height), skin, Material.SKIN)
    )
    parts.append(
        ellipsoid((-0.015, 0, 0.94 * height), (0.064 * height, 0.056 * height, 0.062 * height), hair, Material.CLOTH)
    )
    if rng.random() < 0.3:
        bag = m.pick(rng, m.CLOTHES, 0.2)
        parts.append(
            block(
                (-0.34 * length, -0.4 * half, 0.58 * height),
                (-0.06 * height, 0.4 * half, 0.80 * height),
                bag,
                Material.CLOTH,
            )
        )
    return parts


def _torso(hip: float, shoulder: float, depth: float, half: float, color: Color) -> Mesh:
    """A trunk that is wide at the shoulders and narrower at the waist, as an elliptic column."""
    column = cylinder((0, 0, hip - 0.02), (0, 0, shoulder + 0.05), (0.78, 1.0), color, Material.CLOTH, 8)
    return Mesh(column.vertices * np.float32([depth, half, 1.0]), column.faces, column.colors, column.materials)


def _rider(
    seat: tuple[float, float],
    hands: tuple[float, float],
    foot: float,
    height: float,
    half: float,
    rng: np.random.Generator,
) -> list[Mesh]:
    """A person sitting at `seat` (x, z), hands at (x, z), feet at height `foot`, head up to `height`."""
    top, trousers = m.pick(rng, m.CLOTHES, 0.15), m.pick(rng, m.TROUSERS, 0.15)
    skin, helmet = m.pick(rng, m.SKINS), m.pick(rng, m.CYCLE_COLORS)
    lean = 0.35 * (hands[0] - seat[0])
    neck = (seat[0] + lean, 0.0, height - 0.27)
    parts = [cylinder((seat[0], 0, seat[1]), neck, (0.15, 0.19), top, Material.CLOTH, 8)]
    parts.append(ellipsoid((neck[0] + 0.05, 0, height - 0.14), (0.11, 0.09, 0.13), skin, Material.SKIN))
    parts.append(ellipsoid((neck[0] + 0.03, 0, height - 0.10), (0.13, 0.11, 0.10), helmet, Material.PAINT))
    for side in (-1, 1):
        shoulder = (neck[0], side * 0.18, neck[2] - 0.05)
        parts.append(cylinder(shoulder, (hands[0], side * 0.8 * half, hands[1]), (0.06, 0.04), top, Material.CLOTH, 6))
        knee = (seat[0] + 0.38, side * 0.16, 0.55 * seat[1] + 0.45 * foot + 0.12 + 0.06 * side)
        parts.append(cylinder((seat[0], side * 0.1, seat[1]), knee, (0.09, 0.065), trousers, Material.CLOTH, 6))
        parts.append(
            cylinder(
                knee, (seat[0] + 0.22, side * 0.14, foot + 0.05 * side), (0.065, 0.05), trousers, Material.CLOTH, 6
            )
        )
    return parts


def bicycle(extent: Extent, rng: np.random.Generator, rider: bool) -> list[Mesh]:
    """A bicycle: two thin wheels, a diamond frame, handlebar and saddle."""
    length, width, height = extent
    half = width / 2
    color = m.pick(rng, m.CYCLE_COLORS)
    tall = min(1.05, 0.62 * height) if rider else height
    radius = min(0.36, 0.21 * length, 0.38 * tall)
    back, front = -length / 2 + radius, length / 2 - radius
    crank, saddle, head = (-0.06 * length, radius), (-0.16 * length, 0.86 * tall), (0.24 * length, 0.86 * tall)
    parts = [ring((x, 0, radius), (0.84 * radius, radius), 0.025, m.TYRE, Material.RUBBER) for x in (back, front)]
    tubes = [
        ((back, radius), crank),
        (crank, saddle),
        (crank, head),
        (saddle, head),
        ((back, radius), saddle),
        (head, (front, radius)),
    ]
    parts += [_tube(a, b, 0.028, color) for a, b in tubes]
    parts.append(
        block((saddle[0] - 0.13, -0.07, saddle[1]), (saddle[0] + 0.13, 0.07, saddle[1] + 0.06), m.DARK, Material.RUBBER)
    )
    parts.append(
        cylinder((head[0], -half, tall - 0.03), (head[0], half, tall - 0.03), (0.02, 0.02), m.DARK, Material.METAL, 6)
    )
    parts.append(_tube(head, (head[0], tall - 0.03), 0.02, m.STEEL))
    if rider:
        parts += _rider(saddle, (head[0], tall), 0.3 * radius + 0.12, height, half, rng)
    return parts


def _tube(a: tuple[float, float], b: tuple[float, float], radius: float, color: Color) -> Mesh:
    return cylinder((a[0], 0, a[1]), (b[0], 0, b[1]), (radius, radius), color, Material.METAL, 5)


def motorcycle(extent: Extent, rng: np.random.Generator, rider: bool) -> list[Mesh]:
    """A motorcycle or scooter: thick wheels, engine, tank, seat, fork with a headlight, tail light."""
    length, width, height = extent
    half = width / 2
    color = m.pick(rng, m.CYCLE_COLORS)
    tall = min(1.2, 0.70 * height) if rider else height
    radius = min(0.32, 0.17 * length)
    back, front = -length / 2 + radius, length / 2 - radius
    parts = []
    for x in (back, front):
        parts.append(ring((x, 0, radius), (0.62 * radius, radius), 0.07, m.TYRE, Material.RUBBER))
        parts.append(
            cylinder((x, -0.05, radius), (x, 0.05, radius), (0.4 * radius, 0.4 * radius), m.RIM, Material.METAL, 6)
        )
    parts.append(
        block(
            (-0.16 * length, -0.15, 0.6 * radius),
            (0.14 * length, 0.15, 0.52 * tall),
            m.STEEL,
            Material.METAL,
            (0.8, 0.8),
        )
    )
    parts.append(block((-0.40 * length, -0.13, 0.55 * tall), (0.0, 0.13, 0.66 * tall), m.DARK, Material.RUBBER))
    parts.append(
        block(
            (-0.04 * length, -0.17, 0.50 * tall), (0.22 * length, 0.17, 0.78 * tall), color, Material.PAINT, (0.7, 0.6)
        )
    )
    parts.append(
        block((-0.46 * length, -0.11, 0.44 * tall), (-0.22 * length, 0.11, 0.56 * tall), color, Material.PAINT)
    )
    parts.append(_tube((back, radius), (-0.05 * length, radius), 0.05, m.DARK))
    head = (0.24 * length, 0.86 * tall)
    parts += [
        cylinder((front, y, radius), (head[0], y, head[1]), (0.035, 0.035), m.STEEL, Material.METAL, 5)
        for y in (-0.09, 0.09)
    ]
    parts.append(
        cylinder(
            (head[0] - 0.05, -half, tall - 0.04),
            (head[0] - 0.05, half, tall - 0.04),
            (0.025, 0.025),
            m.DARK,
            Material.METAL,
            6,
        )
    )
    parts.append(
        block((head[0] - 0.05, -0.13, 0.70 * tall), (head[0] + 0.10, 0.13, tall), color, Material.PAINT, (0.6, 0.8))
    )
    parts.append(
        block((head[0] + 0.06, -0.09, 0.72 * tall), (head[0] + 0.13, 0.09, 0.84 * tall), m.HEADLIGHT, Material.LAMP)
    )
    parts.append(
        block((-0.48 * length, -0.08, 0.48 * tall), (-0.45 * length, 0.08, 0.56 * tall), m.TAILLIGHT, Material.LAMP)
    )
    if rider:
        parts += _rider((-0.16 * length, 0.64 * tall), (head[0] - 0.1, tall), radius, height, half, rng)
    return [merge(parts)]
