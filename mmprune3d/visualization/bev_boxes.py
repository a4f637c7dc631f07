"""Boxes from above: what was annotated, what the baseline finds and what the pruned detector finds."""

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
    """Writes one panel per detector, over the same points and annotated boxes; x is forward (up), y is left.

    Args:
        path: PNG file to write.
        points: [P, 2 or more] x, y in metres.
        truth: [N, 4, 2] corners of annotated boxes in metres, drawn as grey areas, or None.
        found: Detector -> [M, 4, 2] corners of its boxes.
        reach: Metres that are shown to each side.
        title: Of the picture.

    Raises:
        ValueError: If there are no detectors.
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
        # limits turn y around: it grows to the left
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
