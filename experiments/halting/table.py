"""The tables of the halting study, and its picture: accuracy of all finished rows, against their speed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from experiments.pareto import ParetoPoint, draw_pareto
from experiments.study import Result
from experiments.tables import by_seed, listed, markdown_table, write_table
from mmprune3d.inspect.halting import KINDS
from mmprune3d.measure import report as reports

from .rows import CONTROL, RUNS, HaltingRow
from .study import BATCH_SIZE, ITERATIONS, STUDY

SPEEDS = {'sra': 'attention', 'backbone': 'backbone', 'detector': 'detector'}
"""Part -> what its speed-up is called."""
Results = Sequence[Result]


def table(out: Path) -> str:
    """The tables as Markdown; writes ``table.md``, ``table.json`` and, if rows were timed, ``pareto.png`` into `out`.

    Raises:
        ValueError: If nothing was trained.
    """
    rows = STUDY.results(out)
    env = reports.environment(BATCH_SIZE, 'bfloat16 (autocast)')
    lines = [*_accuracy(rows), '', *_layers(rows), '', *_notes(rows, env)]
    text = write_table(out, lines, rows, env=env)
    draw(out / 'pareto.png', rows)
    return text


def speedups(several: Results, part: str) -> list[float]:
    """How many times as fast as the control a part is, for every result that was timed."""
    return [one['speed']['control_ms'][part] / one['speed']['ms'][part] for one in several if 'speed' in one]


def _accuracy(rows: Mapping[str, Results]) -> Iterator[str]:
    speeds = f'speed-up: {", ".join(SPEEDS.values())}'
    heads = ('', 'mAP (%) by seed', 'NDS (%) by seed', 'mean sparsity (%)', speeds, 'paper: speed-up, AP')
    return markdown_table(heads, (_cells(RUNS[name], several) for name, several in rows.items()))


def _cells(row: HaltingRow, several: Results) -> list[str]:
    sparsity = 100 * mean(one['sparsity']['mean'] for one in several)
    speeds = [speedups(several, part) for part in SPEEDS]
    speed = ' / '.join(f'{mean(values):.2f}' for values in speeds if values)
    return [row.title, by_seed(several, 'mAP'), by_seed(several, 'NDS'), f'{sparsity:.1f}', speed, row.paper]


def _layers(rows: Mapping[str, Results]) -> Iterator[str]:
    halting = {name: several for name, several in rows.items() if 'all' in several[0]['sparsity']}
    if not halting:
        return iter(())
    layers = range(len(next(iter(halting.values()))[0]['sparsity']['all']))
    heads = ('halted tokens, foreground / background (%)', *(f'layer {layer}' for layer in layers))
    shares = ([RUNS[name].title, *(_shares(several, layer) for layer in layers)] for name, several in halting.items())
    return markdown_table(heads, shares)


def _shares(several: Results, layer: int) -> str:
    return ' / '.join(_mean_share(several, kind, layer) for kind in KINDS)


def _mean_share(several: Results, kind: str, layer: int) -> str:
    """In per cent, over seeds; '-' where there were no such tokens."""
    known = [one['sparsity'][kind] for one in several if one['sparsity'][kind] is not None]
    return f'{100 * mean(shares[layer] for shares in known):.1f}' if known else '-'


def _notes(rows: Mapping[str, Results], env: Mapping[str, Any]) -> Iterator[str]:
    yield f'Fine-tuned for {ITERATIONS} iterations, {listed(env)}.'
    timed = [one['speed'] for one in rows.get(CONTROL, ()) if 'speed' in one]
    if timed:
        ms = {part: mean(speed['ms'][part] for speed in timed) for part in (*SPEEDS, 'map')}
        took = ', '.join(f'{name} {ms[part]:.0f} ms' for part, name in SPEEDS.items())
        yield (
            f'Control: {took}; the map and its convolutions {ms["map"]:.0f} ms, so the backbone cannot become more '
            f'than {ms["backbone"] / ms["map"]:.2f} times as fast.'
        )
        yield f'Times: medians of {timed[0]["frames"]} frames x {timed[0]["repeats"]}, {listed(timed[0]["env"])}.'


def draw(path: Path, rows: Mapping[str, Results]) -> None:
    """mAP against the speed-up of the backbone, of the rows that were timed; nothing before the control was."""
    timed = {name: [one for one in several if 'speed' in one] for name, several in rows.items()}
    if not timed.get(CONTROL):
        return
    methods: dict[str, list[ParetoPoint]] = {}
    for name, several in timed.items():
        if several and name != CONTROL:
            methods.setdefault(RUNS[name].method, []).append(_point(RUNS[name].label, several))
    draw_pareto(path, _point('SST', timed[CONTROL]), methods)


def _point(label: str, several: Results) -> ParetoPoint:
    return ParetoPoint(label, speedups(several, 'backbone'), [one['mAP'] for one in several])
