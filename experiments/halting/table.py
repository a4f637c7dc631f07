"""The tables of the halting study, and its picture: accuracy of all rows that are there, against their speed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from experiments.pareto import ParetoPoint, draw_pareto
from experiments.study import by_seed
from mmprune3d import files
from mmprune3d.inspect.halting import KINDS
from mmprune3d.measure import report as reports

from .rows import CONTROL, RUNS
from .study import BATCH_SIZE, ITERATIONS, RESULT

SPEEDS = {'sra': 'attention', 'backbone': 'backbone', 'detector': 'detector'}
"""Part -> what its speed-up is called."""
Results = Sequence[Mapping[str, Any]]


def results(out: Path) -> dict[str, Results]:
    """Row -> everything that was trained of it, in the order of `RUNS`, by seed.

    Raises:
        ValueError: If nothing was trained.
    """
    found = {}
    for name in RUNS:
        several = [files.read_json(path) for path in out.glob(f'{name}-*/{RESULT}')]
        several = [result for result in several if result['name'] == name]
        if several:
            found[name] = sorted(several, key=lambda result: result['seed'])
    if not found:
        raise ValueError(f'{out} has no results; train first, for example {CONTROL}')
    return found


def table(out: Path) -> str:
    """The tables as Markdown; ``table.md``, ``table.json`` and, once times are there, ``pareto.png`` hold them too.

    Raises:
        ValueError: If nothing was trained.
    """
    rows = results(out)
    env = reports.environment(BATCH_SIZE, 'bfloat16 (autocast)')
    lines = [*_accuracy(rows), '', *_layers(rows), '', *_notes(rows, env)]
    everything = [result for several in rows.values() for result in several]
    files.write_json(out / 'table.json', {'results': everything, 'env': env})
    files.write_text(out / 'table.md', '\n'.join(lines) + '\n')
    draw(out / 'pareto.png', rows)
    return '\n'.join(lines)


def speedups(several: Results, part: str) -> list[float]:
    """How many times as fast as the control a part is, for every result that was timed."""
    return [one['speed']['control_ms'][part] / one['speed']['ms'][part] for one in several if 'speed' in one]


def _accuracy(rows: Mapping[str, Results]) -> Iterator[str]:
    heads = ', '.join(SPEEDS.values())
    yield f'| | mAP (%) by seed | NDS (%) by seed | mean sparsity (%) | speed-up: {heads} | paper: speed-up, AP |'
    yield '|---|---:|---:|---:|---:|---:|'
    for name, several in rows.items():
        sparsity = 100 * mean(one['sparsity']['mean'] for one in several)
        speeds = [speedups(several, part) for part in SPEEDS]
        speed = ' / '.join(f'{mean(values):.2f}' for values in speeds if values)
        figures = f'{by_seed(several, "mAP")} | {by_seed(several, "NDS")} | {sparsity:.1f} | {speed}'
        yield f'| {RUNS[name].title} | {figures} | {RUNS[name].paper} |'


def _layers(rows: Mapping[str, Results]) -> Iterator[str]:
    halting = {name: several for name, several in rows.items() if 'all' in several[0]['sparsity']}
    if not halting:
        return
    count = len(next(iter(halting.values()))[0]['sparsity']['all'])
    yield f'| halted tokens, foreground / background (%) | {" | ".join(f"layer {i}" for i in range(count))} |'
    yield f'|---|{"---:|" * count}'
    for name, several in halting.items():
        shares = [[_mean_share(several, kind, layer) for kind in KINDS] for layer in range(count)]
        yield f'| {RUNS[name].title} | {" | ".join(" / ".join(pair) for pair in shares)} |'


def _mean_share(several: Results, kind: str, layer: int) -> str:
    """In per cent, over seeds; '-' where there were no such tokens."""
    known = [one['sparsity'][kind] for one in several if one['sparsity'][kind] is not None]
    return f'{100 * mean(shares[layer] for shares in known):.1f}' if known else '-'


def _notes(rows: Mapping[str, Results], env: Mapping[str, Any]) -> Iterator[str]:
    yield f'Fine-tuned for {ITERATIONS} iterations, {_listed(env)}.'
    timed = [one['speed'] for one in rows.get(CONTROL, ()) if 'speed' in one]
    if timed:
        ms = {part: mean(speed['ms'][part] for speed in timed) for part in (*SPEEDS, 'map')}
        took = ', '.join(f'{name} {ms[part]:.0f} ms' for part, name in SPEEDS.items())
        yield (
            f'Control: {took}; the map and its convolutions {ms["map"]:.0f} ms, so the backbone cannot become more '
            f'than {ms["backbone"] / ms["map"]:.2f} times as fast.'
        )
        yield f'Times: medians of {timed[0]["frames"]} frames x {timed[0]["repeats"]}, {_listed(timed[0]["env"])}.'


def _listed(env: Mapping[str, Any]) -> str:
    return ', '.join(f'{key} {value}' for key, value in env.items())


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
