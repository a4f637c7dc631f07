"""Meshes of static objects in the global frame: buildings, trees and poles."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from . import materials as m
from .materials import Material
from .rig import yaw_matrix
from .scene import Building, Pole, Town, Tree
from .shapes import Mesh, block, cylinder, ellipsoid, fit, merge, triangles

BUSH = 2.5
"""Height in metres; lower trees are bushes."""


@dataclass(frozen=True, eq=False)
class TownMesh:
    """The static geometry of a town.

    Attributes:
        mesh: All triangles in the global frame.
        walls: Index of the building whose facade a triangle shows (F,) int32, -1 for other triangles.
        wall_axis: Coefficients (a, b, c) of each triangle (F, 3) float32: the distance along the facade in metres is
            a x + b y + c, continued around the corners.
    """

    mesh: Mesh
    walls: np.ndarray
    wall_axis: np.ndarray


def corners(building: Building) -> np.ndarray:
    """Footprint of a building (4, 2), counter-clockwise."""
    half = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * np.asarray(building.size) / 2
    cos, sin = math.cos(building.yaw), math.sin(building.yaw)
    return half @ np.array([[cos, sin], [-sin, cos]]) + np.asarray(building.center)


def build_town(town: Town) -> TownMesh:
    """Merges the meshes of a town; a town without objects gets a small marker far below the ground."""
    parts, walls, axes = [_marker(town)], [np.full(1, -1, np.int32)], [np.zeros((1, 3), np.float32)]
    for index, building in enumerate(town.buildings):
        facade, axis = _facade(building)
        parts.append(facade)
        walls.append(np.full(len(facade.faces), index, np.int32))
        axes.append(axis)
        parts.append(_roof(building))
        walls.append(np.full(len(parts[-1].faces), -1, np.int32))
        axes.append(np.zeros((len(parts[-1].faces), 3), np.float32))
    others = [_tree(tree) for tree in town.trees] + [_pole(pole) for pole in town.poles]
    count = sum(len(part.faces) for part in others)
    walls.append(np.full(count, -1, np.int32))
    axes.append(np.zeros((count, 3), np.float32))
    return TownMesh(merge(parts + others), np.concatenate(walls), np.concatenate(axes))


def _marker(town: Town) -> Mesh:
    """One hidden triangle far below the ground, because ray casting needs at least one."""
    x, y = town.extent[0], town.extent[1]
    vertices = np.array([(x, y, -50.0), (x + 1, y, -50.0), (x, y + 1, -50.0)])
    return triangles(vertices, np.array([[0, 1, 2]]), m.DARK, Material.METAL, (x, y, -60.0))


def _facade(building: Building) -> tuple[Mesh, np.ndarray]:
    """The four walls and, per triangle, the affine map from (x, y) to the distance along them."""
    ground = corners(building)
    following = np.roll(ground, -1, axis=0)
    lengths = np.linalg.norm(following - ground, axis=1)
    starts = np.concatenate([[0.0], np.cumsum(lengths)[:-1]])
    along = (following - ground) / lengths[:, None]
    offsets = starts - (along * ground).sum(axis=1)
    axis = np.concatenate([along, offsets[:, None]], axis=1).astype(np.float32)
    vertices = np.concatenate(
        [np.column_stack([ground, np.zeros(4)]), np.column_stack([ground, np.full(4, building.height)])]
    )
    i = np.arange(4)
    j = (i + 1) % 4
    faces = np.concatenate([np.stack([i, j, j + 4], 1), np.stack([i, j + 4, i + 4], 1)])
    middle = (*building.center, building.height / 2)
    return triangles(vertices, faces, (1.0, 1.0, 1.0), Material.WALL, middle), np.concatenate([axis, axis])


def _roof(building: Building) -> Mesh:
    """A hipped roof of tiles on low houses, a parapet with a flat roof on others."""
    rng = np.random.default_rng(building.seed + 1)
    x, y = building.size[0] / 2, building.size[1] / 2
    rotation, at = yaw_matrix(building.yaw), (*building.center, 0.0)
    base = building.height
    if base < 9.5 and rng.random() < 0.7:
        color = m.pick(rng, ((0.48, 0.20, 0.13), (0.36, 0.20, 0.16), (0.28, 0.29, 0.32)))
        inset, rise = min(x, y), 0.55 * min(x, y)
        low, high = (-x - 0.4, -y - 0.4, base), (x + 0.4, y + 0.4, base + rise)
        taper = (max(0.02, (x - inset) / x), max(0.02, (y - inset) / y))
        part = block(low, high, color, Material.ROOF, taper)
    else:
        color = m.pick(rng, ((0.55, 0.54, 0.52), (0.40, 0.38, 0.36), (0.66, 0.62, 0.55)))
        part = block((-x - 0.15, -y - 0.15, base), (x + 0.15, y + 0.15, base + 0.5), color, Material.WALL)
    return Mesh(part.moved(rotation, at), part.faces, part.colors, part.materials)


@lru_cache(maxsize=32)
def _crown(kind: str, variant: int) -> Mesh:
    """A white crown between z = 0 and 1 of radius 1 with varied shades: 'round', 'tall' (a conifer) or 'bush'."""
    rng, white = np.random.default_rng((variant, 75)), (0.9, 0.9, 0.9)
    if kind == 'bush':
        parts = [ellipsoid((0, 0, 0.5), (1, 1, 0.5), white, Material.FOLIAGE, 2, 0.22, rng)]
    elif kind == 'tall':
        parts = [cylinder((0, 0, z), (0, 0, z + 0.46), (r, 0.12 * r), white, Material.FOLIAGE, 9) for z, r in
                 ((0.0, 1.0), (0.2, 0.84), (0.4, 0.64), (0.56, 0.42))]  # fmt: skip
    else:
        parts = [ellipsoid((0, 0, 0.5), (0.72, 0.72, 0.42), white, Material.FOLIAGE, 2, 0.25, rng)]
        for turn in rng.uniform(0, 0.8) + np.arange(4) * math.pi / 2:
            at = (0.48 * math.cos(turn), 0.48 * math.sin(turn), float(rng.uniform(0.3, 0.66)))
            size = float(rng.uniform(0.42, 0.56))
            shade = (float(rng.uniform(0.75, 1.0)),) * 3
            parts.append(ellipsoid(at, (size, size, 0.62 * size), shade, Material.FOLIAGE, 1, 0.22, rng))
    return fit(merge(parts), (2.0, 2.0, 1.0))


def _tree(tree: Tree) -> Mesh:
    """A trunk and a crown; a low tree is a bush without a trunk."""
    rng = np.random.default_rng(tree.seed)
    color, height, low = m.pick(rng, m.FOLIAGE, 0.2), tree.height, 0.0
    kind = 'bush' if height < BUSH else 'tall' if rng.random() < 0.2 else 'round'
    color = m.CONIFER if kind == 'tall' else color
    parts = []
    if kind != 'bush':
        low = crown_base(tree) if kind == 'round' else 0.14 * height
        parts.append(
            cylinder(
                (0, 0, 0),
                (0, 0, low + 0.3 * height),
                (0.03 * height, 0.018 * height),
                (0.25, 0.18, 0.12),
                Material.WOOD,
                6,
            )
        )
    crown = _crown(kind, int(rng.integers(8)))
    size = np.float32([tree.crown_radius, tree.crown_radius, height - low])
    vertices = crown.vertices * size + np.float32([0, 0, (height + low) / 2])
    parts.append(Mesh(vertices, crown.faces, crown.colors * np.float32(color), crown.materials))
    mesh = merge(parts)
    return Mesh(
        mesh.moved(yaw_matrix(float(rng.uniform(0, 6.28))), (*tree.position, 0.0)),
        mesh.faces,
        mesh.colors,
        mesh.materials,
    )


def crown_base(tree: Tree) -> float:
    """Height in metres of the lower end of a tree's crown."""
    return 0.1 * tree.height if tree.height < BUSH else max(0.3 * tree.height, tree.height - 2.6 * tree.crown_radius)


def _pole(pole: Pole) -> Mesh:
    """A lamp post with an arm, a sign post or a traffic light; x is the direction of `yaw`."""
    height, steel = pole.height, (0.36, 0.38, 0.40)
    parts = [cylinder((0, 0, 0), (0, 0, height), (0.08, 0.055), steel, Material.METAL, 6)]
    if pole.kind == 'lamp':
        parts.append(cylinder((0, 0, height - 0.1), (1.6, 0, height), (0.05, 0.04), steel, Material.METAL, 5))
        parts.append(block((1.2, -0.14, height - 0.08), (1.9, 0.14, height + 0.06), (0.75, 0.75, 0.7), Material.PAINT))
    elif pole.kind == 'sign':
        parts += _sign(pole, height)
    elif pole.kind == 'light':
        parts.append(block((-0.1, -0.18, height - 0.95), (0.12, 0.18, height), m.DARK, Material.PAINT))
        for i, color in enumerate(((0.25, 0.9, 0.35), (0.25, 0.18, 0.04), (0.28, 0.05, 0.04))):
            z = height - 0.80 + 0.30 * i
            parts.append(cylinder((0.1, 0, z), (0.16, 0, z), (0.12, 0.12), color, Material.LAMP, 8))
    mesh = merge(parts)
    return Mesh(mesh.moved(yaw_matrix(pole.yaw), (*pole.position, 0.0)), mesh.faces, mesh.colors, mesh.materials)


def _sign(pole: Pole, height: float) -> list[Mesh]:
    """A round, triangular or square plate; the shape depends on the position."""
    kind = int(abs(pole.position[0] * 7 + pole.position[1] * 13)) % 3
    z, face, back = height - 0.35, (0.06, 0.0), (0.09, 0.0)
    if kind == 0:
        rim, inner, sides = m.RED, m.WHITE, 12
    elif kind == 1:
        rim, inner, sides = m.RED, m.WHITE, 3
    else:
        rim, inner, sides = (0.08, 0.22, 0.60), (0.85, 0.88, 0.95), 4
    plate = cylinder((*face, z), (*back, z), (0.36, 0.36), rim, Material.REFLECTOR, sides)
    middle = cylinder((*face, z), (back[0] + 0.01, 0.0, z), (0.24, 0.24), inner, Material.REFLECTOR, sides)
    return [plate, middle]
