"""Boxes of a detector before and after pruning, and the colours that they are drawn in."""

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
    """Confident boxes of a prediction, or annotated ones.

    Attributes:
        corners: [N, 8, 3], see `box_corners`.
        labels: [N].
    """

    corners: np.ndarray
    labels: np.ndarray

    @property
    def centers(self) -> np.ndarray:
        """[N, 2] on the ground."""
        return self.corners[:, :4, :2].mean(1)

    def where(self, keep: np.ndarray) -> Boxes:
        """Those of a mask [N]."""
        return Boxes(self.corners[keep], self.labels[keep])


class Comparison(NamedTuple):
    """Boxes of both models, and which of them have a partner.

    Attributes:
        before: Of the baseline.
        after: Of the pruned model.
        found_again: [N], whether a box of `before` has a partner in `after`.
        known: [M], whether a box of `after` has a partner in `before`.
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
