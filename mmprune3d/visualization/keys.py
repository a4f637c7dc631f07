"""Keys on camera images: the cells that a decoder still reads, and the layer after which each other was removed."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from .drawing import Color

KEPT = 0
"""Stage of a key that the last layer still reads."""
FIRST, LAST = np.array((12, 14, 58.0)), np.array((128, 122, 214.0))
"""Colours of the keys that are removed first and last; stages between them get mixtures."""
OPACITY = 0.74


def removal_stages(kept: Sequence[np.ndarray]) -> np.ndarray:
    """Computes the layer after which each key was removed.

    Args:
        kept: Ids of the keys that each decoder layer reads; the first layer reads all, ids 0..N_k-1.

    Returns:
        Stages [N_k] int; a layer's number, counted from 1, or `KEPT`.
    """
    stages = np.zeros(len(kept[0]), int)
    for number, ids in enumerate(kept, 1):
        stages[ids] = number
    stages[stages == len(kept)] = KEPT
    return stages


def stage_colors(stages: np.ndarray) -> dict[int, Color]:
    """A colour for every stage that occurs, except `KEPT`: the earlier, the darker."""
    found = [int(stage) for stage in np.unique(stages) if stage != KEPT]
    mixtures = np.linspace(0.0, 1.0, max(len(found), 2))
    return {
        stage: tuple(int(part) for part in FIRST + mixture * (LAST - FIRST))
        for stage, mixture in zip(found, mixtures, strict=False)
    }


def cells_of(stages: np.ndarray, images: int, height: int, width: int) -> tuple[np.ndarray, int]:
    """Arranges stages as maps, one per image; key j is image * rows * columns + row * columns + column.

    Args:
        stages: Stages of all keys [N_k].
        images: Number of cameras.
        height: Height of the images that the network gets, with padding, in pixels.
        width: Width of these images in pixels.

    Returns:
        Maps [images, rows, columns], and the side length of a cell in pixels.

    Raises:
        ValueError: If the keys do not form one feature map with square cells per image.
    """
    area = images * height * width / len(stages)
    for side in sorted(range(1, 257), key=lambda side: abs(side - area**0.5)):
        rows, cols = -(-height // side), -(-width // side)
        if images * rows * cols == len(stages):
            return stages.reshape(images, rows, cols), side
    raise ValueError(f'{len(stages)} keys do not cover {images} images of {width} x {height} pixels with square cells')


def tint_removed(image: np.ndarray, cells: np.ndarray, colors: dict[int, Color], side: float) -> np.ndarray:
    """Tints the cells of an image that were removed in the colour of their stage; other cells are not changed.

    Args:
        image: Image [H, W, 3].
        cells: Stages of its keys [rows, columns]; they may extend beyond the image.
        colors: Colour of each stage, from `stage_colors`.
        side: Side length of a cell in pixels of the image.
    """
    rows, cols = ((np.arange(size) / side).astype(int) for size in image.shape[:2])
    stage = cells[rows[:, None], cols]
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None].astype(float)
    tinted = image.astype(float)
    for number, color in colors.items():
        veiled = OPACITY * np.array(color) + (1 - OPACITY) * grey
        tinted = np.where((stage == number)[..., None], veiled, tinted)
    return tinted.round().astype(np.uint8)
