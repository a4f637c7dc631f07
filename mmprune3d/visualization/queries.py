"""Plots of learned queries: selection frequencies, reference points and score trajectories (GPQ, Figures 2 and 4)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mmprune3d.files import replacing

from .palette import COLORS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

GREY, DIM = '0.7', '0.35'
MAP = 'viridis_r'
COLUMNS = 3
"""Largest number of panels of points side by side."""
SHOWN = 20
"""Largest number of trajectories that are drawn of each kind."""


@dataclass(frozen=True)
class PointPanel:
    """Reference points of one model, to be drawn as one panel.

    Attributes:
        title: Title of the panel.
        points: Positions of all queries [N, 2 or more], x and y in metres.
        frequency: Results of each query [N], divided by the mean of the remaining queries; not used for removed ones.
        removed: Whether each query was removed [N] bool.
        pc_range: Lower x, y, z and upper x, y, z in metres.
    """

    title: str
    points: np.ndarray
    frequency: np.ndarray
    removed: np.ndarray
    pc_range: Sequence[float]


@contextmanager
def _figure(path: Path, width: float, height: float) -> Iterator[Figure]:
    """A figure that needs no display and is written to `path` at the end."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout='constrained')
    FigureCanvasAgg(figure)
    yield figure
    with replacing(path) as part:
        figure.savefig(part, dpi=150)


def draw_frequencies(path: Path, panels: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """Plots how often queries are selected, in ascending order: one panel per way of counting, one curve per model.

    Args:
        path: PNG file to write.
        panels: Title -> model -> results per sample of each query [N_q].
    """
    with _figure(path, 5.2 * len(panels), 4.2) as figure:
        axes = figure.subplots(1, len(panels), squeeze=False)[0]
        for panel, (title, curves) in zip(axes, panels.items(), strict=True):
            panel.set_title(title, fontsize=11)
            for index, (name, frequency) in enumerate(curves.items()):
                places = 100 * (np.arange(len(frequency)) + 0.5) / len(frequency)
                color, line = COLORS[index % len(COLORS)], ('-', '--', '-.', ':')[index % 4]
                panel.plot(places, np.sort(frequency), line, color=color, linewidth=1.8, label=name)
            panel.set_xlim(0, 100)
            panel.set_ylim(bottom=0)
            panel.set_xlabel('queries, least selected first (%)')
            panel.set_ylabel('results of a query per sample')
            panel.grid(color='0.9')
            panel.spines[['top', 'right']].set_visible(False)
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc='outside lower center', ncols=3, frameon=False)


def draw_points(path: Path, panels: Sequence[PointPanel]) -> None:
    """Plots reference points from above, one panel per model.

    The colour of a point is the selection frequency of its query; crosses are removed queries.

    Args:
        path: PNG file to write.
        panels: Panels to draw, at least one.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import PowerNorm

    columns = 2 if len(panels) == 4 else min(COLUMNS, len(panels))
    rows = ceil(len(panels) / columns)
    most = max(float(panel.frequency[~panel.removed].max()) for panel in panels)
    # Most queries are selected far less often than a few; the square root makes their colours distinguishable.
    norm = PowerNorm(0.5, vmin=0.0, vmax=most or 1.0)
    with _figure(path, 4.5 * columns + 1.1, 4.9 * rows + 0.4) as figure:
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        for place, panel in zip(axes, panels, strict=False):
            _draw_panel(place, panel, norm)
        for place in axes[len(panels) :]:
            place.set_axis_off()
        handles = {label: handle for place in axes for handle, label in zip(*place.get_legend_handles_labels())}
        figure.legend(handles.values(), handles, loc='outside lower center', ncols=len(handles), frameon=False)
        figure.colorbar(
            ScalarMappable(norm, MAP),
            ax=axes,
            label='results of a query over the mean of its model',
            shrink=0.8,
            aspect=30,
        )


def _draw_panel(place: Axes, panel: PointPanel, norm: Normalize) -> None:
    x, y = panel.points[:, 0], panel.points[:, 1]
    gone, unused = panel.removed, ~panel.removed & (panel.frequency == 0)
    used = np.flatnonzero(~gone & ~unused)
    used = used[np.argsort(panel.frequency[used])]  # the most frequently selected ones are drawn on top
    place.plot(0, 0, '+', color=COLORS[1], markersize=12, markeredgewidth=2.2, label='sensor', zorder=4)
    if unused.any():
        place.scatter(x[unused], y[unused], s=20, color='white', edgecolor=DIM, linewidth=0.9, label='never selected')
    if gone.any():
        place.scatter(x[gone], y[gone], s=18, marker='x', color=GREY, linewidth=1, label='removed')
    place.scatter(x[used], y[used], s=22, c=panel.frequency[used], cmap=MAP, norm=norm, edgecolor=DIM, linewidth=0.3)
    left, front, _, right, back, _ = panel.pc_range
    margin = 0.03 * (right - left)  # for points on the border
    place.set(xlim=(left - margin, right + margin), ylim=(front - margin, back + margin), aspect='equal')
    place.set(xlabel='x (m)', ylabel='y (m)')
    place.set_title(panel.title, fontsize=11)


def draw_trajectories(
    path: Path,
    trajectories: Mapping[int, Sequence[tuple[int, float]]],
    removed_at: Mapping[int, int],
    thresholds: Sequence[tuple[int, float]],
    shown: int = SHOWN,
) -> None:
    """Plots the mean scores of queries during pruning, of removed ones (coloured by iteration) and of remaining ones.

    Args:
        path: PNG file to write.
        trajectories: Id -> (iteration, mean score) of the intervals in which the query existed.
        removed_at: Id -> iteration of its removal.
        thresholds: Iteration and score of the query that was removed, for each removal.
        shown: Largest number of either kind, evenly spaced over the order of removal and over the final scores.
    """
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, Normalize

    stayed = sorted(trajectories.keys() - removed_at.keys(), key=lambda id_: trajectories[id_][-1][1])
    # The lightest colours of the map would be invisible on white.
    shades = ListedColormap(colormaps['YlOrBr'](np.linspace(0.3, 1.0, 256)))
    norm = Normalize(min(removed_at.values()), max(removed_at.values()))
    with _figure(path, 8.6, 4.8) as figure:
        panel = figure.subplots()
        for id_ in _spread(stayed, shown):
            panel.plot(*zip(*trajectories[id_]), color=COLORS[0], linewidth=0.9, alpha=0.7)
        for id_ in _spread(list(removed_at), shown):
            panel.plot(*zip(*trajectories[id_]), color=shades(norm(removed_at[id_])), linewidth=0.9, alpha=0.8)
            panel.plot(*trajectories[id_][-1], 'o', color=shades(norm(removed_at[id_])), markersize=4)
        panel.plot([], color=COLORS[0], label=f'kept ({min(shown, len(stayed))} of {len(stayed)} are drawn)')
        panel.plot(*zip(*thresholds), '--', color='black', linewidth=1.4, label='score of the query that was removed')
        panel.set(xlabel='iteration', ylabel='mean score of the interval')
        panel.grid(color='0.92')
        panel.spines[['top', 'right']].set_visible(False)
        figure.legend(loc='outside lower center', ncols=2, frameon=False)
        label = f'removed after iteration ({min(shown, len(removed_at))} of {len(removed_at)} are drawn)'
        figure.colorbar(ScalarMappable(norm, shades), ax=panel, label=label)


def _spread(ids: Sequence[int], shown: int) -> list[int]:
    """Selects at most `shown` ids, evenly spaced, including the first and the last."""
    if len(ids) <= shown:
        return list(ids)
    return [ids[round(place)] for place in np.linspace(0, len(ids) - 1, shown)]
