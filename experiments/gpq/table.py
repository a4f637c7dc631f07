"""The table of the GPQ study: accuracy of every finished training, and decoder times measured in one run."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from mmengine.config import Config
from mmengine.runner import Runner
from torch import nn

from experiments.benchmark import stage_times
from experiments.study import WEIGHTS, Result, tester
from experiments.tables import by_seed, listed, markdown_table, write_table
from mmprune3d import adapters, files
from mmprune3d.measure import report as reports
from mmprune3d.measure.replayed_tests import CachedTest
from mmprune3d.measure.timing import StageTimer, medians
from mmprune3d.pruning.key_plan import KeyPlan
from mmprune3d.pruning.tggbc import TgGBCPlan
from mmprune3d.pruning.tome import ToMePlan

from .study import FEW, MANY, RUNS, STUDY, Training

HEADS = ('', 'queries', 'iterations', 'mAP (%) by seed', 'NDS (%) by seed', 'decoder (ms)', 'the paper')
SOURCE = 'scratch-300'
"""The training that is pruned at run time."""
AT_RUN_TIME: dict[str, tuple[Training, KeyPlan]] = {
    'tome-100': (
        Training('ToMe on the queries, no training', MANY, SOURCE, {'target': FEW}, paper='slower and worse (Table 4)'),
        ToMePlan(r=0, n=2, q=MANY - FEW),
    ),
    'unconfident-100': (
        Training(
            'least confident queries dropped at run time', MANY, SOURCE, {'target': FEW}, paper='not in the paper'
        ),
        TgGBCPlan(r=0, n=2, q=MANY - FEW),
    ),
}
"""Ways to have fewer queries without training, to compare with."""


def tester_of(out: Path, name: str, seed: int) -> Runner:
    """A runner that tests the result of a training."""
    where = STUDY.folder(out, name, seed)
    return tester(Config.fromfile(where / 'final.py'), where / WEIGHTS)


def pruned_at_run_time(out: Path, seed: int) -> list[Result]:
    """Accuracy of `AT_RUN_TIME`; measured once, then kept in ``run_time.json`` in the folder of `SOURCE`."""
    path = STUDY.folder(out, SOURCE, seed) / 'run_time.json'
    if not path.is_file():
        with CachedTest(tester_of(out, SOURCE, seed)) as test:
            found = [
                {'name': name, 'seed': seed, 'queries': FEW, 'iterations': 0, **test.evaluate(plan)}
                for name, (_, plan) in AT_RUN_TIME.items()
            ]
        files.write_json(path, found)
    return files.read_json(path)


def results(out: Path) -> dict[str, list[Result]]:
    """Name -> results by seed, of every training in the order of `RUNS`, then of `AT_RUN_TIME`.

    Raises:
        ValueError: If nothing was trained.
    """
    found = STUDY.results(out)
    for source in found.get(SOURCE, ()):
        for result in pruned_at_run_time(out, source['seed']):
            found.setdefault(result['name'], []).append(result)
    return found


def decoder_times(out: Path, trained: Iterable[Result], repeats: int) -> dict[str, float]:
    """Median milliseconds of the decoder by number of queries, and of the ways of `AT_RUN_TIME`; all take turns.

    Args:
        out: Folder of the study.
        trained: Results of trainings.
        repeats: Timed rounds.
    """
    models: dict[str, nn.Module] = {}
    runner = None
    for result in trained:
        if str(result['queries']) not in models:
            runner = tester_of(out, result['name'], result['seed'])
            runner.load_or_resume()
            models[str(result['queries'])] = runner.model.eval()
    batch = next(iter(runner.test_dataloader))
    timers = {name: StageTimer({'decoder': adapters.stages(model)['decoder']}) for name, model in models.items()}
    calls = {name: partial(timers[name].measure, partial(test_step, model, batch)) for name, model in models.items()}
    for name, (_, plan) in AT_RUN_TIME.items() if str(MANY) in models else ():
        step = partial(pruned_step, models[str(MANY)], plan, batch)
        calls[name] = partial(timers[str(MANY)].measure, step)
    with torch.no_grad():
        times = stage_times(calls, repeats, 'timing')
    return {name: medians(values)['decoder'] for name, values in times.items()}


def objects_per_sample(runner: Runner) -> float:
    """Mean number of annotated boxes of a test sample."""
    dataset = runner.test_dataloader.dataset
    counts = [len(dataset.get_data_info(index)['eval_ann_info']['gt_labels_3d']) for index in range(len(dataset))]
    return mean(counts)


def test_step(model: nn.Module, batch: dict[str, Any]) -> None:
    """One test step; the batch is copied, as the model may change it."""
    model.test_step(copy.deepcopy(batch))


def pruned_step(model: nn.Module, plan: KeyPlan, batch: dict[str, Any]) -> None:
    """One test step with a plan attached."""
    adapters.attach(model, plan)
    try:
        test_step(model, batch)
    finally:
        adapters.detach(model)


def table(out: Path, repeats: int = 20) -> str:
    """The table as Markdown; ``table.md`` and ``table.json`` are written into `out`.

    Args:
        out: Folder of the study.
        repeats: Timed rounds.

    Raises:
        ValueError: If nothing was trained.
    """
    rows = results(out)
    trained = [result for name, several in rows.items() if name in RUNS for result in several]
    times = decoder_times(out, trained, repeats)
    objects = objects_per_sample(tester_of(out, trained[0]['name'], trained[0]['seed']))
    env = reports.environment(1, 'float32')
    lines = [
        *markdown_table(HEADS, (_cells(name, several, times) for name, several in rows.items()), 'lrrrrrl'),
        *('', f'{objects:.1f} objects per sample', '', listed(env)),
    ]
    return write_table(out, lines, rows, decoder_ms=times, objects_per_sample=objects, env=env)


def _cells(name: str, several: Sequence[Result], times: Mapping[str, float]) -> list[object]:
    row, first = RUNS[name] if name in RUNS else AT_RUN_TIME[name][0], several[0]
    time = times.get(name, times.get(str(first['queries'])))
    figures = by_seed(several, 'mAP'), by_seed(several, 'NDS')
    return [f'{row.title} (`{name}`)', first['queries'], first['iterations'], *figures, f'{time:.1f}', row.paper]
