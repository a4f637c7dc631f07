"""Figures that are drawn without a display."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from mmprune3d.files import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@contextmanager
def figure(path: Path, width: float, height: float, dpi: int = 150) -> Iterator[Figure]:
    """Yields an empty figure and writes it when the block ends.

    Args:
        path: PNG file to write.
        width: Inches.
        height: Inches.
        dpi: Pixels per inch.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    made = Figure(figsize=(width, height), layout='constrained')
    FigureCanvasAgg(made)
    yield made
    with replacing(path) as part:
        made.savefig(part, dpi=dpi)
