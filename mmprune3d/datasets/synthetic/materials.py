"""Materials: their response to light and LiDAR, and the colours of the objects of each class."""

from __future__ import annotations

from enum import IntEnum

import numpy as np

Color = tuple[float, float, float]


class Material(IntEnum):
    """Material of a triangle."""

    PAINT = 0
    GLASS = 1
    RUBBER = 2
    METAL = 3
    LAMP = 4
    CLOTH = 5
    SKIN = 6
    FOLIAGE = 7
    WOOD = 8
    WALL = 9
    REFLECTOR = 10
    ROOF = 11


REFLECTIVITY = np.array([34, 6, 5, 30, 60, 18, 16, 14, 12, 22, 190, 16], np.float32)
"""LiDAR intensity (0..255) of each `Material` at short range and normal incidence."""

RETURN_RATE = np.array([0.97, 0.55, 0.9, 0.97, 0.95, 0.98, 0.98, 0.93, 0.98, 0.99, 1.0, 0.98], np.float32)
"""Probability that a near hit at normal incidence gives a LiDAR return, per `Material`; glass lets most light pass."""

GROUND_REFLECTIVITY = {'asphalt': 9, 'marking': 62, 'pavement': 19, 'kerb': 24, 'grass': 13}
"""LiDAR intensity of each kind of ground."""

TYRE: Color = (0.06, 0.06, 0.065)
RIM: Color = (0.55, 0.56, 0.58)
GLASS: Color = (0.05, 0.065, 0.08)
HEADLIGHT: Color = (1.0, 0.98, 0.88)
TAILLIGHT: Color = (0.78, 0.04, 0.03)
INDICATOR: Color = (0.95, 0.5, 0.05)
PLATE: Color = (0.92, 0.92, 0.86)
DARK: Color = (0.12, 0.12, 0.13)
STEEL: Color = (0.48, 0.49, 0.5)
WHITE: Color = (0.92, 0.92, 0.92)
ORANGE: Color = (0.95, 0.33, 0.05)
RED: Color = (0.8, 0.08, 0.06)

CAR_COLORS: tuple[Color, ...] = (
    (0.88, 0.88, 0.88), (0.88, 0.88, 0.88), (0.62, 0.64, 0.66), (0.62, 0.64, 0.66), (0.32, 0.33, 0.35),
    (0.07, 0.07, 0.08), (0.07, 0.07, 0.08), (0.66, 0.07, 0.07), (0.45, 0.04, 0.08), (0.08, 0.16, 0.45),
    (0.14, 0.32, 0.62), (0.10, 0.28, 0.16), (0.75, 0.66, 0.48), (0.85, 0.60, 0.08), (0.42, 0.28, 0.16),
    (0.30, 0.52, 0.60),
)  # fmt: skip
TRUCK_COLORS: tuple[Color, ...] = (
    (0.90, 0.90, 0.90), (0.16, 0.30, 0.60), (0.72, 0.10, 0.08), (0.12, 0.42, 0.24), (0.90, 0.62, 0.10),
    (0.35, 0.36, 0.38),
)  # fmt: skip
CARGO_COLORS: tuple[Color, ...] = (
    (0.92, 0.92, 0.90), (0.92, 0.92, 0.90), (0.80, 0.81, 0.82), (0.20, 0.36, 0.62), (0.68, 0.22, 0.14),
    (0.24, 0.44, 0.30),
)  # fmt: skip
BUS_COLORS: tuple[Color, ...] = (
    (0.80, 0.12, 0.10), (0.90, 0.90, 0.88), (0.16, 0.46, 0.30), (0.90, 0.70, 0.12), (0.14, 0.32, 0.66),
)  # fmt: skip
CONSTRUCTION_COLORS: tuple[Color, ...] = ((0.92, 0.66, 0.05), (0.90, 0.55, 0.06), (0.95, 0.74, 0.12))
CYCLE_COLORS: tuple[Color, ...] = (
    (0.75, 0.08, 0.08), (0.08, 0.08, 0.09), (0.10, 0.22, 0.60), (0.10, 0.45, 0.30), (0.85, 0.85, 0.85),
    (0.90, 0.48, 0.08),
)  # fmt: skip
CLOTHES: tuple[Color, ...] = (
    (0.10, 0.11, 0.14), (0.16, 0.20, 0.36), (0.44, 0.46, 0.48), (0.62, 0.12, 0.12), (0.78, 0.76, 0.70),
    (0.18, 0.36, 0.24), (0.52, 0.36, 0.22), (0.85, 0.70, 0.16), (0.30, 0.44, 0.66), (0.60, 0.32, 0.50),
)  # fmt: skip
TROUSERS: tuple[Color, ...] = (
    (0.10, 0.10, 0.12), (0.14, 0.18, 0.32), (0.30, 0.30, 0.32), (0.46, 0.38, 0.28), (0.22, 0.28, 0.42),
)  # fmt: skip
SKINS: tuple[Color, ...] = ((0.82, 0.62, 0.50), (0.70, 0.48, 0.36), (0.48, 0.30, 0.20), (0.32, 0.20, 0.14))
HAIRS: tuple[Color, ...] = ((0.08, 0.06, 0.05), (0.20, 0.13, 0.08), (0.42, 0.28, 0.14), (0.55, 0.52, 0.48))
FOLIAGE: tuple[Color, ...] = (
    (0.16, 0.30, 0.09), (0.21, 0.34, 0.10), (0.12, 0.25, 0.10), (0.28, 0.34, 0.11), (0.34, 0.30, 0.10),
)  # fmt: skip
CONIFER: Color = (0.11, 0.23, 0.11)
FACADES: tuple[Color, ...] = (
    (0.70, 0.60, 0.48), (0.62, 0.34, 0.26), (0.78, 0.74, 0.66), (0.55, 0.55, 0.54), (0.72, 0.52, 0.36),
    (0.66, 0.68, 0.62), (0.48, 0.30, 0.24), (0.82, 0.70, 0.50), (0.58, 0.62, 0.68),
)  # fmt: skip


def pick(rng: np.random.Generator, colors: tuple[Color, ...], spread: float = 0.06) -> Color:
    """Draws one of `colors` and varies its brightness by a factor of 1 +- `spread`."""
    color = colors[int(rng.integers(len(colors)))]
    gain = float(rng.uniform(1 - spread, 1 + spread))
    return tuple(min(1.0, max(0.0, channel * gain)) for channel in color)  # type: ignore[return-value]
