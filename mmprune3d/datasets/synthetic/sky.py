"""The sky and the distant skyline of a town as a panorama around the car, painted once per scene."""

from __future__ import annotations

import math

import cv2
import numpy as np

from .scene import Light
from .shading import Daylight

WIDTH = 2880
LOWEST, HIGHEST = math.radians(-1.0), math.radians(50.0)
HEIGHT = round(WIDTH * (HIGHEST - LOWEST) / (2 * math.pi))


def paint_sky(light: Light, daylight: Daylight, seed: int) -> np.ndarray:
    """Panorama (HEIGHT, WIDTH, 3) uint8: columns are azimuths 0 to 2 pi, rows go from `HIGHEST` down to `LOWEST`."""
    rng = np.random.default_rng((seed, 72))
    elevation = np.linspace(HIGHEST, LOWEST, HEIGHT, dtype=np.float32)[:, None]
    azimuth = np.linspace(0, 2 * math.pi, WIDTH, endpoint=False, dtype=np.float32)[None]
    rise = np.sqrt(np.clip(elevation / HIGHEST, 0, 1))[..., None]
    sky = daylight.horizon * (1 - rise) + daylight.zenith * rise
    sky = np.broadcast_to(sky, (HEIGHT, WIDTH, 3)).copy()
    cover = _clouds(rng, light.clouds) * np.clip(elevation / math.radians(6.0), 0, 1)
    white = np.minimum(daylight.horizon * 1.16 + 0.03, 1.0) * (1.0 - 0.14 * light.clouds**2)
    sky += cover[..., None] * (white - sky)
    turn = np.cos(azimuth - light.azimuth) * np.cos(elevation) * math.cos(light.elevation)
    closeness = np.clip(turn + np.sin(elevation) * math.sin(light.elevation), 0, 1)
    glow = (0.9 * closeness**400 + 0.25 * closeness**12) * (1 - 0.8 * light.clouds)
    sky += glow[..., None] * (np.float32([1.0, 0.92, 0.75]) - 0.6 * sky)
    image = (np.clip(sky, 0, 1) * 255).astype(np.uint8)
    _skyline(image, daylight, rng)
    return image


def _clouds(rng: np.random.Generator, amount: float) -> np.ndarray:
    """Clouds (HEIGHT, WIDTH) float32 in 0..1: fractal noise, periodic around the horizon, thresholded by cloudiness."""
    total = np.zeros((HEIGHT, WIDTH), np.float32)
    for cells, weight in ((12, 1.0), (26, 0.6), (60, 0.34), (144, 0.18)):
        noise = rng.random((max(3, cells // 3), cells), dtype=np.float32)
        around = cv2.resize(np.concatenate([noise] * 3, axis=1), (3 * WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
        total += weight * around[:, WIDTH : 2 * WIDTH]
    low, high = np.quantile(total[::8, ::8], [max(0.0, 0.9 - 0.95 * amount), 0.995])
    return np.clip((total - low) / max(float(high - low), 1e-3) * 1.8, 0, 1)


def _row(elevation: float) -> int:
    return round((HIGHEST - elevation) / (HIGHEST - LOWEST) * (HEIGHT - 1))


def _skyline(image: np.ndarray, daylight: Daylight, rng: np.random.Generator) -> None:
    """Draws hazy hills, distant houses and a line of trees along the horizon."""
    per_degree = WIDTH / 360
    angle = np.arange(WIDTH) * 2 * math.pi / WIDTH
    hills = sum(a * np.sin(k * angle + rng.uniform(0, 6.28)) for k, a in ((3, 0.5), (7, 0.3), (17, 0.15)))
    hazy = _toned(daylight, (0.40, 0.48, 0.50), 0.30)
    for column, height in enumerate(np.radians(np.clip(1.4 + hills, 0.4, 3.0))):
        image[_row(float(height)) :, column] = hazy
    for _ in range(110):
        left, width = rng.uniform(0, WIDTH), rng.uniform(0.8, 3.0) * per_degree
        top = _row(math.radians(float(rng.uniform(0.8, 3.2))))
        tone = _toned(daylight, tuple(rng.uniform(0.35, 0.6, 3) * 0.3 + 0.42), float(rng.uniform(0.35, 0.6)))
        cv2.rectangle(image, (int(left), top), (int(left + width), HEIGHT), tone, -1)
    for _ in range(260):
        at, size = rng.uniform(0, WIDTH), rng.uniform(0.4, 1.1) * per_degree
        tone = _toned(daylight, (0.17, 0.26, 0.12), float(rng.uniform(0.45, 0.7)))
        cv2.ellipse(image, (int(at), _row(math.radians(0.2))), (int(size), int(0.9 * size)), 0, 0, 360, tone, -1)
    image[_row(0.0) :] = _toned(daylight, (0.30, 0.33, 0.24), 0.4)


def _toned(daylight: Daylight, color: tuple[float, ...], clarity: float) -> tuple[int, int, int]:
    """A colour seen through haze; with `clarity` = 1 there is no haze."""
    mixed = np.asarray(color) * daylight.ambient * clarity + daylight.horizon * (1 - clarity)
    return tuple(int(255 * min(1.0, channel)) for channel in mixed)  # type: ignore[return-value]
