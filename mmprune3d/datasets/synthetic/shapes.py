"""Coloured triangle meshes and the primitives of which all objects are composed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from .materials import Material

Color = tuple[float, float, float]
Point = Sequence[float]

_BOX_QUADS = np.array([[0, 3, 2, 1], [4, 5, 6, 7], [0, 1, 5, 4], [1, 2, 6, 5], [2, 3, 7, 6], [3, 0, 4, 7]])
"""Faces of a hexahedron whose corners are listed counter-clockwise, bottom first."""


@dataclass(frozen=True, eq=False)
class Mesh:
    """Triangles with one colour and one material each.

    Attributes:
        vertices: Positions (V, 3) float32 in metres.
        faces: Indices into `vertices` (F, 3) int32, counter-clockwise seen from outside.
        colors: Albedo (F, 3) float32 in 0..1.
        materials: Values of `Material` (F,) uint8.
    """

    vertices: np.ndarray
    faces: np.ndarray
    colors: np.ndarray
    materials: np.ndarray

    def normals(self) -> np.ndarray:
        """Unit normals (F, 3) float32; zero for degenerate triangles."""
        cross = _crosses(self.vertices, self.faces)
        return (cross / np.maximum(np.linalg.norm(cross, axis=1, keepdims=True), 1e-12)).astype(np.float32)

    def areas(self) -> np.ndarray:
        """Areas (F,) float32 in square metres."""
        return (0.5 * np.linalg.norm(_crosses(self.vertices, self.faces), axis=1)).astype(np.float32)

    def moved(self, rotation: np.ndarray, translation: Point) -> np.ndarray:
        """Vertices (V, 3) float32 after a 3x3 rotation and a translation."""
        return (self.vertices @ np.asarray(rotation, np.float32).T + np.asarray(translation, np.float32)).astype(
            np.float32
        )


def _crosses(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Cross products (F, 3) of two sides of each triangle; `numpy.cross` is four times slower for small meshes."""
    corners = vertices[faces]
    p, q = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    return p[:, [1, 2, 0]] * q[:, [2, 0, 1]] - p[:, [2, 0, 1]] * q[:, [1, 2, 0]]


def merge(meshes: Iterable[Mesh]) -> Mesh:
    """Merges several meshes, in their order, into one."""
    parts = list(meshes)
    offsets = np.cumsum([0] + [len(part.vertices) for part in parts[:-1]])
    return Mesh(
        np.concatenate([part.vertices for part in parts]),
        np.concatenate([part.faces + offset for part, offset in zip(parts, offsets)]).astype(np.int32),
        np.concatenate([part.colors for part in parts]),
        np.concatenate([part.materials for part in parts]),
    )


def fit(mesh: Mesh, size: Point) -> Mesh:
    """Scales and shifts a mesh so that its bounding box is centred on the origin with extents `size` = (x, y, z)."""
    low, high = mesh.vertices.min(axis=0), mesh.vertices.max(axis=0)
    scale = np.asarray(size, np.float32) / np.maximum(high - low, 1e-6)
    return Mesh(
        ((mesh.vertices - (low + high) / 2) * scale).astype(np.float32), mesh.faces, mesh.colors, mesh.materials
    )


def triangles(
    vertices: np.ndarray, faces: np.ndarray, color: Color | np.ndarray, material: Material, center: Point
) -> Mesh:
    """A mesh of one material whose faces are turned away from `center`; `color` is one for all or one per face."""
    vertices, faces = np.asarray(vertices, np.float32), np.asarray(faces, np.int32).copy()
    outward = vertices[faces].mean(axis=1) - np.asarray(center, np.float32)
    inward = (_crosses(vertices, faces) * outward).sum(axis=1) < 0
    faces[inward] = faces[inward][:, ::-1]
    colors = np.broadcast_to(np.asarray(color, np.float32), (len(faces), 3)).copy()
    return Mesh(vertices, faces, colors, np.full(len(faces), int(material), np.uint8))


def hexahedron(corners: np.ndarray, color: Color, material: Material) -> Mesh:
    """A block with 8 corners: the four at the bottom in order, then the four above them."""
    corners = np.asarray(corners, np.float32)
    faces = np.concatenate([_BOX_QUADS[:, [0, 1, 2]], _BOX_QUADS[:, [0, 2, 3]]])
    return triangles(corners, faces, color, material, corners.mean(axis=0))


def block(low: Point, high: Point, color: Color, material: Material, taper: tuple[float, float] = (1.0, 1.0)) -> Mesh:
    """An axis-aligned block from `low` to `high`; `taper` scales its top in x and y about the middle."""
    return frustum((low[0], high[0]), (low[1], high[1]), _tapered(low[0], high[0], taper[0]),
                   _tapered(low[1], high[1], taper[1]), (low[2], high[2]), color, material)  # fmt: skip


def _tapered(low: float, high: float, scale: float) -> tuple[float, float]:
    middle, half = (low + high) / 2, (high - low) / 2 * scale
    return middle - half, middle + half


def frustum_corners(bottom_x: Point, bottom_y: Point, top_x: Point, top_y: Point, heights: Point) -> np.ndarray:
    """Corners (8, 3) of a block with a rectangle at each of two heights, rear right first, counter-clockwise."""
    corners = []
    for xs, ys, z in ((bottom_x, bottom_y, heights[0]), (top_x, top_y, heights[1])):
        corners += [(xs[0], ys[0], z), (xs[1], ys[0], z), (xs[1], ys[1], z), (xs[0], ys[1], z)]
    return np.array(corners, np.float32)


def frustum(
    bottom_x: Point, bottom_y: Point, top_x: Point, top_y: Point, heights: Point, color: Color, material: Material
) -> Mesh:
    """A block with a rectangle at each of two heights (see `frustum_corners`)."""
    return hexahedron(frustum_corners(bottom_x, bottom_y, top_x, top_y, heights), color, material)


def quad(corners: np.ndarray, color: Color, material: Material, center: Point = (0.0, 0.0, 0.0)) -> Mesh:
    """A plate with four corners in order, facing away from `center`."""
    return triangles(np.asarray(corners), np.array([[0, 1, 2], [0, 2, 3]]), color, material, center)


def panel(
    face: np.ndarray,
    span: tuple[float, float, float, float],
    color: Color,
    material: Material,
    lift: float,
    center: Point,
) -> Mesh:
    """A plate on a face with four corners, for windows, lamps and stripes.

    Args:
        face: Corners in order (4, 3); u runs from corner 0 to 1, v from corner 0 to 3.
        span: Position (u0, u1, v0, v1) in fractions of the face.
        color: Albedo of the plate.
        material: Material of the plate.
        lift: Distance above the face in metres, away from `center`.
        center: A point on the inner side of the face.
    """
    face = np.asarray(face, np.float32)
    u0, u1, v0, v1 = span
    uv = np.array([[u0, v0], [u1, v0], [u1, v1], [u0, v1]], np.float32)
    u, v = uv[:, :1], uv[:, 1:]
    corners = (1 - u) * (1 - v) * face[0] + u * (1 - v) * face[1] + u * v * face[2] + (1 - u) * v * face[3]
    normal = np.cross(face[1] - face[0], face[3] - face[0])
    normal /= max(float(np.linalg.norm(normal)), 1e-9)
    if normal @ (face.mean(axis=0) - np.asarray(center, np.float32)) < 0:
        normal = -normal
    return quad(corners + lift * normal, color, material, center)


def extrusion(profile: np.ndarray, half_widths: np.ndarray | float, color: Color, material: Material) -> Mesh:
    """A side profile (P, 2) of (x, z), star-shaped about its mean, stretched to +-`half_widths` (P,) along y."""
    profile = np.asarray(profile, np.float32)
    count = len(profile)
    half = np.broadcast_to(np.asarray(half_widths, np.float32), (count,))
    middle = np.append(profile.mean(axis=0), half.max())
    left = np.stack([profile[:, 0], half, profile[:, 1]], axis=1)
    hub = np.array([[middle[0], middle[2], middle[1]]], np.float32)
    mirror = np.array([1, -1, 1], np.float32)
    vertices = np.concatenate([left, left * mirror, hub, hub * mirror])
    i = np.arange(count)
    j = (i + 1) % count
    sides = [
        np.stack([i, j, np.full(count, 2 * count)], 1),
        np.stack([i, j, np.full(count, 0)], 1) + [count, count, 2 * count + 1],
    ]
    rim = [np.stack([i, j, j + count], 1), np.stack([i, j + count, i + count], 1)]
    return triangles(vertices, np.concatenate(sides + rim), color, material, (middle[0], 0.0, middle[1]))


def cylinder(
    start: Point, end: Point, radii: tuple[float, float], color: Color, material: Material, sides: int = 8
) -> Mesh:
    """A capped cylinder or cone frustum between two points with a radius at each."""
    start, end = np.asarray(start, np.float64), np.asarray(end, np.float64)
    axis = (end - start) / max(np.linalg.norm(end - start), 1e-9)
    helper = np.array([0.0, 0.0, 1.0]) if abs(axis[2]) < 0.9 else np.array([1.0, 0.0, 0.0])
    right = np.cross(axis, helper)
    right /= np.linalg.norm(right)
    up = np.cross(axis, right)
    angle = 2 * np.pi * (np.arange(sides) + 0.5) / sides
    circle = np.cos(angle)[:, None] * right + np.sin(angle)[:, None] * up
    vertices = np.concatenate([start + radii[0] * circle, end + radii[1] * circle, [start], [end]])
    i = np.arange(sides)
    j = (i + 1) % sides
    low, high = np.full(sides, 2 * sides), np.full(sides, 2 * sides + 1)
    faces = np.concatenate([
        np.stack([i, j, j + sides], 1), np.stack([i, j + sides, i + sides], 1),
        np.stack([j, i, low], 1), np.stack([i + sides, j + sides, high], 1),
    ])  # fmt: skip
    return triangles(vertices, faces, color, material, (start + end) / 2)


def ring(
    center: Point, radii: tuple[float, float], half_width: float, color: Color, material: Material, sides: int = 12
) -> Mesh:
    """A tyre standing along x: an annulus of (inner, outer) radii, `half_width` thick to each side of the x-z plane."""
    angle = 2 * np.pi * np.arange(sides) / sides
    circle = np.stack([np.cos(angle), np.zeros(sides), np.sin(angle)], axis=1)
    shift = np.array([0.0, half_width, 0.0])
    vertices = np.concatenate([r * circle + s * shift for r in radii for s in (-1, 1)]) + np.asarray(center)
    i = np.arange(sides)
    j = (i + 1) % sides
    faces = []
    for a, b in ((0, 1), (2, 3), (0, 2), (1, 3)):
        faces += [np.stack([i + a * sides, j + a * sides, j + b * sides], 1),
                  np.stack([i + a * sides, j + b * sides, i + b * sides], 1)]  # fmt: skip
    return triangles(vertices, np.concatenate(faces), color, material, center)


@lru_cache(maxsize=4)
def _icosphere(subdivisions: int) -> tuple[np.ndarray, np.ndarray]:
    """The unit sphere as 20 * 4^subdivisions triangles."""
    g = (1 + 5**0.5) / 2
    vertices = [(-1, g, 0), (1, g, 0), (-1, -g, 0), (1, -g, 0), (0, -1, g), (0, 1, g),
                (0, -1, -g), (0, 1, -g), (g, 0, -1), (g, 0, 1), (-g, 0, -1), (-g, 0, 1)]  # fmt: skip
    faces = [(0, 11, 5), (0, 5, 1), (0, 1, 7), (0, 7, 10), (0, 10, 11), (1, 5, 9), (5, 11, 4), (11, 10, 2), (10, 7, 6),
             (7, 1, 8), (3, 9, 4), (3, 4, 2), (3, 2, 6), (3, 6, 8), (3, 8, 9), (4, 9, 5), (2, 4, 11), (6, 2, 10),
             (8, 6, 7), (9, 8, 1)]  # fmt: skip
    points = [np.array(v) / np.linalg.norm(v) for v in vertices]
    for _ in range(subdivisions):
        points, faces = _subdivide(points, faces)
    return np.array(points, np.float32), np.array(faces, np.int32)


def _subdivide(points: list[np.ndarray], faces: list[tuple[int, int, int]]) -> tuple[list, list]:
    middles: dict[tuple[int, int], int] = {}

    def middle(a: int, b: int) -> int:
        key = (min(a, b), max(a, b))
        if key not in middles:
            point = points[a] + points[b]
            points.append(point / np.linalg.norm(point))
            middles[key] = len(points) - 1
        return middles[key]

    result = []
    for a, b, c in faces:
        ab, bc, ca = middle(a, b), middle(b, c), middle(c, a)
        result += [(a, ab, ca), (ab, b, bc), (ca, bc, c), (ab, bc, ca)]
    return points, result


def ellipsoid(
    center: Point, radii: Point, color: Color, material: Material, subdivisions: int = 1,
    rough: float = 0.0, rng: np.random.Generator | None = None,
) -> Mesh:  # fmt: skip
    """An ellipsoid of 20 * 4^subdivisions triangles; `rough` > 0 makes vertices and colours irregular with `rng`."""
    points, faces = _icosphere(subdivisions)
    colors = np.asarray(color, np.float32)
    if rough > 0 and rng is not None:
        points = points * rng.uniform(1 - rough, 1.0, (len(points), 1)).astype(np.float32)
        colors = colors * rng.uniform(1 - rough, 1 + rough, (len(faces), 1)).astype(np.float32)
    return triangles(
        points * np.asarray(radii, np.float32) + np.asarray(center, np.float32), faces, colors, material, center
    )
