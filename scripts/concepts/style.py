"""Colours, canvas and small shapes of all concept figures."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / 'docs' / 'data'
IMAGES = ROOT / 'docs' / 'images'

BEFORE = '#9aa0a6'
AFTER = '#7b2d8e'
KEPT = '#f2b134'
GONE = '#d5d8dc'
CAMERA = '#3a7ebf'
LIDAR = '#2e9e6b'
FUSION = '#8a6d3b'
INK = '#222222'

DPI = 110
COLOURS = 128
"""Of the written palette; it keeps the files small and their bytes the same."""


def canvas(width: float, height: float, **gridspec: Any) -> tuple[Figure, Any]:
    """A figure without a display, and its panels.

    Args:
        width: In inches.
        height: In inches.
        gridspec: Arguments of ``Figure.subplots``.
    """
    figure = Figure(figsize=(width, height), layout='constrained')
    FigureCanvasAgg(figure)
    return figure, figure.subplots(**gridspec)


def write(figure: Figure, path: Path) -> None:
    """Writes a PNG file with a small palette and no date in it."""
    raw = io.BytesIO()
    figure.savefig(raw, format='png', dpi=DPI, facecolor='white')
    picture = Image.open(raw).convert('RGB')
    picture = picture.quantize(COLOURS, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    picture.save(path, optimize=True)


def measured(name: str) -> dict[str, Any]:
    """The committed figures ``docs/data/<name>_cpu_fp32.json``: ``rows`` and ``env``."""
    return json.loads((DATA / f'{name}_cpu_fp32.json').read_text())


def row_of(name: str, row: str) -> dict[str, Any]:
    """One row of `measured`, by the name of the row."""
    return next(found for found in measured(name)['rows'] if found['row'] == row)


def bare(panel: Axes, title: str = '') -> None:
    """Takes away ticks and frame."""
    panel.set_xticks([])
    panel.set_yticks([])
    panel.spines[:].set_visible(False)
    panel.set_title(title, fontsize=10, color=INK)


def plain(panel: Axes, title: str = '') -> None:
    """Takes away the frame at the top and on the right."""
    panel.spines[['top', 'right']].set_visible(False)
    panel.tick_params(labelsize=8)
    panel.set_title(title, fontsize=10, color=INK)


def box(
    panel: Axes, place: Sequence[float], text: str, color: str = 'white', size: float = 9, **patch: Any
) -> FancyBboxPatch:
    """A rounded box [x, y, width, height] with a text in the middle."""
    x, y, width, height = place
    shape = FancyBboxPatch(
        (x, y), width, height, boxstyle='round,pad=0,rounding_size=0.06', fc=color, ec=INK, lw=0.9, **patch
    )
    panel.add_patch(shape)
    panel.text(x + width / 2, y + height / 2, text, ha='center', va='center', fontsize=size, color=INK)
    return shape


def arrow(panel: Axes, start: Sequence[float], end: Sequence[float], color: str = INK, bend: float = 0.0) -> None:
    """An arrow between two points of the panel."""
    style = f'arc3,rad={bend}'
    shape = FancyArrowPatch(start, end, arrowstyle='-|>', mutation_scale=11, color=color, lw=1.2, connectionstyle=style)
    panel.add_patch(shape)


def pair_of_bars(panel: Axes, place: float, before: float, after: float, unit: str = 'ms') -> None:
    """Two bars, in percent of the first one, with the figures beside them."""
    share = 100 * after / before
    panel.barh(place + 0.19, 100, height=0.34, color=BEFORE)
    panel.barh(place - 0.19, share, height=0.34, color=AFTER)
    panel.text(101.5, place + 0.19, f'{before:.0f} {unit}', va='center', fontsize=8.5, color=INK)
    panel.text(share + 1.5, place - 0.19, f'{after:.0f} {unit}', va='center', fontsize=8.5, color=AFTER, weight='bold')
