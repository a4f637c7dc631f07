"""Upgrades: from a config and a checkpoint to a pruned model, with a report that compares both."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmengine.config import Config
from mmengine.runner import Runner

from mmprune3d import adapters, files
from mmprune3d.adapters.learned_queries import find_queries
from mmprune3d.checkpoint.addresses import local_file
from mmprune3d.checkpoint.begun import fingerprint
from mmprune3d.checkpoint.read import read_checkpoint
from mmprune3d.config_types import movable, writable
from mmprune3d.measure import report as reports
from mmprune3d.measure.annotations import require_accuracy
from mmprune3d.measure.measured import Measured, source_of_upgrade
from mmprune3d.measure.replayed_tests import CachedTest
from mmprune3d.measure.runners import prepare, read_config
from mmprune3d.measure.samples import restrict
from mmprune3d.measure.tested import TestedSet
from mmprune3d.pruning.key_plan import KeyPlan
from mmprune3d.pruning.tggbc import TgGBCPlan
from mmprune3d.pruning.tome import ToMePlan

from .key_comparison import Comparison, Variant
from .search import PlanSearch, SearchRequest, require_limited

if TYPE_CHECKING:
    from .finetune import QueryPruning

HOOKS = {TgGBCPlan.method: 'TgGBCHook', ToMePlan.method: 'ToMeHook'}
"""Method -> the hook that carries its plan in the upgraded config."""
UPGRADED = ('upgraded.py', 'upgraded.pth')
PICTURES = ('sample_*.jpg', 'sample_*.png', 'tokens_*.png', 'keep_rates.png')
RESULTS = (
    'report.md',
    'report.json',
    'search.md',
    'search.json',
    UPGRADED[0],
    *(f'pictures/{one}' for one in PICTURES),
)
"""What an upgrade writes, but for the weights, which are replaced."""


def check_inputs(out: Path, config_file: Path, checkpoint: Path) -> None:
    """Refuses to work on what the upgrade in `out` itself writes: it would be replaced before it is measured.

    Raises:
        ValueError: If config or checkpoint is a result or a part of an upgrade in `out`.
    """
    made = [out / name for name in (*UPGRADED, 'finetune', 'pruned')]
    for path in (config_file, checkpoint):
        if any(path.resolve().is_relative_to(one.resolve()) for one in made):
            raise ValueError(f'{path} is what an upgrade in {out} writes, and would be replaced: choose another --out')


def forget_results(out: Path) -> None:
    """Removes what an earlier upgrade wrote into `out`, before the first file of a new one is there.

    Else a start that does not come to its end would leave the report and the pictures of one model beside another one.
    """
    for pattern in RESULTS:
        for path in out.glob(pattern):
            path.unlink()


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


def find_plan(
    runner: Runner, request: SearchRequest, out: Path, measured: Measured | None = None, weights: str | None = None
) -> PlanSearch:
    """Searches a plan on the runner's model and test set.

    Args:
        runner: Built from the prepared config.
        request: What to look for.
        out: Where `search.json` and `search.md` go.
        measured: Where trials are kept until the upgrade is finished, or None.
        weights: Fingerprint of those of the model: what was measured with others is measured anew.

    Raises:
        ValueError: If no plan holds the limit; the files say what was tried.
    """
    with CachedTest(runner, request.calibrate) as test:
        known = {None: test.baseline}

        def figures(plan: KeyPlan | None) -> dict[str, float]:
            if plan in known:
                return known[plan]
            if measured is None:
                return test.evaluate(plan)
            return measured.take(
                f'{request.calibrate or "all"} samples, {plan}, weights {weights}', lambda: test.evaluate(plan)
            )

        search = PlanSearch(request, figures, test.keys[0], len(test.keys), len(test.indices))
        search.run()
    forget_results(out)
    files.write_json(out / 'search.json', search.to_dict())
    files.write_text(out / 'search.md', search.markdown())
    if search.plan is None:
        raise ValueError(
            f'no plan keeps {" and ".join(search.limited)} within {request.max_drop:g} of the baseline; '
            f'{out / "search.md"} lists what was tried'
        )
    return search


def run_upgrade(
    config_file: Path,
    checkpoint: str | Path,
    plan: KeyPlan | SearchRequest | None,
    out: Path,
    overrides: dict[str, Any],
    timed: int,
    repeats: int,
    pictures: int,
    gpq: QueryPruning | None = None,
    samples: int | None = None,
) -> dict[str, Any]:
    """Prunes, measures baseline and upgraded model, and writes the report folder.

    The upgraded model is written as soon as its plan is known to fit, then the report, then the pictures, none of which
    costs what was written before. Until all are there, `measured.json` keeps accuracies for a second call.

    Args:
        config_file: The unpruned detector's config.
        checkpoint: Its weights: a file or an address.
        plan: Keys to prune, or what to look for first; None only with `gpq`.
        out: Folder for `report.md`, `report.json`, `pictures/`, `upgraded.py`, `upgraded.pth`, `logs/`, and with `gpq`
            `finetune/`, where an interrupted fine-tuning goes on.
        overrides: Settings on top of the config, by dotted key.
        timed: Test batches to time.
        repeats: How often each is timed.
        pictures: Samples to draw.
        gpq: Queries to prune first, by fine-tuning.
        samples: How many test samples to evaluate, see `samples.choose`; None means all.

    Returns:
        The report, as in `report.json`; a search is in it under `search`, the plan of GPQ under `gpq`.

    Raises:
        FileNotFoundError: If config or checkpoint is missing.
        OSError: If `out` cannot be written.
        ValueError: If a plan or the test set does not fit, or a search finds none.
    """
    checkpoint = local_file(checkpoint)
    original = read_config(config_file, checkpoint, overrides)
    files.writable(out)
    check_inputs(out, config_file, checkpoint)
    runner, search = Runner.from_cfg(prepare(original, checkpoint, out)), None
    config, upgraded, weights = original, runner, checkpoint
    # what no adapter knows, and what cannot be tested, is refused before hours of work
    adapters.stages(runner.model)
    tuned = None if gpq is None else gpq.to_dict()
    measured = Measured(out, source_of_upgrade(original, checkpoint, samples, gpq=tuned))
    tested = TestedSet.of(runner, samples, measured)
    if isinstance(plan, SearchRequest):
        require_accuracy(runner, 'auto')
        require_limited(runner)
    if gpq is not None:
        find_queries(runner.model)
        small = gpq.run(original, checkpoint, out)
        config, weights = small.config, out / 'upgraded.pth'
        forget_results(out)
        files.save_checkpoint(small.checkpoint, weights)
        upgraded = Runner.from_cfg(prepare(config, weights, out))
        upgraded.load_or_resume()
        restrict(upgraded, samples)
    if isinstance(plan, SearchRequest):
        search = find_plan(upgraded, plan, out, measured, fingerprint(weights))
        plan = search.plan
    comparison = Comparison(runner, Variant(upgraded.model, plan), timed, repeats, tested)
    costs = comparison.costs()  # seconds, after which the plan is known to fit
    data = read_checkpoint(weights)
    data = data if plan is None else upgraded_checkpoint(data, plan)
    if search is None:  # which did so already
        forget_results(out)
    write_upgraded(out, upgraded_config(config, plan), data)
    methods = [one.method for one in (gpq and gpq.plan, plan) if one is not None]
    report = comparison.report(f'{config_file.stem}: {", ".join(methods)}', costs)
    if search is not None:
        report['search'] = search.to_dict()
    if gpq is not None:
        report['gpq'] = tuned
    reports.finish(report, out, reports.markdown(report) + ('' if search is None else search.markdown()))
    reports.tell_pictures(comparison.pictures(out / 'pictures', pictures))
    measured.finish()
    return report


def write_upgraded(out: Path, config: Config, checkpoint: dict[str, Any], *others: str) -> None:
    """Writes the upgraded model, `upgraded.pth` and then `upgraded.py`: a config is there only with its weights.

    Args:
        out: Folder; it can be moved afterwards.
        config: Of the upgraded model.
        checkpoint: For it.
        others: Files in the folder that the config names.
    """
    files.save_checkpoint(checkpoint, out / 'upgraded.pth')
    files.dump_config(movable(config, out, 'upgraded.pth', *others), out / 'upgraded.py')
