"""Bird's-eye-view feature maps of camera, LiDAR and fusion side by side (AlterMOMA rebuttal, Fig. 1)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from experiments.figures import figure

BOX_COLOR = '#56b4e9'


def draw_bev_features(
    path: Path,
    rows: Mapping[str, Mapping[str, np.ndarray]],
    pc_range: tuple[float, float, float, float],
    boxes: np.ndarray | None = None,
    title: str = '',
) -> None:
    """Writes a grid of maps: one row per state of the model, one column per map; x is forward (up), y is left.

    All maps of a column share one scale, from 0 to their 99th percentile, so that states can be compared.

    Args:
        path: PNG file to write.
        rows: State ('original', ...) -> map ('camera', ...) -> magnitudes [x, y]; a state may lack maps.
        pc_range: Lower x, lower y, upper x, upper y of all maps, in metres.
        boxes: [N, 4, 2], corners of annotated boxes, x and y in metres, or None.
        title: Title of the picture.

    Raises:
        ValueError: If there are no maps.
    """
    from matplotlib.collections import PolyCollection

    columns = list(dict.fromkeys(name for maps in rows.values() for name in maps))
    if not columns:
        raise ValueError('there are no maps to draw')
    highest = {
        name: max(float(np.percentile(maps[name], 99)) for maps in rows.values() if name in maps) for name in columns
    }
    # rows of an image go along x: turned so that x points up and y to the left
    extent = (pc_range[3], pc_range[1], pc_range[0], pc_range[2])
    with figure(path, 3.1 * len(columns), 3.1 * len(rows) + 0.4, dpi=130) as made:
        made.suptitle(title, fontsize=10)
        panels = made.subplots(len(rows), len(columns), squeeze=False)
        for line, (state, maps) in zip(panels, rows.items(), strict=True):
            for panel, name in zip(line, columns, strict=True):
                panel.set(xticks=[], yticks=[])
                if name not in maps:
                    panel.axis('off')
                    continue
                panel.imshow(
                    maps[name][:, ::-1],
                    origin='lower',
                    extent=extent,
                    vmin=0,
                    vmax=highest[name] or 1.0,
                    cmap='magma',
                    interpolation='nearest',
                )
                if boxes is not None:
                    outlines = PolyCollection(boxes[..., ::-1], facecolors='none', edgecolors=BOX_COLOR, linewidths=0.7)
                    panel.add_collection(outlines)
                # boxes beyond the map do not widen the panel
                panel.set(xlim=extent[:2], ylim=extent[2:])
                panel.set_title(f'{name}, {state}', fontsize=9)
