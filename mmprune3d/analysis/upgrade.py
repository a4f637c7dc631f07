"""The main job: a config and a checkpoint in, a faster model and the evidence that accuracy held out."""

from __future__ import annotations

import copy
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from mmengine import registry
from mmengine.config import Config
from mmengine.hooks import EMAHook
from mmengine.runner import Runner

from mmprune3d import adapters
from mmprune3d.adapters.learned_queries import learned_queries
from mmprune3d.config_types import dotted, only, without, writable
from mmprune3d.engine.hooks import MaskHook
from mmprune3d.engine.hooks.key_pruning_hook import KeyPruningHook
from mmprune3d.pruning.plan import KeyPlan, TgGBCPlan, ToMePlan

from . import report as reports
from .cached_test import CachedTest
from .comparison import Comparison, Variant
from .search import PlanSearch, SearchRequest

if TYPE_CHECKING:
    from .finetune import QueryPruning

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
    present = pruning_hooks(config)
    if present:
        raise ValueError(f'the config prunes already ({", ".join(present)} in custom_hooks): give the unpruned one')
    config = copy.deepcopy(config)
    config.load_from = str(checkpoint)
    config.work_dir = str(out / 'logs')
    config.default_hooks = {**(config.get('default_hooks') or {}), 'logger': dict(type='LoggerHook', interval=10**9)}
    # In a test these change nothing (a saved state_dict has averaged and masked weights), but they would hold the model
    # that is compared with the baseline to weights and masks of the baseline.
    for kind in (MaskHook, EMAHook):
        config.custom_hooks = without(config.get('custom_hooks'), kind, registry.HOOKS)
    if config.get('test_cfg') is None:
        config.test_cfg = {}
    return config


def pruning_hooks(config: Config) -> list[str]:
    """The hooks of a config that prune in a test, by name: for keys, or with masks from a file."""
    hooks = config.get('custom_hooks')
    masks = [hook for hook in only(hooks, MaskHook, registry.HOOKS) if hook.get('masks') is not None]
    found = [*only(hooks, KeyPruningHook, registry.HOOKS), *masks]
    return [str(dotted(hook['type'])).rsplit('.', 1)[-1] for hook in found]


def upgraded_config(config: Config, plan: KeyPlan | None) -> Config:
    """`config`, fit to be written, with the three lines that apply `plan`, if any, when mmdet3d's own tools run it."""
    config = writable(config)
    imports = (config.get('custom_imports') or {}).get('imports') or []
    names = [name for name in ([imports] if isinstance(imports, str) else imports) if name != 'mmprune3d']
    config.custom_imports = dict(imports=[*names, 'mmprune3d'], allow_failed_imports=False)
    if plan is not None:
        config.custom_hooks = [*(config.get('custom_hooks') or []), dict(type=HOOKS[plan.method], **asdict(plan))]
    return config


def upgraded_checkpoint(checkpoint: dict[str, Any], plan: KeyPlan) -> dict[str, Any]:
    """A checkpoint with the plan in its meta; the weights are untouched, since keys are trimmed at run time."""
    data = checkpoint if 'state_dict' in checkpoint else {'state_dict': checkpoint}
    data.setdefault('meta', {}).setdefault('mmprune3d', {})[plan.method] = plan.to_dict()
    return data


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
    plan: KeyPlan | SearchRequest | None,
    out: Path,
    overrides: dict[str, Any],
    timed: int,
    repeats: int,
    pictures: int,
    gpq: QueryPruning | None = None,
) -> dict[str, Any]:
    """Prunes, measures baseline and upgraded model, and writes the report folder.

    Args:
        config_file: The unpruned detector's config.
        checkpoint: Its weights.
        plan: Keys to prune, or what to look for first; None only with `gpq`.
        out: Folder for `report.md`, `report.json`, `pictures/`, `upgraded.py`, `upgraded.pth`, `logs/`, and with `gpq`
            `finetune/`, where an interrupted fine-tuning goes on.
        overrides: Settings on top of the config, by dotted key.
        timed: Test batches to time.
        repeats: How often each is timed.
        pictures: Samples to draw.
        gpq: Queries to prune first, by fine-tuning.

    Returns:
        The report, as in `report.json`; a search is in it under `search`, the plan of GPQ under `gpq`.

    Raises:
        FileNotFoundError: If config or checkpoint is missing.
        ValueError: If a plan does not fit, or a search finds none.
    """
    original = read_config(config_file, checkpoint, overrides)
    runner, search = Runner.from_cfg(prepare(original, checkpoint, out)), None
    config, upgraded, weights = original, runner, checkpoint
    if gpq is not None:
        # what no adapter knows is refused before hours of training
        adapters.stages(runner.model)
        learned_queries(runner.model)
        small = gpq.run(original, checkpoint, out)
        config, weights = small.config, out / 'upgraded.pth'
        torch.save(small.checkpoint, weights)
        upgraded = Runner.from_cfg(prepare(config, weights, out))
        upgraded.load_or_resume()
    if isinstance(plan, SearchRequest):
        search = find_plan(upgraded, plan, out)
        plan = search.plan
    comparison = Comparison(runner, Variant(upgraded.model, plan), timed, repeats)
    methods = [one.method for one in (gpq and gpq.plan, plan) if one is not None]
    report = comparison.report(f'{config_file.stem}: {", ".join(methods)}')
    if search is not None:
        report['search'] = search.to_dict()
    if gpq is not None:
        report['gpq'] = gpq.to_dict()
    text = reports.markdown(report) + ('' if search is None else search.markdown())
    reports.write(report, out, text)
    drawn = comparison.pictures(out / 'pictures', pictures)
    upgraded_config(config, plan).dump(out / 'upgraded.py')
    data = torch.load(weights, map_location='cpu', weights_only=True)
    torch.save(data if plan is None else upgraded_checkpoint(data, plan), out / 'upgraded.pth')
    print(text)
    print(f'Pictures: {", ".join(map(str, drawn))}')
    print(f'Upgraded model: {out / "upgraded.py"} {out / "upgraded.pth"}')
    return report
