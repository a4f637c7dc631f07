"""What the colours of a picture before and after pruning mean."""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np

from .drawing import BACKGROUND, Color
from .keys import KEPT, stage_colors

if TYPE_CHECKING:
    from .upgrade import Comparison

BEFORE: Color = (255, 255, 255)
AFTER: Color = (255, 190, 0)
LOST: Color = (255, 70, 70)
NEW: Color = (70, 230, 120)
TRUTH: Color = (78, 78, 84)
TEXT: Color = (235, 235, 235)
LINE_HEIGHT, LEGEND_MARGIN = 28, 8
LEGEND_HEIGHT = 2 * LINE_HEIGHT + LEGEND_MARGIN
"""Pixels of a legend whose two parts fit into a line each."""


def draw_legend(stages: np.ndarray, boxes: Comparison, has_truth: bool, width: int) -> np.ndarray:
    """What the colours of cells mean, then those of boxes; each in as many lines as the width makes necessary.

    Args:
        stages: [N_k], see `keys.removal_stages`.
        boxes: What is drawn.
        has_truth: Whether annotated boxes are drawn too.
        width: Pixels.

    Returns:
        [H, width, 3] uint8.
    """
    cells: list[tuple[Color | None, str]] = [(None, f'{len(stages)} keys:')]
    for stage, color in stage_colors(stages).items():
        cells.append((color, f'{(stages == stage).sum()} removed after layer {stage}'))
    cells.append((None, f'{(stages == KEPT).sum()} kept (image as it is)'))
    lines: list[tuple[Color | None, str]] = [
        (None, 'boxes:'),
        (AFTER, f'pruned ({len(boxes.after.labels)})'),
        (BEFORE, f'baseline ({len(boxes.before.labels)})'),
        (LOST, f'in the baseline only ({(~boxes.found_again).sum()})'),
        (NEW, f'in the pruned model only ({(~boxes.known).sum()})'),
    ]
    if has_truth:
        lines.append((TRUTH, 'annotated'))
    rows = [row for part in (cells, lines) for row in _wrapped(part, width)]
    band = np.full((len(rows) * LINE_HEIGHT + LEGEND_MARGIN, width, 3), BACKGROUND, np.uint8)
    for number, row in enumerate(rows):
        _legend_line(band, 22 + number * LINE_HEIGHT, row)
    return band


def _text_width(text: str) -> int:
    return cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 0.5, 1)[0][0]


def _wrapped(entries: list[tuple[Color | None, str]], width: int) -> list[list[tuple[Color | None, str]]]:
    """Entries in lines of at most `width` pixels; one that is too wide has a line of its own."""
    rows: list[list[tuple[Color | None, str]]] = [[]]
    left = 10
    for color, text in entries:
        taken = (26 if color is not None else 0) + _text_width(text) + 28
        if left + taken > width and rows[-1]:
            rows.append([])
            left = 10
        rows[-1].append((color, text))
        left += taken
    return rows


def _legend_line(band: np.ndarray, base: int, entries: list[tuple[Color | None, str]]) -> None:
    left = 10
    for color, text in entries:
        if color is not None:
            cv2.rectangle(band, (left, base - 12), (left + 18, base + 2), color, -1)
            cv2.rectangle(band, (left, base - 12), (left + 18, base + 2), (120, 120, 120), 1)
            left += 26
        cv2.putText(band, text, (left, base), cv2.FONT_HERSHEY_SIMPLEX, 0.5, TEXT, 1, cv2.LINE_AA)
        left += _text_width(text) + 28
