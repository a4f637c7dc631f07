"""Meshes of cars, trucks, buses and trailers.

Every builder takes the (length, width, height) of the object and returns parts with x forward, y left, z up from the
ground at 0 and the origin in the middle; `meshes.build_actor` scales the result to the box.
"""

from __future__ import annotations

import numpy as np

from . import materials as m
from .materials import Color, Material
from .shapes import Mesh, block, cylinder, extrusion, frustum_corners, hexahedron, panel

Extent = tuple[float, float, float]
Window = tuple[float, float, float, float]


def wheels(xs: tuple[float, ...], half_width: float, radius: float, thickness: float = 0.22) -> list[Mesh]:
    """Tyres with rims at each x on both sides, their outer faces at +-`half_width`."""
    parts = []
    for x in xs:
        for side in (-1, 1):
            inner, outer = (x, side * (half_width - thickness), radius), (x, side * (half_width - 0.01), radius)
            parts.append(cylinder(inner, outer, (radius, radius), m.TYRE, Material.RUBBER, 12))
            axle, hub = (x, side * (half_width - 0.05), radius), (x, side * half_width, radius)
            parts.append(cylinder(axle, hub, (0.6 * radius, 0.55 * radius), m.RIM, Material.METAL, 8))
    return parts


def _side_face(corners: np.ndarray, side: int) -> np.ndarray:
    """The left (+1) or right (-1) face of `frustum_corners`, u from the rear to the front, v upwards."""
    return corners[[3, 2, 6, 7]] if side > 0 else corners[[0, 1, 5, 4]]


def _front_face(corners: np.ndarray) -> np.ndarray:
    return corners[[1, 2, 6, 5]]


def _rear_face(corners: np.ndarray) -> np.ndarray:
    return corners[[0, 3, 7, 4]]


def plates(face: np.ndarray, spans: list[Window], color: Color, material: Material, center: np.ndarray) -> list[Mesh]:
    """Plates on a face at each of `spans` (see `shapes.panel`), slightly above it."""
    return [panel(face, span, color, material, 0.012, center) for span in spans]


def glasshouse(corners: np.ndarray, sides: list[Window], color: Color) -> list[Mesh]:
    """A cabin with a windscreen, a rear window and side windows."""
    center = corners.mean(axis=0)
    parts = [hexahedron(corners, color, Material.PAINT)]
    parts += plates(_front_face(corners), [(0.06, 0.94, 0.06, 0.93)], m.GLASS, Material.GLASS, center)
    parts += plates(_rear_face(corners), [(0.08, 0.92, 0.12, 0.90)], m.GLASS, Material.GLASS, center)
    for side in (-1, 1):
        parts += plates(_side_face(corners, side), sides, m.GLASS, Material.GLASS, center)
    return parts


def _lights(front: float, rear: float, half: float, height: float, rear_height: float, size: float) -> list[Mesh]:
    """White headlights, red tail lights and number plates at the ends of a body."""
    parts = []
    for side in (-1, 1):
        y0, y1 = sorted((side * half * 0.56, side * half * 0.94))
        parts.append(
            block((front - 0.03, y0, height - size), (front + 0.02, y1, height + size), m.HEADLIGHT, Material.LAMP)
        )
        y0, y1 = sorted((side * half * 0.60, side * half * 0.97))
        low, high = rear_height - 1.2 * size, rear_height + 1.5 * size
        parts.append(block((rear - 0.02, y0, low), (rear + 0.04, y1, high), m.TAILLIGHT, Material.LAMP))
    for x in (front, rear):
        low, high = (x - 0.025, -0.26, height - 0.30), (x + 0.025, 0.26, height - 0.17)
        parts.append(block(low, high, m.PLATE, Material.REFLECTOR))
    return parts


_CAR_STYLES = {
    # bonnet end, windscreen top, roof end, rear window bottom (parts of the length, from the rear), belt, bonnet height
    'sedan': (0.70, 0.56, 0.30, 0.14, 0.60, 0.55),
    'hatch': (0.74, 0.58, 0.14, 0.03, 0.60, 0.55),
    'suv': (0.74, 0.62, 0.08, 0.02, 0.62, 0.60),
    'van': (0.86, 0.70, 0.03, 0.01, 0.58, 0.50),
}


def car(extent: Extent, rng: np.random.Generator) -> list[Mesh]:
    """A sedan, hatchback, SUV or van."""
    length, width, height = extent
    tall = height > 1.78
    style = (
        ('suv', 'van', 'suv')[int(rng.integers(3))]
        if tall
        else ('sedan', 'sedan', 'hatch', 'suv')[int(rng.integers(4))]
    )
    hood, screen, roof, tail, belt, bonnet = _CAR_STYLES[style]
    color, half, rear = m.pick(rng, m.CAR_COLORS), width / 2, -length / 2
    radius = 0.20 * height if tall else 0.22 * height
    under, shoulder = 0.55 * radius, half - 0.03
    fractions = np.array(
        [
            (0.00, 0.30),
            (0.01, belt - 0.03),
            (tail, belt),
            (hood, belt),
            (0.96, bonnet - 0.03),
            (1.0, bonnet - 0.13),
            (1.0, 0.24),
            (0.97, 0.0),
            (0.03, 0.0),
        ]
    )
    profile = np.stack([rear + fractions[:, 0] * length, np.maximum(fractions[:, 1] * height, under)], axis=1)
    halves = np.array([0.93, 0.97, 0.97, 0.97, 0.92, 0.90, 0.93, 0.96, 0.96]) * shoulder
    cabin = frustum_corners(
        (rear + (tail + 0.005) * length, rear + hood * length),
        (-0.92 * half, 0.92 * half),
        (rear + roof * length, rear + screen * length),
        (-0.72 * half, 0.72 * half),
        (belt * height, height),
    )
    windows = [(0.08, 0.48, 0.10, 0.84), (0.52, 0.93, 0.10, 0.84)]
    if style == 'van':
        windows = [(0.06, 0.34, 0.25, 0.85), (0.38, 0.64, 0.25, 0.85), (0.70, 0.94, 0.12, 0.85)]
    parts = [extrusion(profile, halves, color, Material.PAINT), *glasshouse(cabin, windows, color)]
    skirt = block((rear, -0.945 * half, under - 0.01), (-rear, 0.945 * half, 1.1 * radius), m.DARK, Material.RUBBER)
    grille = block(
        (-rear - 0.04, -0.45 * half, 0.27 * height),
        (-rear + 0.012, 0.45 * half, 0.40 * height),
        m.DARK,
        Material.RUBBER,
    )
    mirrors = [
        block(
            (rear + (hood - 0.08) * length, y - 0.09, belt * height),
            (rear + (hood - 0.05) * length, y + 0.09, belt * height + 0.14),
            color,
            Material.PAINT,
        )
        for y in (-half + 0.06, half - 0.06)
    ]
    lights = _lights(-rear, rear, 0.93 * half, (bonnet - 0.14) * height, (belt - 0.10) * height, 0.05 * height)
    return parts + [skirt, grille, *mirrors, *lights, *wheels((-0.30 * length, 0.31 * length), half, radius)]


def _cab(rear: float, front: float, half: float, bottom: float, top: float, color: Color) -> list[Mesh]:
    """The driver's cab of a truck: upright, with a large windscreen and side windows."""
    slope = 0.10 * (front - rear)
    corners = frustum_corners(
        (rear, front), (-half, half), (rear, front - slope), (-0.95 * half, 0.95 * half), (bottom, top)
    )
    center = corners.mean(axis=0)
    parts = [hexahedron(corners, color, Material.PAINT)]
    parts += plates(_front_face(corners), [(0.06, 0.94, 0.50, 0.90)], m.GLASS, Material.GLASS, center)
    parts += plates(_front_face(corners), [(0.15, 0.85, 0.14, 0.40)], m.DARK, Material.RUBBER, center)
    for side in (-1, 1):
        parts += plates(_side_face(corners, side), [(0.40, 0.92, 0.52, 0.88)], m.GLASS, Material.GLASS, center)
        mirror_y = side * (half - 0.02)
        parts.append(
            block(
                (front - 0.25, mirror_y - 0.02, top - 0.9),
                (front - 0.10, mirror_y + 0.02, top - 0.4),
                m.DARK,
                Material.RUBBER,
            )
        )
    return parts


def truck(extent: Extent, rng: np.random.Generator) -> list[Mesh]:
    """A cab with a cargo box, a tarpaulin with a stripe, or an open bed for small trucks."""
    length, width, height = extent
    half, rear, front = width / 2, -length / 2, length / 2
    color, cargo = m.pick(rng, m.TRUCK_COLORS), m.pick(rng, m.CARGO_COLORS)
    radius = min(0.5, 0.19 * height)
    cab_rear = front - min(2.3, 0.34 * length)
    cab_top = height * (0.80 if height > 2.6 else 1.0)
    floor = 1.9 * radius
    parts = _cab(cab_rear, front, 0.95 * half, radius * 0.8, cab_top, color)
    parts.append(block((rear, -0.5 * half, radius), (cab_rear, 0.5 * half, floor), m.DARK, Material.METAL))
    if height > 2.3 and rng.random() < 0.8:
        corners = frustum_corners(
            (rear, cab_rear - 0.15), (-half, half), (rear, cab_rear - 0.15), (-half, half), (floor, height)
        )
        center = corners.mean(axis=0)
        parts.append(hexahedron(corners, cargo, Material.PAINT))
        stripe = m.pick(rng, m.TRUCK_COLORS)
        for side in (-1, 1):
            parts += plates(_side_face(corners, side), [(0.12, 0.70, 0.38, 0.66)], stripe, Material.PAINT, center)
        parts += plates(_rear_face(corners), [(0.485, 0.515, 0.02, 0.98)], m.DARK, Material.METAL, center)
    else:
        parts += _open_bed(rear, cab_rear - 0.1, half, floor, max(floor + 0.5, 0.55 * height), color)
    parts += _lights(front, rear, 0.92 * half, 1.7 * radius, 1.5 * radius, 0.09)
    rear_axles = (
        (rear + 0.14 * length, rear + 0.14 * length + 2.2 * radius) if length > 7.5 else (rear + 0.20 * length,)
    )
    return parts + wheels((*rear_axles, front - 0.16 * length), half, radius, 0.3)


def _open_bed(rear: float, front: float, half: float, floor: float, rim: float, color: Color) -> list[Mesh]:
    """A flat bed with side boards."""
    walls = [
        ((rear, -half), (front, -half + 0.08)),
        ((rear, half - 0.08), (front, half)),
        ((rear, -half), (rear + 0.08, half)),
        ((front - 0.08, -half), (front, half)),
    ]
    parts = [block((rear, -half, floor - 0.1), (front, half, floor), m.DARK, Material.METAL)]
    return parts + [block((*low, floor), (*high, rim), color, Material.PAINT) for low, high in walls]


def bus(extent: Extent, rng: np.random.Generator) -> list[Mesh]:
    """A city bus: a ribbon of windows, doors on the right, a broad windscreen and a coloured band."""
    length, width, height = extent
    half, rear, front, radius = width / 2, -length / 2, length / 2, min(0.5, 0.16 * height)
    color, band = m.pick(rng, m.BUS_COLORS), m.pick(rng, m.BUS_COLORS)
    body = 0.97 * half
    corners = frustum_corners(
        (rear, front), (-body, body), (rear + 0.1, front - 0.15), (-0.96 * body, 0.96 * body), (0.7 * radius, height)
    )
    center = corners.mean(axis=0)
    parts = [hexahedron(corners, color, Material.PAINT)]
    parts += plates(_front_face(corners), [(0.05, 0.95, 0.36, 0.82)], m.GLASS, Material.GLASS, center)
    parts += plates(_front_face(corners), [(0.15, 0.85, 0.86, 0.95)], m.INDICATOR, Material.LAMP, center)
    parts += plates(_rear_face(corners), [(0.12, 0.88, 0.55, 0.82)], m.GLASS, Material.GLASS, center)
    count = max(3, round(length / 1.6))
    edges = np.linspace(0.03, 0.97, count + 1)
    windows = [(float(a) + 0.006, float(b) - 0.006, 0.45, 0.82) for a, b in zip(edges[:-1], edges[1:])]
    for side in (-1, 1):
        face = _side_face(corners, side)
        parts += plates(face, windows, m.GLASS, Material.GLASS, center)
        parts += plates(face, [(0.02, 0.98, 0.22, 0.32)], band, Material.PAINT, center)
    doors = [(0.86, 0.955, 0.04, 0.84), (0.44, 0.55, 0.04, 0.84)]
    parts += [panel(_side_face(corners, -1), span, m.GLASS, Material.GLASS, 0.02, center) for span in doors]
    parts += _lights(front, rear, 0.95 * body, 0.26 * height, 0.36 * height, 0.1)
    return parts + wheels((-0.28 * length, 0.30 * length), half, radius, 0.3)


def trailer(extent: Extent, rng: np.random.Generator) -> list[Mesh]:
    """A trailer without a tractor: box or loaded flat bed, axles at the rear, landing legs, red-white markings."""
    length, width, height = extent
    half, rear, front, radius = width / 2, -length / 2, length / 2, min(0.5, 0.16 * height)
    cargo = m.pick(rng, m.CARGO_COLORS)
    floor = 2.1 * radius
    parts = [block((rear, -0.98 * half, floor - 0.15), (front, 0.98 * half, floor), m.DARK, Material.METAL)]
    if rng.random() < 0.7:
        corners = frustum_corners((rear, front), (-half, half), (rear, front), (-half, half), (floor, height))
        center = corners.mean(axis=0)
        parts.append(hexahedron(corners, cargo, Material.PAINT))
        ribs = [(float(u), float(u) + 0.012, 0.02, 0.98) for u in np.linspace(0.04, 0.95, 9)]
        rib = tuple(0.72 * channel for channel in cargo)
        for side in (-1, 1):
            parts += plates(_side_face(corners, side), ribs, rib, Material.PAINT, center)
        parts += plates(_rear_face(corners), [(0.49, 0.51, 0.02, 0.98)], m.DARK, Material.METAL, center)
    else:
        edges = np.linspace(rear + 0.3, front - 0.3, 4)
        for a, b in zip(edges[:-1], edges[1:]):
            top = floor + (height - floor) * float(rng.uniform(0.5, 1.0))
            parts.append(
                block(
                    (a + 0.1, -0.85 * half, floor),
                    (b - 0.1, 0.85 * half, top),
                    m.pick(rng, m.CARGO_COLORS),
                    Material.WOOD,
                )
            )
        parts.append(block((front - 0.12, -half, floor), (front, half, height), m.STEEL, Material.METAL))
    parts += _hazard_strip(rear - 0.01, half, floor - 0.14)
    parts += [
        block(
            (front - 0.25 * length, y - 0.06, 0.0),
            (front - 0.25 * length + 0.12, y + 0.06, floor),
            m.STEEL,
            Material.METAL,
        )
        for y in (-0.5 * half, 0.5 * half)
    ]
    axles = tuple(rear + 0.12 * length + i * 2.3 * radius for i in range(3 if length > 9 else 2))
    return parts + wheels(axles, half, radius, 0.3)


def _hazard_strip(x: float, half: float, z: float) -> list[Mesh]:
    """Alternating red and white plates with tail lights across the rear of a trailer."""
    edges = np.linspace(-half, half, 9)
    parts = [
        block((x - 0.015, float(a), z), (x + 0.02, float(b), z + 0.13), (m.RED, m.WHITE)[i % 2], Material.REFLECTOR)
        for i, (a, b) in enumerate(zip(edges[:-1], edges[1:]))
    ]
    lamps = [(-0.95, -0.65), (0.65, 0.95)]
    return parts + [
        block((x - 0.02, a * half, z - 0.2), (x + 0.02, b * half, z - 0.03), m.TAILLIGHT, Material.LAMP)
        for a, b in lamps
    ]
