"""Who imports whom in mmprune3d, read from the source: nothing is imported."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / 'mmprune3d'


def modules() -> dict[str, Path]:
    """Name of every module of the package -> its file."""
    files = [path for path in PACKAGE.rglob('*.py') if '.mim' not in path.parts]
    return {'.'.join(path.relative_to(ROOT).with_suffix('').parts).removesuffix('.__init__'): path for path in files}


def ancestors(name: str) -> list[str]:
    """The packages above a module and the module itself, in the order in which Python executes them."""
    parts = name.split('.')
    return ['.'.join(parts[:length]) for length in range(1, len(parts) + 1)]


def statements(tree: ast.AST, at_import: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    """The import statements below `tree`; with `at_import` those that run when the module is imported."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield node
        elif not at_import:
            yield from statements(node, at_import)
        elif isinstance(node, ast.If) and 'TYPE_CHECKING' in ast.unparse(node.test):
            yield from statements(ast.Module(node.orelse, []), at_import)
        elif not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            yield from statements(node, at_import)


def targets(statement: ast.Import | ast.ImportFrom, name: str, is_package: bool, known: set[str]) -> list[str]:
    """The modules that a statement in module `name` imports, as deep as they are `known`."""
    if isinstance(statement, ast.Import):
        return [alias.name for alias in statement.names]
    base = statement.module or ''
    if statement.level:
        package = name.split('.') if is_package else name.split('.')[:-1]
        base = '.'.join([*package[: len(package) - statement.level + 1], *([base] if base else [])])
    submodules = [f'{base}.{alias.name}' for alias in statement.names]
    return [submodule if submodule in known else base for submodule in submodules]


@cache
def imports(at_import: bool = False) -> dict[str, list[str]]:
    """Module -> what it imports, in order; see `statements`."""
    files = modules()
    found: dict[str, list[str]] = {}
    for name, path in files.items():
        tree = ast.parse(path.read_text(encoding='utf-8'))
        is_package = path.name == '__init__.py'
        found[name] = [
            target
            for statement in statements(tree, at_import)
            for target in targets(statement, name, is_package, set(files))
        ]
    return found


def circles(graph: dict[str, list[str]]) -> list[list[str]]:
    """Groups of modules that import each other, directly or through others (strongly connected components)."""
    reach = {name: _reachable(name, graph) for name in graph}
    groups = {frozenset(other for other in reach[name] if name in reach[other]) for name in graph}
    return sorted(sorted(group) for group in groups if group)


def _reachable(name: str, graph: dict[str, list[str]]) -> set[str]:
    seen: set[str] = set()
    todo = [target for target in graph[name] if target in graph]
    while todo:
        current = todo.pop()
        if current not in seen:
            seen.add(current)
            todo += [target for target in graph[current] if target in graph]
    return seen
