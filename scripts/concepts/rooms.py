"""Which room of the package imports which, read from the code and the contracts in ``pyproject.toml``."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

from .style import INK, ROOT, arrow, bare, box, canvas, write

PLACES = {
    'pruning': (3.0, 0.0, '#e9d7ef', 'which things go'),
    'ops': (6.6, 0.0, '#e9d7ef', 'building blocks'),
    'layers': (4.8, 1.1, '#f3e8d2', 'modules'),
    'checkpoint': (1.2, 1.1, '#f3e8d2', 'state dicts'),
    'coupling': (0.0, 2.2, '#f3e8d2', 'channels that go together'),
    'adapters': (2.4, 2.2, '#f3e8d2', 'models of others'),
    'models': (4.8, 2.2, '#f3e8d2', 'detectors'),
    'evaluation': (7.2, 2.2, '#f3e8d2', 'metrics'),
    'datasets': (9.6, 2.2, '#f3e8d2', 'data, scenes'),
    'engine': (1.2, 3.3, '#d8e8f5', 'when: hooks, loops'),
    'measure': (3.6, 3.3, '#d8e8f5', 'accuracy, time'),
    'visualization': (9.6, 3.3, '#d8e8f5', 'pictures'),
    'upgrade': (5.2, 4.4, '#dcefe1', 'a faster pair'),
    'inspect': (9.6, 4.4, '#dcefe1', 'what a model uses'),
    'export': (7.4, 4.4, '#dcefe1', 'ONNX'),
    'cli': (7.4, 5.5, '#f7d9d2', 'the command mmprune3d'),
}
"""Room -> left and bottom edge, colour, what is there."""
WIDTH, HEIGHT = 1.95, 0.62


def imports(package: Path) -> dict[str, set[str]]:
    """Room -> rooms that its files import, in functions too."""
    found: dict[str, set[str]] = defaultdict(set)
    for path in sorted(package.rglob('*.py')):
        room = path.relative_to(package).parts[0]
        if room not in PLACES:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module or ''] if isinstance(node, ast.ImportFrom) and not node.level else []
            names += [f'{name}.{alias.name}' for name in names for alias in node.names]
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            parts = [name.split('.') for name in names if name.startswith('mmprune3d.')]
            found[room] |= {part[1] for part in parts if part[1] in PLACES and part[1] != room}
    return found


def forbidden() -> dict[str, set[str]]:
    """Room -> rooms that its contract in ``pyproject.toml`` forbids."""
    import tomllib  # Python 3.11 and newer, which the set-up of `make env` has

    found: dict[str, set[str]] = defaultdict(set)
    for contract in tomllib.loads((ROOT / 'pyproject.toml').read_text())['tool']['importlinter']['contracts']:
        for source in contract.get('source_modules', ()):  # contracts about independence have none
            found[source.removeprefix('mmprune3d.')] |= {
                name.removeprefix('mmprune3d.') for name in contract['forbidden_modules']
            }
    return found


def without_detours(edges: dict[str, set[str]]) -> list[tuple[str, str]]:
    """The edges that are left when those that follow from others are taken away."""

    def reachable(start: str, avoid: tuple[str, str]) -> set[str]:
        seen, open_rooms = set(), [start]
        while open_rooms:
            room = open_rooms.pop()
            for target in edges.get(room, set()):
                if (room, target) != avoid and target not in seen:
                    seen.add(target)
                    open_rooms.append(target)
        return seen

    every = [(room, target) for room in PLACES for target in sorted(edges.get(room, ()))]
    return [(room, target) for room, target in every if target not in reachable(room, (room, target))]


def draw(path: Path) -> None:
    """Writes the figure."""
    figure, panel = canvas(10.6, 6.0)
    for room, (x, y, color, text) in PLACES.items():
        box(panel, (x, y, WIDTH, HEIGHT), '', color)
        panel.text(x + WIDTH / 2, y + 0.4, room, ha='center', va='center', fontsize=10, color=INK, weight='bold')
        panel.text(x + WIDTH / 2, y + 0.16, text, ha='center', va='center', fontsize=7.5, color='#555555')
    contracts = forbidden()
    allowed = {room: targets - contracts[room] for room, targets in imports(ROOT / 'mmprune3d').items()}
    for room, target in without_detours(allowed):
        (x, y, *_), (to_x, to_y, *_) = PLACES[room], PLACES[target]
        down = y > to_y
        start = (x + WIDTH / 2 + 0.25 * (to_x - x) / 4, y if down else y + HEIGHT)
        end = (to_x + WIDTH / 2 - 0.25 * (to_x - x) / 4, to_y + HEIGHT if down else to_y)
        if y == to_y:
            start, end = (x + (WIDTH if to_x > x else 0), y + 0.3), (to_x + (0 if to_x > x else WIDTH), y + 0.3)
        arrow(panel, start, end, '#777777')
    outside = 'experiments, tools, scripts:\nno room imports them'
    box(panel, (2.4, 5.5, 2.9, HEIGHT), outside, '#ffffff', size=8.5, ls='--')
    panel.set(xlim=(-0.1, 11.65), ylim=(-0.1, 6.25))
    bare(panel, 'rooms of mmprune3d: an arrow reads "imports" (what follows from other arrows is left out)')
    write(figure, path)
