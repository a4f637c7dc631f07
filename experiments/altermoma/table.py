"""The tables of the AlterMOMA study: accuracy of every training that is there, by criterion, sparsity and seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from experiments.curves import draw_curves
from experiments.study import by_seed
from mmprune3d import files
from mmprune3d.measure import report as reports

from .study import BATCH_SIZE, RUNS, SETTINGS, SPARSITIES, TITLES


def results(out: Path) -> list[dict[str, Any]]:
    """Everything that was trained, in the order of `RUNS`.

    Raises:
        ValueError: If nothing was trained.
    """
    paths = [path for name in RUNS for path in sorted(out.glob(f'{name}-seed*/result.json'))]
    if not paths:
        raise ValueError(f'{out} has no results; train first, for example {next(iter(RUNS))}')
    return [files.read_json(path) for path in paths]


def table(out: Path) -> str:
    """The tables as Markdown; ``table.md``, ``table.json`` and pictures in `out` hold them too.

    Raises:
        ValueError: If nothing was trained.
    """
    found = results(out)
    rows = {name: [result for result in found if result['name'] == name] for name in RUNS}
    lines = [
        '| | mAP (%) by seed | NDS (%) by seed | weights kept, camera / LiDAR / fusion (%) | the paper (mAP) |',
        '|---|---:|---:|---:|---:|',
    ]
    for name, several in rows.items():
        if several:
            figures = f'{by_seed(several, "mAP")} | {by_seed(several, "NDS")} | {kept(several[0])}'
            lines.append(f'| {RUNS[name].title} | {figures} | {RUNS[name].paper} |')
    env = reports.environment(BATCH_SIZE, 'bfloat16 (autocast)')
    lines += ['', ', '.join(f'{key} {value}' for key, value in env.items())]
    files.write_json(out / 'table.json', {'results': found, 'env': env})
    files.write_text(out / 'table.md', '\n'.join(lines) + '\n')
    _draw(out, rows)
    return '\n'.join(lines)


def kept(row: Mapping[str, Any]) -> str:
    """'12 / 40 / 31': what is left of the groups, of the first seed."""
    rates = {name: rate for name, rate in row.get('keep', {}).items() if name != 'all'}
    return ' / '.join(f'{100 * rate:.0f}' for rate in rates.values())


def _draw(out: Path, rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    dense = rows['dense']
    if not dense:
        return
    baseline = {figure: mean(row[figure] for row in dense) for figure in ('mAP', 'NDS')}
    curves = {
        TITLES[name]: [
            (sparsity, rows[f'{name}-{sparsity}']) for sparsity in SPARSITIES if rows.get(f'{name}-{sparsity}')
        ]
        for name in SETTINGS
    }
    curves = {label: points for label, points in curves.items() if points}
    draw_curves(out / 'criteria.png', 'Pruned, then fine-tuned equally long', 'weights removed (%)', curves, baseline)
    swept = {}
    for sparsity in SPARSITIES:
        names = {0.0: '-beta0', 0.5: '-beta0.5', 1.0: '', 1.5: '-beta1.5', 2.0: '-beta2'}
        points = [(beta, rows.get(f'altermoma-{sparsity}{suffix}')) for beta, suffix in names.items()]
        points = [point for point in points if point[1]]
        if len(points) > 1:
            swept[f'{sparsity} % removed'] = points
    if swept:
        draw_curves(out / 'beta.png', 'AlterMOMA: weight of the redundancy', r'$\beta / \alpha$', swept, baseline)
