"""Halted tokens from above (token halting, Figure 3), and the share of halted tokens of each kind (Figure 4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .palette import COLORS, MARKERS
from .queries import _figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PALE, MIDDLE, DARK, STRONG = '#bdbdbd', '#5aaee6', '#1f4e9e', '#8e0fa8'
"""Colours of tokens halted first, halted later and never halted: grey, blue and purple, as in the paper."""
TRUTH_COLOR, TRUTH_AREA = 'black', '#ffef9e'
BOX_COLORS = (
    '#d62728', '#00a65a', '#e69f00', '#e754b8', '#8c5a2b', '#0b7285', '#7fbf00', '#ff7f50', '#3a5fcd', '#8a8a00'
)  # fmt: skip
"""Colours of found boxes in the order of their names; none of them is the colour of a token."""
LINES = ('-', '--', ':', '-.')
MARKED = 12
"""Number of points above which curves have no markers."""


def halting_colors(steps: int) -> list[str]:
    """Colours of tokens that halt at the first, second, ... of `steps` decisions, then of those that never halt."""
    from matplotlib.colors import LinearSegmentedColormap, to_hex

    scale = LinearSegmentedColormap.from_list('halting', [PALE, MIDDLE, DARK])
    return [to_hex(scale(step / steps)) for step in range(steps)] + [STRONG]


def draw_halted_tokens(
    path: Path,
    coords: np.ndarray,
    halted_at: np.ndarray,
    layers: Sequence[int],
    voxel_size: Sequence[float],
    point_cloud_range: Sequence[float],
    truth: np.ndarray | None = None,
    found: Mapping[str, np.ndarray] | None = None,
    title: str = '',
) -> None:
    """Draws the tokens of one sample from above, coloured by the attention layer before which they halted.

    x is forward (up), y is left; both axes are in metres and have the same scale. Tokens that never halted have the
    strongest colour; of tokens above each other, the one that halted last is visible.

    Args:
        path: PNG file to write.
        coords: Rows (sample, z, y, x) of one sample [N, 4].
        halted_at: Attention layer before which each token was halted [N]; a number that is not in `layers` for tokens
            that never halted.
        layers: Layers before which tokens may halt, ascending.
        voxel_size: Size of a voxel along x, y and further axes in metres.
        point_cloud_range: Lower x, y, z and upper x, y, z in metres.
        truth: Corners of annotated boxes [G, 4, 2] in metres, drawn as pale areas under the tokens, or None.
        found: Name -> corners of found boxes [M, 4, 2], one colour per name in their order; names without boxes are not
            shown.
        title: Title of the picture.

    Raises:
        ValueError: If there are no tokens, or they belong to several samples.
    """
    if len(coords) != len(halted_at) or len(np.unique(coords[:, 0])) != 1:
        raise ValueError(
            f'need the tokens of one sample, found {len(coords)} coordinates of {len(np.unique(coords[:, 0]))} samples '
            f'and {len(halted_at)} layers'
        )
    left, front, _, right, back, _ = point_cloud_range
    found = found or {}
    entries = len(layers) + 3 + sum(len(boxes) > 0 for boxes in found.values())
    # The height of the panel, its labels and the legend together; with less, the layout cuts off the title.
    height = 7.4 * min(max((right - left) / (back - front), 0.4), 2.0) + 1.1 + 0.2 * ceil(entries / 2)
    with _figure(path, 8.4, height) as figure:
        panel = figure.subplots()
        corners = _cells(coords, voxel_size, point_cloud_range)
        _draw_tokens(panel, corners, halted_at, layers)
        _draw_boxes(
            panel, 'annotated', truth, facecolors=TRUTH_AREA, edgecolors=TRUTH_COLOR, linewidths=0.6, zorder=0.5
        )
        for name, boxes, color in zip(found, found.values(), cycle(BOX_COLORS)):
            _draw_boxes(panel, name, boxes, facecolors='none', edgecolors=color, linewidths=1.3, zorder=3)
        # These limits reverse y, which grows to the left.
        panel.set(xlim=(back, front), ylim=(left, right), aspect='equal', xlabel='y (m)', ylabel='x, forward (m)')
        panel.plot(0, 0, '+', color=TRUTH_COLOR, markersize=11, markeredgewidth=1.6, label='sensor')
        panel.set_title(title, fontsize=11)
        figure.legend(loc='outside lower center', ncols=2, frameon=False, fontsize=9)


def _cells(coords: np.ndarray, voxel_size: Sequence[float], point_cloud_range: Sequence[float]) -> np.ndarray:
    """Corners [N, 4, 2] of the tokens' cells in the axes of a panel: y, then x, in metres."""
    size = np.array([voxel_size[1], voxel_size[0]], dtype=float)
    lower = coords[:, 2:4] * size + np.array([point_cloud_range[1], point_cloud_range[0]])
    return lower[:, None] + np.array([(0, 0), (0, 1), (1, 1), (1, 0)]) * size


def _draw_tokens(panel: Axes, corners: np.ndarray, halted_at: np.ndarray, layers: Sequence[int]) -> None:
    from matplotlib.collections import PolyCollection

    chosen = {f'halted before layer {layer}': halted_at == layer for layer in layers}
    chosen['never halted'] = ~np.isin(halted_at, layers)
    for (label, mask), color in zip(chosen.items(), halting_colors(len(layers)), strict=True):
        text = f'{label}: {mask.sum():,} tokens ({mask.mean():.1%})'
        # Neighbours share an edge, which antialiasing would show as a white line.
        panel.add_collection(
            PolyCollection(corners[mask], facecolors=color, linewidths=0, antialiased=False, label=text)
        )


def _draw_boxes(panel: Axes, name: str, boxes: np.ndarray | None, **style: Any) -> None:
    from matplotlib.collections import PolyCollection

    if boxes is not None and len(boxes):
        label = f'{name}: {len(boxes)} box{"es" * (len(boxes) > 1)}'
        panel.add_collection(PolyCollection(boxes[..., ::-1], label=label, **style))


def draw_sparsity(
    path: Path, curves: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]], x_label: str, title: str = ''
) -> None:
    """Draws the share of halted tokens of each kind over the course of training (Figure 4) or over attention layers.

    Args:
        path: PNG file to write.
        curves: Run -> kind of token ('foreground', ...) -> (position on the x axis, share in 0..1); one colour per run,
            one line style per kind.
        x_label: Label of the x axis.
        title: Title of the plot.

    Raises:
        ValueError: If `curves` has no points.
    """
    if not any(points for kinds in curves.values() for points in kinds.values()):
        raise ValueError('there are no shares of halted tokens to draw')
    styles = dict(zip(dict.fromkeys(kind for kinds in curves.values() for kind in kinds), cycle(LINES)))
    with _figure(path, 6.4, 4.4) as figure:
        panel = figure.subplots()
        for index, (run, kinds) in enumerate(curves.items()):
            for kind, points in kinds.items():
                x, y = np.array(points, dtype=float).reshape(-1, 2).T
                label = f'{run}: {kind}' if len(curves) > 1 else kind
                color = COLORS[index % len(COLORS)]
                marker = MARKERS[index % len(MARKERS)] if len(x) <= MARKED else ''
                panel.plot(x, 100 * y, styles[kind], marker=marker, markersize=4, color=color, label=label)
        panel.set(xlabel=x_label, ylabel='halted tokens (%)', ylim=(-2, 102))
        panel.set_title(title, fontsize=11)
        panel.grid(color='0.92')
        panel.spines[['top', 'right']].set_visible(False)
        figure.legend(loc='outside lower center', ncols=2, frameon=False)
