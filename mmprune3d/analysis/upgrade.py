"""The main job: a config and a checkpoint in, a faster model and the evidence that accuracy held out."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.runner import Runner
from torch import nn
from tqdm import tqdm

from mmprune3d import adapters
from mmprune3d.pruning.plan import KeyPlan, TgGBCPlan, ToMePlan
from mmprune3d.visualization.upgrade import draw_upgrade

from . import report as reports
from .accuracy import evaluate, evenly_spaced, summarize
from .cached_test import CachedTest
from .flops import count_flops
from .latency import StageTimer, medians
from .memory import peak_memory
from .search import PlanSearch, SearchRequest

HOOKS = {TgGBCPlan.method: 'TgGBCHook', ToMePlan.method: 'ToMeHook'}
"""Method -> the hook that carries its plan in the upgraded config."""


def read_config(config_file: Path, checkpoint: Path, overrides: dict[str, Any]) -> Config:
    """The config with overrides by dotted key.

    Raises:
        FileNotFoundError: If it or the checkpoint does not exist.
    """
    for path in (config_file, checkpoint):
        if not path.is_file():
            raise FileNotFoundError(f'{path} does not exist')
    config = Config.fromfile(config_file)
    config.merge_from_dict(overrides)
    return config


def prepare(config: Config, checkpoint: Path, out: Path) -> Config:
    """A copy of `config` that tests `checkpoint` inside `out`.

    Raises:
        ValueError: If the config has no test set, or prunes already.
    """
    if config.get('test_dataloader') is None or config.get('test_evaluator') is None:
        raise ValueError('the config has no test_dataloader and test_evaluator: accuracy cannot be measured')
    present = [hook['type'] for hook in config.get('custom_hooks', []) if hook['type'] in HOOKS.values()]
    if present:
        raise ValueError(f'the config prunes already ({", ".join(present)} in custom_hooks): give the unpruned one')
    config = copy.deepcopy(config)
    config.load_from = str(checkpoint)
    config.work_dir = str(out / 'logs')
    config.merge_from_dict({'default_hooks.logger': dict(type='LoggerHook', interval=10**9)})
    return config


def upgraded_config(config: Config, plan: KeyPlan) -> Config:
    """`config` with the three lines that apply `plan` when mmdet3d's own tools run it."""
    config = copy.deepcopy(config)
    imports = config.get('custom_imports') or {}
    names = [name for name in imports.get('imports', []) if name != 'mmprune3d']
    config.custom_imports = dict(imports=[*names, 'mmprune3d'], allow_failed_imports=False)
    config.custom_hooks = [*config.get('custom_hooks', []), dict(type=HOOKS[plan.method], **asdict(plan))]
    return config


def upgraded_checkpoint(checkpoint: Path, plan: KeyPlan) -> dict[str, Any]:
    """The checkpoint with the plan in its meta; the weights are untouched, since keys are trimmed at run time."""
    data = torch.load(checkpoint, map_location='cpu', weights_only=True)
    data = data if 'state_dict' in data else {'state_dict': data}
    data.setdefault('meta', {}).setdefault('mmprune3d', {})[plan.method] = plan.to_dict()
    return data


class Comparison:
    """Baseline and upgraded model in one process, on the same samples.

    Args:
        runner: Built from the prepared config; its checkpoint is loaded here.
        plan: What to prune.
        timed: How many test batches to time.
        repeats: How often each is timed.
    """

    def __init__(self, runner: Runner, plan: KeyPlan, timed: int = 8, repeats: int = 3) -> None:
        runner.load_or_resume()
        self.runner = runner
        self.plan = plan
        self.repeats = repeats
        self.batches = list(islice(runner.test_dataloader, timed))
        self.stages: dict[str, nn.Module] = adapters.stages(runner.model)

    def variants(self) -> dict[str, Callable[[], None]]:
        """What turns the runner's model into the baseline and into the upgraded one."""
        return {
            'baseline': lambda: adapters.detach(self.runner.model),
            'upgraded': lambda: adapters.attach(self.runner.model, self.plan),
        }

    @torch.no_grad()
    def predict(self, batch: dict[str, Any]) -> list[Any]:
        """Predictions for a batch, which stays as it is."""
        return self.runner.model.test_step(copy.deepcopy(batch))

    def accuracy(self) -> dict[str, dict[str, float]]:
        """Metrics of both, over the whole test set."""
        results = {}
        for name, become in self.variants().items():
            become()
            results[name] = summarize(evaluate(self.runner, name))
        return results

    def latency(self) -> dict[str, dict[str, float]]:
        """Median milliseconds per stage of both; they alternate, so that a busy machine slows both."""
        self.runner.model.eval()
        timer, times = StageTimer(self.stages), {name: [] for name in self.variants()}
        for become in self.variants().values():
            become()
            self.predict(self.batches[0])
        for batch in tqdm(self.batches * self.repeats, desc='timing', unit='batch'):
            for name, become in self.variants().items():
                become()
                data = copy.deepcopy(batch)
                with torch.no_grad():
                    times[name].append(timer.measure(lambda data=data: self.runner.model.test_step(data)))
        return {name: medians(values) for name, values in times.items()}

    def costs(self) -> dict[str, dict[str, Any]]:
        """GFLOPs, peak memory and keys per layer of both, on the first batch."""
        self.runner.model.eval()
        results, batch = {}, self.batches[0]
        for name, become in self.variants().items():
            become()
            flops = count_flops(lambda: self.predict(batch), self.stages)
            results[name] = {
                'gflops': flops.pop('total'),
                'gflops_by_stage': flops,
                'peak_mib': peak_memory(lambda: self.predict(batch)),
                'keys': adapters.keys_per_layer(self.runner.model, lambda: self.predict(batch)),
            }
        return results

    def report(self, title: str) -> dict[str, Any]:
        """Everything measured, as plain types."""
        # the quick parts first: a plan that does not fit fails in seconds
        costs, latency, accuracy = self.costs(), self.latency(), self.accuracy()
        dtype = str(next(self.runner.model.parameters()).dtype).removeprefix('torch.')
        batch_size = self.runner.test_dataloader.batch_size
        return {
            'title': title,
            'plan': self.plan.to_dict(),
            **{name: {**accuracy[name], 'ms': latency[name], **costs[name]} for name in self.variants()},
            'samples': {'evaluated': len(self.runner.test_dataloader.dataset), 'timed': len(self.batches) * batch_size},
            'env': reports.environment(batch_size, dtype),
        }

    def pictures(self, folder: Path, count: int) -> list[Path]:
        """Draws `count` samples spread over the test set, before and after."""
        dataset, paths = self.runner.test_dataloader.dataset, []
        collate = self.runner.test_dataloader.collate_fn
        for index in evenly_spaced(len(dataset), min(count, len(dataset))) if count else ():
            batch, found = collate([dataset[index]]), {}
            for name, become in self.variants().items():
                become()
                found[name] = self.predict(batch)[0]
            kept = [ids[0] for ids in adapters.kept_keys(self.runner.model, lambda batch=batch: self.predict(batch))]
            paths.append(folder / f'sample_{index:04d}.jpg')
            draw_upgrade(paths[-1], batch['inputs']['img'][0], found['baseline'], found['upgraded'], kept)
        return paths


def find_plan(runner: Runner, request: SearchRequest, out: Path) -> PlanSearch:
    """Searches a plan on the runner's model and test set.

    Args:
        runner: Built from the prepared config.
        request: What to look for.
        out: Where the search is written if nothing is found.

    Raises:
        ValueError: If no plan holds the limit; then `search.json` and `search.md` say what was tried.
    """
    with CachedTest(runner, request.calibrate) as test:
        known = {None: test.baseline}

        def figures(plan: KeyPlan | None) -> dict[str, float]:
            return known[plan] if plan in known else test.evaluate(plan)

        search = PlanSearch(request, figures, test.keys[0], len(test.keys), len(test.indices))
        search.run()
    if search.plan is None:
        out.mkdir(parents=True, exist_ok=True)
        (out / 'search.json').write_text(json.dumps(search.to_dict(), indent=2) + '\n')
        (out / 'search.md').write_text(search.markdown())
        raise ValueError(
            f'no plan keeps {" and ".join(search.limited)} within {request.max_drop:g} of the baseline; '
            f'{out / "search.md"} lists what was tried'
        )
    return search


def run_upgrade(
    config_file: Path,
    checkpoint: Path,
    plan: KeyPlan | SearchRequest,
    out: Path,
    overrides: dict[str, Any],
    timed: int,
    repeats: int,
    pictures: int,
) -> dict[str, Any]:
    """Measures baseline and upgraded model and writes the report folder.

    Args:
        config_file: The unpruned detector's config.
        checkpoint: Its weights.
        plan: What to prune, or what to look for first.
        out: Folder for `report.md`, `report.json`, `pictures/`, `upgraded.py`, `upgraded.pth`, `logs/`.
        overrides: Settings on top of the config, by dotted key.
        timed: Test batches to time.
        repeats: How often each is timed.
        pictures: Samples to draw.

    Returns:
        The report, as in `report.json`; a search is in it under `search`.

    Raises:
        FileNotFoundError: If config or checkpoint is missing.
        ValueError: If the plan does not fit, or a search finds none.
    """
    original = read_config(config_file, checkpoint, overrides)
    runner, search = Runner.from_cfg(prepare(original, checkpoint, out)), None
    if isinstance(plan, SearchRequest):
        search = find_plan(runner, plan, out)
        plan = search.plan
    comparison = Comparison(runner, plan, timed, repeats)
    report = comparison.report(f'{config_file.stem}: {plan.method}')
    if search is not None:
        report['search'] = search.to_dict()
    text = reports.markdown(report) + ('' if search is None else search.markdown())
    reports.write(report, out, text)
    drawn = comparison.pictures(out / 'pictures', pictures)
    upgraded_config(original, plan).dump(out / 'upgraded.py')
    torch.save(upgraded_checkpoint(checkpoint, plan), out / 'upgraded.pth')
    print(text)
    print(f'Pictures: {", ".join(map(str, drawn))}')
    print(f'Upgraded model: {out / "upgraded.py"} {out / "upgraded.pth"}')
    return report
