"""Draws the concept figures of the documentation: ``python scripts/draw_concepts.py`` writes docs/images/concept_*.png.

Times and sizes in them are read from docs/data, pictures from docs/images; nothing is measured here. No display is
needed, and the same data give the same files.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from concepts import altermoma, gpq, halting, overview, rooms, style, tggbc

FIGURES: dict[str, Callable[[Path], None]] = {
    'overview': overview.draw,
    'tggbc': tggbc.draw,
    'gpq': gpq.draw,
    'altermoma': altermoma.draw,
    'halting': halting.draw,
    'rooms': rooms.draw,
}
"""Name of a figure -> what draws it."""


def main() -> None:
    """Draws all figures, or those that are named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('names', nargs='*', metavar='NAME', help=f'figures: {", ".join(FIGURES)}; all if left out')
    parser.add_argument('--out', type=Path, default=style.IMAGES, help='folder (default: docs/images)')
    args = parser.parse_args()
    unknown = [name for name in args.names if name not in FIGURES]
    if unknown:
        parser.error(f'unknown figures: {", ".join(unknown)}; choose from {", ".join(FIGURES)}')
    args.out.mkdir(parents=True, exist_ok=True)
    for name in args.names or FIGURES:
        path = args.out / f'concept_{name}.png'
        FIGURES[name](path)
        print(path)


if __name__ == '__main__':
    main()
