"""An upgrade's evidence as a table a person reads and a file a program reads."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from mmprune3d import files
from mmprune3d.compat import installed_version
from mmprune3d.screen import say

from .score_warnings import markdown as warning_lines

UNITS = {
    'mAP': '', 'NDS': '', 'mATE': 'm', 'mASE': '1 - IoU', 'mAOE': 'rad', 'mAVE': 'm/s', 'mAAE': '1 - acc',
}  # fmt: skip
COSTS = ('gflops', 'peak_mib')
LOWER_IS_BETTER = ('mATE', 'mASE', 'mAOE', 'mAVE', 'mAAE')


def environment(batch_size: int, dtype: str, device: str | None = None) -> dict[str, Any]:
    """What the figures depend on: device (by default a GPU if there is one), precision, batch, threads, versions."""
    on_gpu = torch.cuda.is_available() if device is None else device == 'cuda'
    device = torch.cuda.get_device_name() if on_gpu else processor()
    versions = versions_of('torch', 'mmengine', 'mmcv', 'mmdet', 'mmdet3d')
    return {'device': device, 'dtype': dtype, 'batch': batch_size, 'threads': torch.get_num_threads(), **versions}


def versions_of(*packages: str) -> dict[str, str]:
    """The version of each package, installed or only on the path; 'unknown' where nothing says it."""
    return {name: _version_of(name) for name in packages}


def _version_of(package: str) -> str:
    try:
        return installed_version(package) or 'unknown'
    except Exception:  # a package that cannot even be imported is no reason to lose the figures that go with it
        return 'unknown'


def processor() -> str:
    """Name of the CPU."""
    cpuinfo = Path('/proc/cpuinfo')
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.partition(':')[2].strip() for line in lines if line.startswith('model name')]
    return names[0] if names else platform.processor() or platform.machine()


def row(name: str, before: float | None, after: float | None, digits: int) -> str:
    """A line of the table, with the change in percent; None is a figure that the evaluator did not give."""
    if before is None or after is None:
        cells = ['-' if value is None else f'{value:.{digits}f}' for value in (before, after)]
        return f'| {name} | {" | ".join(cells)} | - |'
    change = f'{100 * (after - before) / before:+.1f} %' if before else '-'
    return f'| {name} | {before:.{digits}f} | {after:.{digits}f} | {change} |'


def figures(baseline: Mapping[str, Any], upgraded: Mapping[str, Any]) -> Iterable[str]:
    """The lines that all upgrades have: metrics, times, operations, memory."""
    names = dict.fromkeys(name for side in (baseline, upgraded) for name in side if isinstance(side[name], float))
    for name in (name for name in names if name not in COSTS):
        unit = f' ({UNITS[name]})' if UNITS.get(name) else ''
        arrow = ' ↓' if name in LOWER_IS_BETTER else ''
        yield row(name + unit + arrow, baseline.get(name), upgraded.get(name), 4)
    for name, before in baseline['ms'].items():
        yield row(f'{name} (ms)', before, upgraded['ms'][name], 2)
    for name, before in baseline['gflops_by_stage'].items():
        yield row(f'{name} (GFLOPs)', before, upgraded['gflops_by_stage'][name], 3)
    yield row('total (GFLOPs)', baseline['gflops'], upgraded['gflops'], 3)
    yield row('peak memory (MiB)', baseline['peak_mib'], upgraded['peak_mib'], 1)


def markdown(report: Mapping[str, Any], rows: Callable[..., Iterable[str]] = figures) -> str:
    """The report as Markdown: baseline first, then the upgraded model, then what the figures depend on.

    Args:
        report: The report.
        rows: Makes the lines of the table from the figures of both models.
    """
    lines = [f'# {report["title"]}', '', '| | baseline | upgraded | change |', '|---|---:|---:|---:|']
    lines.extend(rows(report['baseline'], report['upgraded']))
    env = ', '.join(f'{name} {value}' for name, value in report['env'].items())
    plans = [f'Plan: `{json.dumps(plan)}`.' for plan in report.get('plans', ())]
    unknown = sorted({name for side in ('baseline', 'upgraded') for name in report[side].get('not_counted', ())})
    if unknown:
        lines += ['', f'Not in the GFLOPs, like element-wise work: {", ".join(unknown)}.']
    lines += ['', f'Measured on {report["samples"]["timed"]} samples, alternating baseline and upgraded; median times.']
    lines += [' '.join([accuracy_line(report['samples']), *plans]), '', env]
    lines += [*warning_lines(report.get('warnings', ())), '']
    return '\n'.join(lines)


def accuracy_line(samples: Mapping[str, Any]) -> str:
    """On how many samples accuracy was measured, or why it was not."""
    if samples.get('no_accuracy'):
        return f'**Accuracy was not measured: {samples["no_accuracy"]}.** The table has times and costs only.'
    part = f' of {samples["total"]}' if 'total' in samples else ''
    how = f' ({samples["chosen"]})' if samples.get('chosen') else ''
    return f'Accuracy on {samples["evaluated"]}{part} samples{how}.'


def write(report: Mapping[str, Any], folder: Path, text: str) -> None:
    """Writes `report` as `report.json` and `text` as `report.md` into `folder`."""
    files.write_json(folder / 'report.json', report)
    files.write_text(folder / 'report.md', text)


def finish(report: Mapping[str, Any], folder: Path, text: str) -> None:
    """Writes the report (see `write`), prints it, and says where the upgraded model is."""
    write(report, folder, text)
    say(text)
    say(f'Upgraded model: {folder / "upgraded.py"} {folder / "upgraded.pth"}')


def tell_pictures(drawn: Iterable[Path]) -> None:
    """Prints where the pictures are, if there are any."""
    names = ', '.join(map(str, drawn))
    if names:
        say(f'Pictures: {names}')
