"""Daylight: the colours of sun, sky and haze, and the shading of triangles of each material."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .materials import Material
from .scene import Light


@dataclass(frozen=True, eq=False)
class Daylight:
    """A `Light` as numbers for shading; colours are (3,) float32 RGB factors in display space.

    Attributes:
        direction: Unit vector towards the sun (3,).
        ambient: Light of the whole sky on a horizontal surface.
        sun: Light of the sun on a surface that faces it.
        zenith: Colour of the sky overhead.
        horizon: Colour of the sky near the ground, and of the haze.
        visibility: Distance in metres over which haze reduces the contrast by 1 - 1/e.
    """

    direction: np.ndarray
    ambient: np.ndarray
    sun: np.ndarray
    zenith: np.ndarray
    horizon: np.ndarray
    visibility: float

    @classmethod
    def from_light(cls, light: Light) -> Daylight:
        """Derives the colours from the sun's height and the clouds; exposure compensates part of the brightness."""
        height = math.sin(max(light.elevation, math.radians(4.0)))
        low = float(np.clip(1.0 - height / 0.45, 0.0, 1.0)) * (1.0 - 0.6 * light.clouds)
        strength = light.sun * (1.0 - 0.85 * light.clouds)
        ambient = _mix((0.60, 0.66, 0.76), (0.74, 0.75, 0.77), light.clouds)
        sun = strength * _mix((1.0, 0.95, 0.86), (1.0, 0.66, 0.40), low)
        raw = float((ambient + sun * height).mean())
        gain = 1.12 * raw**-0.75 * (0.78 + 0.22 * min(1.0, height / 0.35))
        horizon = _mix(_mix((0.78, 0.84, 0.90), (0.76, 0.77, 0.79), light.clouds), (0.90, 0.72, 0.56), 0.8 * low)
        zenith = _mix(_mix((0.27, 0.50, 0.84), (0.62, 0.65, 0.70), light.clouds**2), (0.34, 0.42, 0.60), 0.7 * low)
        dim = 0.72 + 0.28 * min(1.0, height / 0.35)
        flat = math.cos(light.elevation)
        direction = np.array([flat * math.cos(light.azimuth), flat * math.sin(light.azimuth), height], np.float32)
        return cls(direction / np.linalg.norm(direction), gain * ambient, gain * sun, dim * zenith, dim * horizon,
                   340.0 - 130.0 * light.clouds)  # fmt: skip

    def ground_factors(self) -> tuple[np.ndarray, np.ndarray]:
        """Factors (sunlit, shaded) of the albedo of the ground, (3,) each."""
        return self.ambient + self.sun * self.direction[2], 0.92 * self.ambient


def _mix(a: tuple | np.ndarray, b: tuple | np.ndarray, weight: float) -> np.ndarray:
    return (np.asarray(a, np.float32) * (1 - weight) + np.asarray(b, np.float32) * weight).astype(np.float32)


def shade_faces(
    colors: np.ndarray, normals: np.ndarray, materials: np.ndarray, daylight: Daylight, sunlit: np.ndarray | float = 1.0
) -> np.ndarray:
    """Computes the colours of triangles in daylight.

    Args:
        colors: Albedo (F, 3).
        normals: Outward unit normals (F, 3) in the global frame.
        materials: Values of `Material` (F,).
        daylight: Light of the scene.
        sunlit: Fraction of the sun that reaches the triangles, scalar or (F,).

    Returns:
        Colours (F, 3) uint8.
    """
    up = normals[:, 2:3]
    facing = np.maximum(normals @ daylight.direction, 0.0) * sunlit
    light = daylight.ambient * (0.70 + 0.30 * up) + daylight.sun * facing[:, None]
    result = colors * light
    glass, paint, lamp = (materials == int(kind) for kind in (Material.GLASS, Material.PAINT, Material.LAMP))
    mirror = np.clip(0.06 + 0.45 * up, 0.06, 0.4)
    result[glass] += (mirror * daylight.horizon)[glass]
    result[paint] += (0.10 * np.maximum(up, 0.0) * daylight.zenith)[paint]
    result[lamp] = np.maximum(result[lamp], 0.92 * colors[lamp])
    return (np.clip(result, 0.0, 1.0) * 255.0).astype(np.uint8)
