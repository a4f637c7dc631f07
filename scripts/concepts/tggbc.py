"""How tgGBC chooses keys: attention of the most confident queries, weighted by their confidence, summed per key."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from .style import AFTER, GONE, INK, KEPT, canvas, plain, row_of, write

QUERIES, VOTERS, KEYS, REMOVED = 12, 4, 28, 18


def draw(path: Path) -> None:
    """Writes the figure. The map is an example; keys per layer and times are those of a committed benchmark."""
    rng = np.random.default_rng(3)
    centres = rng.uniform(2, KEYS - 3, QUERIES)
    attention = np.exp(-0.5 * ((np.arange(KEYS) - centres[:, None]) / 2.2) ** 2) + 0.05 * rng.random((QUERIES, KEYS))
    attention /= attention.sum(1, keepdims=True)
    scores = np.sort(np.concatenate([rng.uniform(0.5, 0.9, VOTERS), rng.uniform(0.02, 0.3, QUERIES - VOTERS)]))[::-1]
    importance = (scores[:VOTERS, None] * attention[:VOTERS]).sum(0)
    figure, panels = canvas(11.6, 3.4, ncols=3, gridspec_kw={'width_ratios': [1.35, 1.1, 1]})
    _map(panels[0], attention, scores)
    _importance(panels[1], importance)
    _layers(panels[2])
    write(figure, path)


def _map(panel: Axes, attention: np.ndarray, scores: np.ndarray) -> None:
    shown = attention / attention.max()
    panel.imshow(shown[:VOTERS], cmap='Purples', extent=(0, KEYS, VOTERS, 0), aspect='auto', vmin=0, vmax=1)
    panel.imshow(shown[VOTERS:], cmap='Greys', extent=(0, KEYS, QUERIES, VOTERS), aspect='auto', vmin=0, vmax=2.6)
    for row, score in enumerate(scores):
        panel.barh(row + 0.5, -5 * score, left=-0.4, height=0.7, color=AFTER if row < VOTERS else GONE)
    panel.axhline(VOTERS, color=INK, lw=1.0, ls='--')
    panel.text(KEYS - 0.4, VOTERS + 0.75, 'not computed', ha='right', va='center', fontsize=8.5, color=INK)
    panel.set(xlim=(-5.4, KEYS), ylim=(QUERIES, 0), xlabel='keys', xticks=[], yticks=[])
    panel.set_ylabel('queries, most confident first', fontsize=9)
    plain(panel, '1. attention of the k most confident queries')
    panel.spines[:].set_visible(False)
    panel.xaxis.label.set_size(9)


def _importance(panel: Axes, importance: np.ndarray) -> None:
    kept = np.zeros(KEYS, dtype=bool)
    kept[np.argsort(-importance)[: KEYS - REMOVED]] = True
    panel.bar(np.arange(KEYS), importance, width=0.85, color=[KEPT if keep else GONE for keep in kept])
    names = [Patch(color=KEPT, label='kept'), Patch(color=GONE, label='removed')]
    panel.legend(handles=names, frameon=False, fontsize=8.5, loc='upper right')
    panel.set(xticks=[], yticks=[], xlabel='keys', ylim=(0, 1.25 * importance.max()))
    panel.set_ylabel('confidence x attention, summed', fontsize=9)
    panel.xaxis.label.set_size(9)
    plain(panel, '2. importance of each key')


def _layers(panel: Axes) -> None:
    row = row_of('decoder', 'streampetr_vov_1600x640')
    shape, plan, ms = row['shape'], row['shape']['plan'], row['ms']
    each = plan['r'] // plan['n'] // 2 * 2
    left = [shape['keys'] - each * min(layer, plan['n']) for layer in range(shape['layers'])]
    panel.bar(range(1, 1 + len(left)), [shape['keys']] * len(left), color=GONE, width=0.7)
    panel.bar(range(1, 1 + len(left)), left, color=KEPT, width=0.7)
    for layer, keys in enumerate(left, 1):
        panel.text(layer, keys + 400, f'{keys}', ha='center', va='bottom', fontsize=7.5, color=INK)
    panel.set(ylim=(0, 1.12 * shape['keys']), yticks=[], xlabel='decoder layer')
    panel.xaxis.label.set_size(9)
    plain(panel, f'3. fewer keys: {ms["stock_fused"]:.0f} → {ms["ours"]:.0f} ms')
    panel.spines['left'].set_visible(False)
