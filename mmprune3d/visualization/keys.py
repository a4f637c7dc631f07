"""Keys on camera images: which cells a decoder still reads, and after which layer it stopped reading the others."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from .drawing import Color

KEPT = 0
"""Stage of a key that the last layer still reads."""
FIRST, LAST = np.array((12, 14, 58.0)), np.array((128, 122, 214.0))
"""Colours of what is removed first and last; stages between them are mixtures."""
OPACITY = 0.74


def removal_stages(kept: Sequence[np.ndarray]) -> np.ndarray:
    """After which layer each key was removed.

    Args:
        kept: Per decoder layer, the ids of the keys it reads; the first layer reads all, ids 0..N_k-1.

    Returns:
        [N_k] int; a layer's number, counted from 1, or `KEPT`.
    """
    stages = np.zeros(len(kept[0]), int)
    for number, ids in enumerate(kept, 1):
        stages[ids] = number
    stages[stages == len(kept)] = KEPT
    return stages


def stage_colors(stages: np.ndarray) -> dict[int, Color]:
    """A colour for every stage that occurs, other than `KEPT`: the earlier, the darker."""
    found = [int(stage) for stage in np.unique(stages) if stage != KEPT]
    mixtures = np.linspace(0.0, 1.0, max(len(found), 2))
    return {
        stage: tuple(int(part) for part in FIRST + mixture * (LAST - FIRST))
        for stage, mixture in zip(found, mixtures, strict=False)
    }


def cells_of(stages: np.ndarray, images: int, height: int, width: int) -> tuple[np.ndarray, int]:
    """Stages as maps, one per image; a key is image * rows * cols + row * cols + col.

    Args:
        stages: [N_k].
        images: Number of cameras.
        height: Of the images as the network sees them, with padding; pixels.
        width: Likewise.

    Returns:
        [images, rows, cols], and the side of a cell in pixels.

    Raises:
        ValueError: If the keys are not those of one feature map per image.
    """
    area = images * height * width / len(stages)
    for side in sorted(range(1, 257), key=lambda side: abs(side - area**0.5)):
        rows, cols = -(-height // side), -(-width // side)
        if images * rows * cols == len(stages):
            return stages.reshape(images, rows, cols), side
    raise ValueError(f'{len(stages)} keys do not cover {images} images of {width} x {height} pixels with square cells')


def tint_removed(image: np.ndarray, cells: np.ndarray, colors: dict[int, Color], side: float) -> np.ndarray:
    """The image with a veil over cells that were removed, in the colour of their stage; other cells stay as they are.

    Args:
        image: [H, W, 3].
        cells: [rows, cols], stages of its keys; they may reach beyond the image.
        colors: See `stage_colors`.
        side: Of a cell, in pixels of the image.
    """
    rows, cols = ((np.arange(size) / side).astype(int) for size in image.shape[:2])
    stage = cells[rows[:, None], cols]
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None].astype(float)
    tinted = image.astype(float)
    for number, color in colors.items():
        veiled = OPACITY * np.array(color) + (1 - OPACITY) * grey
        tinted = np.where((stage == number)[..., None], veiled, tinted)
    return tinted.round().astype(np.uint8)
