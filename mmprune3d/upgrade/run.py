"""Upgrades: from a config and a checkpoint to a pruned model, with a report that compares both."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.runner import Runner

from mmprune3d import files
from mmprune3d.checkpoint.addresses import local_file
from mmprune3d.checkpoint.read import read_checkpoint
from mmprune3d.measure import report as reports
from mmprune3d.measure.measured import Measured, source_of_upgrade
from mmprune3d.measure.runners import prepare, read_config
from mmprune3d.measure.tested import TestedSet
from mmprune3d.pruning.settings import Plan

from . import methods
from .compare import SideBySide
from .configs import WEIGHTS, check_inputs, forget_results, upgraded_config, with_plan, write_upgraded
from .search import SearchRequest
from .steps import Scene, Step


def run_upgrade(
    config_file: Path,
    checkpoint: str | Path,
    plans: Plan | SearchRequest | Step | Sequence[Plan | SearchRequest | Step],
    out: Path,
    overrides: dict[str, Any] | None = None,
    timed: int = 8,
    repeats: int = 3,
    pictures: int = 3,
    samples: int | None = None,
) -> dict[str, Any]:
    """Prunes, trains where the method needs it, measures baseline and upgraded model, and writes the report folder.

    The upgraded model is written as soon as its plan is known to fit, then the report, then the pictures; none of these
    costs what was written before. Until all are there, `measured.json` keeps accuracies for a second call.

    Args:
        config_file: Config of the unpruned detector.
        checkpoint: Its weights: a file or an address.
        plans: What to prune: a plan (which trains with default settings where its method trains), a search for one, a
            step of an upgrade, or several of these whose methods go together.
        out: Folder for `report.md`, `report.json`, `pictures/`, `upgraded.py`, `upgraded.pth`, `logs/`; with methods
            that train also `finetune/`, where an interrupted training goes on, and with channels removed
            `structure.json` and `pruned/`.
        overrides: Settings on top of the config, by dotted key.
        timed: Test batches to time.
        repeats: How often each is timed.
        pictures: Samples to draw.
        samples: How many test samples to evaluate, see `samples.choose`; None means all.

    Returns:
        The report, as in `report.json`.

    Raises:
        FileNotFoundError: If config or checkpoint is missing.
        OSError: If `out` cannot be written.
        ValueError: If methods do not go together, a plan or the test set does not fit, or a search finds no plan.
    """
    steps = methods.steps_of(plans)
    begun = Begun.of(steps, config_file, local_file(checkpoint), out, overrides or {}, samples)
    made = make(steps, Upgraded(begun.runner, begun.config, begun.checkpoint), out)
    decided = decide(steps, begun, made, samples)
    comparison, costs = write_and_compare(begun, made, decided, decided != steps, timed, repeats)
    title = f'{config_file.stem}: {", ".join(step.title() for step in decided)}'
    report = {**comparison.report(title, costs), 'plan': None, **made.evidence}
    report['plans'] = [step.to_dict() for step in decided]  # `evidence` of two steps may have one name
    for step in decided:
        report |= step.evidence()
    texts = [reports.markdown(report, comparison.rows), *made.texts, *(step.text() for step in decided)]
    reports.finish(report, out, '\n'.join(text for text in texts if text))
    drawn = comparison.pictures(out / 'pictures', pictures)
    for step in decided:
        drawn += step.pictures(comparison, report, out / 'pictures', pictures)
    reports.tell_pictures(drawn)
    begun.measured.finish()
    return report


@dataclass(frozen=True)
class Begun:
    """An upgrade whose inputs have been checked.

    Attributes:
        config: The user's config, with overrides.
        checkpoint: File with the weights.
        out: Folder of the upgrade.
        runner: A runner of the unpruned model, whose weights are not loaded yet.
        tested: Its test set.
        measured: Where accuracies are kept until the upgrade is finished.
    """

    config: Config
    checkpoint: Path
    out: Path
    runner: Runner
    tested: TestedSet
    measured: Measured

    @classmethod
    def of(
        cls,
        steps: Sequence[Step],
        config_file: Path,
        checkpoint: Path,
        out: Path,
        overrides: dict[str, Any],
        samples: int | None,
    ) -> Begun:
        """Reads and builds what is needed; what cannot be pruned or tested is refused before hours of work.

        Args:
            steps: Steps of the upgrade.
            config_file: See `run_upgrade`, as for all others.
            checkpoint: File with the weights.
            out: Folder of the upgrade.
            overrides: Settings on top of the config, by dotted key.
            samples: How many test samples to evaluate.
        """
        config = read_config(config_file, checkpoint, overrides)
        files.writable(out)
        check_inputs(out, config_file, checkpoint)
        for step in steps:
            step.check_config(config)
        runner = Runner.from_cfg(prepare(config, checkpoint, out))
        for step in steps:
            step.check_model(runner.model, config)
        measured = Measured(out, source_of_upgrade(config, checkpoint, samples))
        tested = TestedSet.of(runner, samples, measured)
        for step in steps:
            step.check_test(runner)
        return cls(config, checkpoint, out, runner, tested, measured)


@dataclass(frozen=True)
class Upgraded:
    """A model that an upgrade has made so far; in the beginning, the baseline.

    Attributes:
        runner: A runner of the model, with its weights if it is not the baseline.
        config: Config of the model.
        weights: Its checkpoint.
        evidence: What the report says about how it was made, by name.
        texts: Sections of ``report.md``.
        files: Names of files in the folder that the config refers to.
        imports: Modules that the config has to import.
    """

    runner: Runner
    config: Config
    weights: Path
    evidence: dict[str, Any] = field(default_factory=dict)
    texts: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    imports: tuple[str, ...] = ()

    def write(self, out: Path, attached: Sequence[Step] = ()) -> None:
        """Writes config and checkpoint of the upgraded model.

        Args:
            out: Folder of the upgrade.
            attached: Steps that prune the model at run time.
        """
        config = upgraded_config(self.config, None, self.imports)
        if not attached:  # then the checkpoint is there already
            write_upgraded(out, config, None, *self.files)
            return
        data = read_checkpoint(self.weights)
        for step in attached:
            config, data = upgraded_config(config, step.plan), with_plan(data, step.plan)
        write_upgraded(out, config, data, *self.files)


def make(steps: Sequence[Step], start: Upgraded, out: Path) -> Upgraded:
    """Lets the steps that make another model do so; their checkpoint is written as ``upgraded.pth``.

    Args:
        steps: All steps of the upgrade.
        start: What they begin with.
        out: Folder of the upgrade.

    Returns:
        The last model that was made; `start` if no step makes one.
    """
    now, weights = start, out / WEIGHTS
    for step in steps:
        made = step.make(now.config, now.weights, out)
        if made is None:
            continue
        forget_results(out)
        files.save_checkpoint(made.checkpoint, weights)
        config = copy.deepcopy(made.config)
        config.load_from = str(weights)
        runner = Runner.from_cfg(prepare(config, weights, out))
        runner.load_or_resume()
        if step.settle(runner.model, start.config):
            files.save_checkpoint({**made.checkpoint, 'state_dict': runner.model.state_dict()}, weights)
        now = Upgraded(
            runner,
            config,
            weights,
            now.evidence | made.evidence,
            (*now.texts, made.text),
            (*now.files, *made.files),
            (*now.imports, *methods.get(step.method).imports),
        )
    return now


def decide(steps: Sequence[Step], begun: Begun, made: Upgraded, samples: int | None) -> list[Step]:
    """The steps with plans that leave nothing open; a search is done here."""
    scene = Scene(made.runner, made.weights, begun.out, begun.measured, samples)
    return [step.decided(scene) for step in steps]


def write_and_compare(
    begun: Begun, made: Upgraded, steps: Sequence[Step], searched: bool, timed: int, repeats: int
) -> tuple[SideBySide, dict[str, Any] | None]:
    """Writes the upgraded model, as early as it is known to fit, and sets up its comparison with the baseline.

    Args:
        begun: The upgrade.
        made: The upgraded model.
        steps: Steps whose plans leave nothing open.
        searched: Whether a search has put old results aside and written its own.
        timed: Test batches to time.
        repeats: How often each is timed.

    Returns:
        The comparison, and costs if they are known already.
    """
    attached = [step for step in steps if step.at_run_time]
    if not attached:
        made.write(begun.out)
    compare = steps[-1].comparison(begun.runner.model, begun.config)
    settings = dict(timed=timed, repeats=repeats, tested=begun.tested, attached=attached)
    comparison = compare(begun.runner, made.runner.model, **settings)
    if not attached:
        return comparison, None
    costs = comparison.costs()  # seconds, after which the plan is known to fit
    if not searched:
        forget_results(begun.out)
    made.write(begun.out, attached)
    return comparison, costs
