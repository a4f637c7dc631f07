"""How AlterMOMA finds redundant weights: with one sensor masked, their substitutes in the other stream wake up."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from .style import AFTER, CAMERA, FUSION, GONE, INK, LIDAR, arrow, bare, box, canvas, write

STREAMS = {'camera': (0.06, 1.5, CAMERA), 'LiDAR': (0.06, 0.3, LIDAR)}
WEIGHTS = 9
PALE = {CAMERA: '#d4e3f2', LIDAR: '#d2ecdf', FUSION: '#eadfcc'}


def draw(path: Path) -> None:
    """Writes the figure, in which all weights are examples."""
    figure, panels = canvas(11.8, 3.2, ncols=4, gridspec_kw={'width_ratios': [1, 1, 1, 1.35]})
    _model(panels[0], '1. contribution (DeCI)', masked=None, awake=())
    _model(panels[1], '2. LiDAR masked, some steps', masked='LiDAR', awake=(2, 5, 6))
    _model(panels[2], '3. camera masked, some steps', masked='camera', awake=(3, 7))
    _scores(panels[3])
    write(figure, path)


def _model(panel: Axes, title: str, masked: str | None, awake: tuple[int, ...]) -> None:
    for name, (x, y, color) in STREAMS.items():
        off = name == masked
        box(panel, (x, y, 1.3, 0.8), '', GONE if off else PALE[color], hatch='///' if off else None, alpha=0.9)
        panel.text(x + 0.65, y + 0.93, f'{name} off' if off else name, ha='center', fontsize=8.5, color=color)
        if not off:
            _weights(panel, x, y, color, awake if masked else ())
        arrow(panel, (x + 1.33, y + 0.4), (1.72, 1.3 + 0.25 * (1 if y > 1 else -1)), GONE if off else INK)
    box(panel, (1.75, 0.85, 0.75, 0.9), 'fusion,\nhead', PALE[FUSION], size=8.5)
    if masked:
        panel.text(0.06, 0.02, '★ wakes up: a substitute', fontsize=8.5, color=AFTER, va='bottom')
    panel.set(xlim=(0, 2.55), ylim=(0.0, 2.6))
    bare(panel, title)


def _weights(panel: Axes, x: float, y: float, color: str, awake: tuple[int, ...]) -> None:
    places = [(x + 0.16 + 0.245 * (index % 5), y + 0.55 - 0.3 * (index // 5)) for index in range(WEIGHTS)]
    for index, place in enumerate(places):
        wakes = index in awake
        panel.scatter(*place, s=70 if wakes else 30, color=AFTER if wakes else color, marker='*' if wakes else 'o')


def _scores(panel: Axes) -> None:
    rng = np.random.default_rng(1)
    contribution = np.sort(rng.uniform(0.1, 1, WEIGHTS))[::-1]
    reactivation = rng.uniform(0.02, 0.12, WEIGHTS)
    reactivation[[2, 5, 6]] = (0.75, 0.6, 0.5)
    score = contribution - reactivation
    cut = np.sort(score)[WEIGHTS // 2 + 1]
    panel.bar(range(WEIGHTS), contribution, width=0.36, color=INK, align='edge', label='contribution')
    panel.bar(range(WEIGHTS), -reactivation, width=0.36, color=AFTER, align='edge', label='− reactivation (ReRI)')
    keeps = score >= cut
    for index, keep in enumerate(keeps):
        text = 'keep' if keep else 'zero'
        panel.text(index + 0.18, -1.02, text, ha='center', fontsize=8, color=LIDAR if keep else '#b03030')
    panel.axhline(0, color=INK, lw=0.8)
    panel.legend(frameon=False, fontsize=8, loc='upper right')
    panel.set(ylim=(-1.1, 1.55), yticks=[], xticks=[])
    panel.set_xlabel('weights', fontsize=9)
    plain_title = '4. score = DeCI − ReRI, then fine-tune'
    panel.set_title(plain_title, fontsize=10, color=INK)
    panel.spines[:].set_visible(False)
