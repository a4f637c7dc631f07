"""Accuracy against speed-up, a line per method (token halting, Figure 2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import NamedTuple

from experiments.figures import figure
from mmprune3d.visualization.palette import COLORS, MARKERS


class ParetoPoint(NamedTuple):
    """One setting of a method.

    Attributes:
        label: Written next to the point, may be empty.
        speedups: Times as fast as the original, of one or more repetitions.
        accuracies: In 0..1, of one or more repetitions.
    """

    label: str
    speedups: Sequence[float]
    accuracies: Sequence[float]


def draw_pareto(
    path: Path,
    original: ParetoPoint,
    methods: Mapping[str, Sequence[ParetoPoint]],
    x_label: str = 'speed-up of the backbone',
    y_label: str = 'mAP (%)',
    title: str = '',
) -> None:
    """Writes one plot; up and right is better. Repetitions are shown as their means, and bars from least to most.

    Points of a method are joined, in the order given, from the original on; a single point stands alone.

    Args:
        path: PNG file to write.
        original: The unpruned detector, a star, whose accuracy is drawn as a dashed line too.
        methods: Name -> its settings, those without any are left out.
        x_label: Label of the x axis.
        y_label: Label of the y axis.
        title: Title of the plot.

    Raises:
        ValueError: If a point has no speed-up or no accuracy.
    """
    points = [original, *(point for several in methods.values() for point in several)]
    empty = [point.label for point in points if not (point.speedups and point.accuracies)]
    if empty:
        raise ValueError(f'points {empty} have no speed-up or no accuracy; give one figure or more of both')
    start = mean(original.speedups), 100 * mean(original.accuracies)
    with figure(path, 7.2, 5.2) as made:
        axes = made.subplots()
        axes.axhline(start[1], color='0.75', linestyle='--', linewidth=1.0)
        axes.axvline(1.0, color='0.75', linestyle=':', linewidth=1.0)
        drawn = {name: several for name, several in methods.items() if several}
        for index, (name, several) in enumerate(drawn.items()):
            style = dict(color=COLORS[index % len(COLORS)], marker=MARKERS[index % len(MARKERS)], markersize=5)
            x, y = [mean(p.speedups) for p in several], [100 * mean(p.accuracies) for p in several]
            axes.plot(x, y, linestyle='', label=name, **style)
            if len(several) > 1:
                axes.plot([start[0], *x], [start[1], *y], linewidth=1.5, color=style['color'])
            for point, *place in zip(several, x, y, strict=True):
                bars = dict(xerr=_reach(point.speedups), yerr=_reach(point.accuracies, 100))
                axes.errorbar(*place, **bars, fmt='none', ecolor=style['color'], elinewidth=1, capsize=2, alpha=0.6)
                axes.annotate(point.label, place, (4, 4), textcoords='offset points', fontsize=7, color='0.25')
        axes.plot(*start, '*', color='black', markersize=12, label=original.label, zorder=3)
        axes.set(title=title, xlabel=x_label, ylabel=y_label)
        axes.margins(0.08)
        axes.grid(color='0.93')
        axes.spines[['top', 'right']].set_visible(False)
        made.legend(loc='outside lower center', ncols=3, frameon=False)


def _reach(values: Sequence[float], scale: float = 1.0) -> list[list[float]]:
    """How far `values` reach below and above their mean, as matplotlib's error bars want it."""
    middle = mean(values)
    return [[scale * (middle - min(values))], [scale * (max(values) - middle)]]
