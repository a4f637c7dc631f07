"""Tables of results, as Markdown for a page and as JSON for a program."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from mmprune3d import files

RULES = {'l': '---', 'r': '---:'}


def markdown_table(heads: Sequence[object], rows: Iterable[Sequence[object]], align: str = 'l') -> Iterator[str]:
    """The lines of a Markdown table.

    Args:
        heads: Titles of the columns.
        rows: Cells, as many as there are columns.
        align: 'l' or 'r' for each column from the left; the columns beyond are aligned to the right.
    """
    rules = [RULES[letter] for letter in align.ljust(len(heads), 'r')]
    yield f'|{"|".join(" " if head == "" else f" {head} " for head in heads)}|'
    yield f'|{"|".join(rules)}|'
    for cells in rows:
        yield f'| {" | ".join(map(str, cells))} |'


def listed(values: Mapping[str, Any]) -> str:
    """'device cpu, batch 1, threads 2': names and values in one line."""
    return ', '.join(f'{name} {value}' for name, value in values.items())


def by_seed(results: Iterable[Mapping[str, Any]], figure: str) -> str:
    """'12.3 / 12.9 (12.6)': a figure of every seed in percent, and their mean.

    Args:
        results: Of the same row, with ``seed``.
        figure: Which one, in 0..1.
    """
    values = [100 * result[figure] for result in sorted(results, key=lambda result: result['seed'])]
    if len(values) == 1:
        return f'{values[0]:.1f}'
    return f'{" / ".join(f"{value:.1f}" for value in values)} ({mean(values):.1f})'


def write_table(out: Path, lines: Iterable[str], rows: Mapping[str, Sequence[Any]], **more: Any) -> str:
    """Writes ``table.md`` and ``table.json`` into `out`.

    Args:
        out: Folder of the study.
        lines: Lines of ``table.md``.
        rows: Name of a row -> its results; ``table.json`` has all of them in one list, ``results``.
        more: What else ``table.json`` has.

    Returns:
        The text of ``table.md``.
    """
    text = '\n'.join(lines)
    files.write_json(out / 'table.json', {'results': [one for several in rows.values() for one in several], **more})
    files.write_text(out / 'table.md', f'{text}\n')
    return text
