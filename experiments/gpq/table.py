"""The table of the query study: accuracy of every training that is there, and decoder times measured in one run."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from mmengine.config import Config
from mmengine.runner import Runner
from torch import nn

from mmprune3d import adapters, files
from mmprune3d.measure import report as reports
from mmprune3d.measure.replayed_tests import CachedTest
from mmprune3d.measure.runners import prepare
from mmprune3d.measure.timing import StageTimer, medians
from mmprune3d.pruning.key_plan import KeyPlan
from mmprune3d.pruning.tggbc import TgGBCPlan
from mmprune3d.pruning.tome import ToMePlan

from .study import FEW, MANY, RUNS, Training, folder

SOURCE = 'scratch-300'
"""The training that is pruned at run time."""
AT_RUN_TIME: dict[str, tuple[Training, KeyPlan]] = {
    'tome-100': (
        Training('ToMe on the queries, no training', MANY, SOURCE, {'target': FEW}, 'slower and worse (Table 4)'),
        ToMePlan(r=0, n=2, q=MANY - FEW),
    ),
    'unconfident-100': (
        Training('least confident queries dropped at run time', MANY, SOURCE, {'target': FEW}, 'not in the paper'),
        TgGBCPlan(r=0, n=2, q=MANY - FEW),
    ),
}
"""Ways to have fewer queries without training, to compare with."""


def tester(out: Path, name: str, seed: int) -> Runner:
    """A runner that tests the result of a training."""
    where = folder(out, name, seed)
    return Runner.from_cfg(prepare(Config.fromfile(where / 'final.py'), where / 'final.pth', where / 'test'))


def pruned_at_run_time(out: Path, seed: int) -> list[dict[str, Any]]:
    """Figures of `AT_RUN_TIME`; measured once, then kept in ``run_time.json``."""
    path = folder(out, SOURCE, seed) / 'run_time.json'
    if not path.is_file():
        with CachedTest(tester(out, SOURCE, seed)) as test:
            found = [
                {'name': name, 'seed': seed, 'queries': FEW, 'iterations': 0, **test.evaluate(plan)}
                for name, (_, plan) in AT_RUN_TIME.items()
            ]
        files.write_json(path, found)
    return files.read_json(path)


def results(out: Path) -> list[dict[str, Any]]:
    """Everything that was trained, in the order of `RUNS`, then what is pruned at run time.

    Raises:
        ValueError: If nothing was trained.
    """
    paths = [path for name in RUNS for path in sorted(out.glob(f'{name}-seed*/result.json'))]
    found = [files.read_json(path) for path in paths]
    if not found:
        raise ValueError(f'{out} has no results; train first, for example {next(iter(RUNS))}')
    seeds = [result['seed'] for result in found if result['name'] == SOURCE]
    return found + [result for seed in seeds for result in pruned_at_run_time(out, seed)]


def decoder_times(out: Path, found: Iterable[Mapping[str, Any]], repeats: int) -> dict[str, float]:
    """Median milliseconds of the decoder by number of queries, and of the ways of `AT_RUN_TIME`; all take turns."""
    models: dict[str, nn.Module] = {}
    runner = None
    for result in found:
        if result['name'] in RUNS and str(result['queries']) not in models:
            runner = tester(out, result['name'], result['seed'])
            runner.load_or_resume()
            models[str(result['queries'])] = runner.model.eval()
    calls: dict[str, Callable[[], object]] = {}
    batch = next(iter(runner.test_dataloader))
    timers = {}
    for name, model in models.items():
        timers[name] = StageTimer({'decoder': adapters.stages(model)['decoder']})
        calls[name] = lambda model=model: model.test_step(copy.deepcopy(batch))
    for name, (_, plan) in AT_RUN_TIME.items() if str(MANY) in models else ():
        timers[name] = timers[str(MANY)]
        calls[name] = lambda plan=plan: pruned_step(models[str(MANY)], plan, copy.deepcopy(batch))
    times: dict[str, list[dict[str, float]]] = {name: [] for name in calls}
    with torch.no_grad():
        for round_ in range(repeats + 1):
            for name, call in calls.items():
                measured = timers[name].measure(call)
                if round_:  # the first one warms up
                    times[name].append(measured)
    return {name: medians(values)['decoder'] for name, values in times.items()}


def objects_per_sample(runner: Runner) -> float:
    """Mean number of annotated boxes of a test sample: what queries are there for."""
    dataset = runner.test_dataloader.dataset
    counts = [len(dataset.get_data_info(index)['eval_ann_info']['gt_labels_3d']) for index in range(len(dataset))]
    return mean(counts)


def pruned_step(model: nn.Module, plan: KeyPlan, batch: dict[str, Any]) -> None:
    """One test step with a plan attached."""
    adapters.attach(model, plan)
    try:
        model.test_step(batch)
    finally:
        adapters.detach(model)


def table(out: Path, repeats: int = 20) -> str:
    """The table as Markdown; ``table.md`` and ``table.json`` in `out` hold it too.

    Args:
        out: Folder of the study.
        repeats: Timed rounds.

    Raises:
        ValueError: If nothing was trained.
    """
    found = results(out)
    times = decoder_times(out, found, repeats)
    objects = objects_per_sample(tester(out, found[0]['name'], found[0]['seed']))
    env = reports.environment(1, 'float32')
    names = list(dict.fromkeys(result['name'] for result in found))
    lines = [
        '| | queries | iterations | mAP (%) by seed | NDS (%) by seed | decoder (ms) | the paper |',
        '|---|---:|---:|---:|---:|---:|---|',
    ]
    for name in names:
        rows = [result for result in found if result['name'] == name]
        training = RUNS[name] if name in RUNS else AT_RUN_TIME[name][0]
        time = times.get(name, times.get(str(rows[0]['queries'])))
        lines.append(
            f'| {training.title} (`{name}`) | {rows[0]["queries"]} | {rows[0]["iterations"]} | '
            f'{_by_seed(rows, "mAP")} | {_by_seed(rows, "NDS")} | {time:.1f} | {training.paper} |'
        )
    lines += ['', f'{objects:.1f} objects per sample', '', ', '.join(f'{key} {value}' for key, value in env.items())]
    data = {'results': found, 'decoder_ms': times, 'objects_per_sample': objects, 'env': env}
    files.write_json(out / 'table.json', data)
    files.write_text(out / 'table.md', '\n'.join(lines) + '\n')
    return '\n'.join(lines)


def _by_seed(rows: Iterable[Mapping[str, Any]], figure: str) -> str:
    values = [100 * row[figure] for row in sorted(rows, key=lambda row: row['seed'])]
    if len(values) == 1:
        return f'{values[0]:.1f}'
    return f'{" / ".join(f"{value:.1f}" for value in values)} ({mean(values):.1f})'
