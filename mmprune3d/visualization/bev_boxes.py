"""Boxes from above: annotated ones, and those that the baseline and the pruned detector find."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mmprune3d.files import replacing

from .palette import COLORS

TRUTH_COLOR = '0.75'
POINT_COLOR = '0.55'


def draw_bev_boxes(
    path: Path,
    points: np.ndarray,
    truth: np.ndarray | None,
    found: Mapping[str, np.ndarray],
    reach: float = 55.0,
    title: str = '',
) -> None:
    """Draws one panel per detector, over the same points and annotated boxes; x is forward (up), y is left.

    Args:
        path: PNG file to write.
        points: Positions [P, 2 or more], x and y in metres.
        truth: Corners of annotated boxes [N, 4, 2] in metres, drawn as grey areas, or None.
        found: Name of a detector -> corners of its boxes [M, 4, 2].
        reach: Distance in metres that is shown to each side.
        title: Title of the picture.

    Raises:
        ValueError: If `found` is empty.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.collections import PolyCollection
    from matplotlib.figure import Figure

    if not found:
        raise ValueError('there are no boxes of any detector to draw')
    figure = Figure(figsize=(4.2 * len(found), 4.6), layout='constrained')
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=10)
    panels = figure.subplots(1, len(found), squeeze=False)[0]
    for panel, (name, boxes), color in zip(panels, found.items(), COLORS):
        # These limits reverse y, which grows to the left.
        panel.set(xlim=(reach, -reach), ylim=(-reach, reach), xticks=[], yticks=[], aspect='equal')
        panel.scatter(points[:, 1], points[:, 0], s=0.2, c=POINT_COLOR, linewidths=0, rasterized=True)
        label = f'{name}: {len(boxes)} boxes'
        if truth is not None:
            panel.add_collection(PolyCollection(truth[..., ::-1], facecolors=TRUTH_COLOR, edgecolors='none'))
            label += f', {len(truth)} annotated (grey)'
        outlines = PolyCollection(boxes[..., ::-1], facecolors='none', edgecolors=color, linewidths=1.0)
        panel.add_collection(outlines)
        panel.set_title(label, fontsize=9)
    with replacing(path) as part:
        figure.savefig(part, dpi=130)
