"""Curves of accuracy against a setting, as files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.figures import figure
from mmprune3d.visualization.palette import COLORS, MARKERS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Points = Sequence[tuple[float | str, Sequence[Mapping[str, float]]]]
"""(place on the x axis, figures of one or more repetitions)."""

RATIOS = ('mAP',)
"""Figures that tables give in percent."""


def draw_curves(
    path: Path,
    title: str,
    x_label: str,
    curves: Mapping[str, Points],
    baseline: Mapping[str, float],
    joined: bool = True,
) -> None:
    """Writes one plot with a panel per figure; repetitions are shown as their mean and a band from least to most.

    Args:
        path: PNG file to write.
        title: Title of the plot.
        x_label: Label of the x axis, with its unit.
        curves: Label -> points. Places that are strings are categories, in the order in which they come.
        baseline: Figure -> value without pruning, a dashed line; also says which figures are drawn.
        joined: Join the points of a curve by lines.
    """
    with figure(path, 4.6 * len(baseline), 3.9) as made:
        made.suptitle(title, fontsize=11)
        panels = made.subplots(1, len(baseline), squeeze=False)[0]
        for panel, (name, value) in zip(panels, baseline.items(), strict=True):
            scale, unit = (100.0, ' (%)') if name in RATIOS else (1.0, '')
            panel.axhline(scale * value, color='0.35', linestyle='--', linewidth=1.2, label='baseline')
            for index, (label, points) in enumerate(curves.items()):
                _draw_curve(panel, label, points, name, scale, index, '-' if joined else '')
            panel.set_xlabel(x_label)
            panel.set_ylabel(f'{name}{unit}')
            panel.grid(axis='y', color='0.9')
            panel.spines[['top', 'right']].set_visible(False)
        handles, labels = panels[0].get_legend_handles_labels()
        made.legend(handles, labels, loc='outside lower center', ncols=3, frameon=False)


def _draw_curve(panel: Axes, label: str, points: Points, name: str, scale: float, index: int, line: str) -> None:
    if not points:
        return
    places = [place for place, _ in points]
    values = [[scale * result[name] for result in results] for _, results in points]
    means = [sum(row) / len(row) for row in values]
    color, marker = COLORS[index % len(COLORS)], MARKERS[index % len(MARKERS)]
    panel.plot(places, means, line, color=color, marker=marker, markersize=5, linewidth=1.6, label=label)
    if any(len(row) > 1 for row in values):
        panel.fill_between(places, list(map(min, values)), list(map(max, values)), color=color, alpha=0.2, linewidth=0)
