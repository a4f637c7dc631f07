"""How GPQ removes queries: the lowest mean score goes, interval after interval, while the detector is fine-tuned."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from .style import AFTER, BEFORE, GONE, INK, arrow, canvas, plain, row_of, write

SHOWN, GOES = 18, 11
FROM, TO, PRUNED_IN, EPOCHS = 900, 300, 6, 24
"""Queries before and after, epochs in which they go, epochs of the fine-tuning: the paper's schedule."""


def draw(path: Path) -> None:
    """Writes the figure. Scores are an example; times are those of a committed benchmark."""
    figure, panels = canvas(11.6, 3.3, ncols=3, gridspec_kw={'width_ratios': [1.2, 1.1, 1]})
    _scores(panels[0])
    _schedule(panels[1])
    _times(panels[2])
    write(figure, path)


def _scores(panel: Axes) -> None:
    scores = np.random.default_rng(5).uniform(0.25, 0.95, SHOWN)
    gone, scores[GOES] = [2, 6, 14], 0.14
    heights = np.where(np.isin(np.arange(SHOWN), gone), 0, scores)
    panel.bar(range(SHOWN), heights, color=[AFTER if index == GOES else BEFORE for index in range(SHOWN)], width=0.75)
    for index in gone:
        panel.text(index, 0.03, '×', ha='center', va='bottom', fontsize=13, color=GONE, weight='bold')
    panel.annotate(
        'the lowest goes,\nthe next interval begins',
        (GOES, scores[GOES] + 0.02),
        (GOES, 1.08),
        ha='center',
        fontsize=8.5,
        color=AFTER,
        arrowprops={'arrowstyle': '-|>', 'color': AFTER},
    )
    panel.set(xticks=[], yticks=[], xlabel='learned queries (×: already removed)', ylim=(0, 1.35))
    panel.set_ylabel('class score, mean of an interval', fontsize=9)
    panel.xaxis.label.set_size(9)
    plain(panel, '1. one query at a time')


def _schedule(panel: Axes) -> None:
    panel.fill_between([0, PRUNED_IN, EPOCHS], [FROM, TO, TO], color=AFTER, alpha=0.18, lw=0)
    panel.plot([0, PRUNED_IN, EPOCHS], [FROM, TO, TO], color=AFTER, lw=2)
    panel.axvspan(0, PRUNED_IN, ymax=0.04, color=AFTER)
    panel.text(PRUNED_IN + 0.8, FROM * 0.72, 'the remaining queries\ntake over', fontsize=8.5, color=INK)
    arrow(panel, (PRUNED_IN + 3, FROM * 0.69), (PRUNED_IN + 3, TO + 25))
    panel.set(xlim=(0, EPOCHS), ylim=(0, 1.08 * FROM), xticks=[0, PRUNED_IN, EPOCHS], yticks=[TO, FROM])
    panel.set_xlabel('epochs of fine-tuning', fontsize=9)
    panel.set_ylabel('queries', fontsize=9)
    plain(panel, '2. pruned while it is fine-tuned')


def _times(panel: Axes) -> None:
    ms = row_of('query', 'petr_800x320')['ms']['plain']
    names = sorted(ms, key=int, reverse=True)
    panel.bar(names, [ms[name] for name in names], color=[BEFORE] + [AFTER] * (len(names) - 1), width=0.6)
    for place, name in enumerate(names):
        panel.text(place, ms[name] + 8, f'{ms[name]:.0f} ms', ha='center', fontsize=8.5, color=INK)
    panel.set(yticks=[], ylim=(0, 1.12 * ms[names[0]]))
    panel.set_xlabel('queries', fontsize=9)
    plain(panel, "3. PETR's decoder in ONNX Runtime")
    panel.spines['left'].set_visible(False)
