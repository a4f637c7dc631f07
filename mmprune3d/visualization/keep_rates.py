"""Keep rates of the layers of a pruned detector as a bar chart."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mmprune3d.files import replacing

from .palette import COLORS

BAR_INCHES = 0.16
"""Height of the bar of one layer."""
LABELS = 90
"""Number of layers above which their names are left out."""


def draw_keep_rates(report: Mapping[str, Any], path: Path) -> None:
    """Draws one bar per layer, from the first at the top to the last, coloured by group.

    Dashed lines are the keep rates of the groups; the solid line is that of the whole model.

    Args:
        report: ``total``, ``groups`` (name -> row) and ``layers`` (name -> row with ``group``), where a row has
            ``kept``, ``total`` and ``rate``, such as ``keep_rates.json`` of PruningLoop.
        path: PNG file to write.

    Raises:
        ValueError: If the report has no layers.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    layers, groups = report['layers'], list(report['groups'])
    if not layers:
        raise ValueError('the report has no layers, so there is nothing to draw')
    color = {group: COLORS[index % len(COLORS)] for index, group in enumerate(groups)}
    figure = Figure(figsize=(7.5, 1.6 + BAR_INCHES * len(layers)), layout='constrained')
    FigureCanvasAgg(figure)
    panel = figure.subplots()
    places = np.arange(len(layers))
    rates = [100 * row['rate'] for row in layers.values()]
    panel.barh(places, rates, color=[color[row['group']] for row in layers.values()], height=0.8)
    for group in groups:
        row = report['groups'][group]
        label = f'{group}: {100 * row["rate"]:.1f} % of {row["total"]:,}'
        panel.axvline(100 * row['rate'], color=color[group], linestyle='--', linewidth=1.4, label=label)
    total = report['total']
    label = f'all: {100 * total["rate"]:.1f} % of {total["total"]:,}'
    panel.axvline(100 * total['rate'], color='0.2', linewidth=1.2, label=label)
    panel.set(xlim=(0, 100), ylim=(len(layers) - 0.4, -0.6), xlabel='kept (%)')
    named = len(layers) <= LABELS
    panel.set_yticks(places if named else [], list(layers) if named else [], fontsize=6)
    panel.spines[['top', 'right']].set_visible(False)
    figure.legend(loc='outside lower center', ncols=2, frameon=False, fontsize=8)
    with replacing(path) as part:
        figure.savefig(part, dpi=150)
