"""Size priors: the mean (width, length, height) of each class in nuScenes, and the variation between objects."""

from __future__ import annotations

import numpy as np

MEAN_SIZES: dict[str, tuple[float, float, float]] = {
    'car': (1.95, 4.62, 1.73),
    'truck': (2.52, 6.94, 2.84),
    'bus': (2.95, 11.19, 3.49),
    'trailer': (2.90, 12.28, 3.87),
    'construction_vehicle': (2.82, 6.56, 3.20),
    'pedestrian': (0.67, 0.73, 1.77),
    'motorcycle': (0.77, 2.11, 1.46),
    'bicycle': (0.61, 1.70, 1.29),
    'traffic_cone': (0.41, 0.41, 1.08),
    'barrier': (2.49, 0.50, 0.98),
}
SPREADS: dict[str, tuple[float, float, float]] = {
    'car': (0.06, 0.08, 0.07),
    'truck': (0.06, 0.18, 0.13),
    'bus': (0.03, 0.10, 0.06),
    'trailer': (0.05, 0.16, 0.08),
    'construction_vehicle': (0.10, 0.15, 0.12),
    'pedestrian': (0.12, 0.14, 0.06),
    'motorcycle': (0.10, 0.08, 0.07),
    'bicycle': (0.10, 0.08, 0.08),
    'traffic_cone': (0.10, 0.10, 0.18),
    'barrier': (0.06, 0.08, 0.06),
}
"""Standard deviation of width, length and height, relative to the mean."""


def draw_size(rng: np.random.Generator, label: str) -> tuple[float, float, float]:
    """Draws (width, length, height) in metres, within two standard deviations of the mean, rounded to millimetres."""
    common, own = rng.normal(), rng.normal(size=3)
    deviation = np.clip(0.6 * common + 0.8 * own, -2.0, 2.0)
    size = np.array(MEAN_SIZES[label]) * (1 + np.array(SPREADS[label]) * deviation)
    width, length, height = (round(float(value), 3) for value in size)
    return width, length, height
