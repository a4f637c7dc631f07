"""The table of the AlterMOMA study: accuracy of every finished training, by criterion, sparsity and seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean

from experiments.curves import draw_curves
from experiments.study import Result
from experiments.tables import by_seed, listed, markdown_table, write_table
from mmprune3d.measure import report as reports

from . import study
from .study import BATCH_SIZE, SETTINGS, SPARSITIES, TITLES

HEADS = (
    '',
    'mAP (%) by seed',
    'NDS (%) by seed',
    'weights kept, camera / LiDAR / fusion (%)',
    'the paper (mAP)',
)


def table(out: Path) -> str:
    """The table as Markdown; ``table.md``, ``table.json`` and pictures are written into `out`.

    Raises:
        ValueError: If nothing was trained.
    """
    rows = study.STUDY.results(out)
    env = reports.environment(BATCH_SIZE, 'bfloat16 (autocast)')
    lines = [*markdown_table(HEADS, (_cells(name, several) for name, several in rows.items())), '', listed(env)]
    text = write_table(out, lines, rows, env=env)
    _draw(out, rows)
    return text


def _cells(name: str, several: Sequence[Result]) -> list[str]:
    row = study.STUDY.rows[name]
    return [row.title, by_seed(several, 'mAP'), by_seed(several, 'NDS'), kept(several[0]), row.paper]


def kept(result: Result) -> str:
    """'12 / 40 / 31': percent of the weights that were kept, by group."""
    rates = {name: rate for name, rate in result.get('keep', {}).items() if name != 'all'}
    return ' / '.join(f'{100 * rate:.0f}' for rate in rates.values())


def _draw(out: Path, rows: Mapping[str, Sequence[Result]]) -> None:
    dense = rows.get('dense')
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
