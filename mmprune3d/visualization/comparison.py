"""Boxes of two models of one sample, which of them belong together, and in which colours they are drawn."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .drawing import Color

BEFORE: Color = (255, 255, 255)
AFTER: Color = (255, 190, 0)
LOST: Color = (255, 70, 70)
NEW: Color = (70, 230, 120)
TRUTH: Color = (78, 78, 84)


class Boxes(NamedTuple):
    """Boxes of a prediction with high scores, or annotated boxes.

    Attributes:
        corners: Corners [N, 8, 3], as from `box_corners`.
        labels: Classes [N].
    """

    corners: np.ndarray
    labels: np.ndarray

    @property
    def centers(self) -> np.ndarray:
        """Centres of the boxes on the ground, [N, 2]."""
        return self.corners[:, :4, :2].mean(1)

    def where(self, keep: np.ndarray) -> Boxes:
        """Selects the boxes of a mask [N]."""
        return Boxes(self.corners[keep], self.labels[keep])


class Comparison(NamedTuple):
    """Boxes of both models, and whether each has a partner in the other model.

    Attributes:
        before: Boxes of the baseline.
        after: Boxes of the pruned model.
        found_again: Whether a box of `before` has a partner in `after` [N].
        known: Whether a box of `after` has a partner in `before` [M].
    """

    before: Boxes
    after: Boxes
    found_again: np.ndarray
    known: np.ndarray

    def layers(self) -> list[tuple[Boxes, Color, int]]:
        """Boxes with colour and line width, in the order of drawing: thin ones last, so that they stay visible."""
        return [
            (self.after.where(self.known), AFTER, 3),
            (self.after.where(~self.known), NEW, 3),
            (self.before.where(self.found_again), BEFORE, 1),
            (self.before.where(~self.found_again), LOST, 1),
        ]
