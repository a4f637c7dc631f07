"""Accuracy by the evaluators of the config, brought down to the figures that nuScenes tables show."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from logging import WARNING
from typing import Any

from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import Runner
from tqdm import tqdm

from mmprune3d.evaluation import NaNPredictionError
from mmprune3d.screen import bar

from .baseline import UnchangedHook, check_hooks
from .score_warnings import collected, score_warnings

NUSCENES_METRICS = ('mAP', 'NDS', 'mATE', 'mASE', 'mAOE', 'mAVE', 'mAAE')
"""Detection score and its parts, as the nuScenes evaluation names them (errors: m, 1 - IoU, rad, m/s, 1 - accuracy)."""
COCO_METRICS = ('bbox_mAP', 'segm_mAP')
"""How the figures of mmdet's CocoMetric begin, after its prefix."""


class ProgressBarHook(Hook):
    """A progress bar over the test set, named after what is being tested; it stays on the screen if `leave`."""

    def __init__(self, title: str, leave: bool = True) -> None:
        self.title = title
        self.leave = leave
        self._bar: tqdm  # between before_test_epoch and after_test_epoch

    def before_test_epoch(self, runner: Runner) -> None:
        """Opens the progress bar."""
        self._bar = bar(total=len(runner.test_dataloader), desc=self.title, unit='batch', leave=self.leave)

    def after_test_iter(self, runner: Runner, *_: object, **__: object) -> None:
        """Moves the progress bar by one batch."""
        self._bar.update()

    def after_test_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Closes the progress bar."""
        self._bar.close()


def summarize(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The nuScenes figures among `metrics`, or else those of COCO, by short name; all others keep their full names.

    Figures of several evaluators are kept apart by their prefix (``'NuScenes metric/.../mAP'``): short names are those
    of the one evaluator that gives most of the nuScenes figures, and of its further figures (per class) none is shown.
    What is not a number is left out, with a warning.
    """
    numbers = _numbers(metrics)
    nuscenes = [name for name in numbers if _last(name) in NUSCENES_METRICS]
    if nuscenes:
        owners = Counter(_owner(name) for name in nuscenes)
        owner = max(owners, key=owners.__getitem__)  # the first one of equals
        own = [name for name in nuscenes if _owner(name) == owner]
        first = {short: next((name for name in own if _last(name) == short), None) for short in NUSCENES_METRICS}
        summary = {short: numbers[name] for short, name in first.items() if name is not None}
        return summary | {name: value for name, value in numbers.items() if _owner(name) != owner}
    return {_last(name) if _last(name).startswith(COCO_METRICS) else name: value for name, value in numbers.items()}


def _last(name: str) -> str:
    return name.rsplit('/', 1)[-1]


def _owner(name: str) -> str:
    """The prefix of the evaluator that gave a figure, '' if it has none."""
    return name.partition('/')[0] if '/' in name else ''


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Metrics as numbers; evaluators may give texts and lists as well."""
    found, others = {}, []
    for name, value in metrics.items():
        try:
            found[name] = float(value)
        except (TypeError, ValueError, RuntimeError):  # of Python and NumPy; of torch
            others.append(name)
    if others:
        print_log(
            f'not in the report, because they are not numbers: {", ".join(others)}', logger='current', level=WARNING
        )
    return found


def evenly_spaced(total: int, count: int | None) -> list[int]:
    """`count` of the numbers 0..total-1 at equal distances, first and last included; None means all.

    Raises:
        ValueError: If `count` lies outside 1..total.
    """
    if count is None or count == total:
        return list(range(total))
    if not 1 <= count <= total:
        raise ValueError(f'cannot choose {count} of {total} samples; valid are 1 to {total}')
    return [round(i * (total - 1) / max(count - 1, 1)) for i in range(count)]


def evaluate(runner: Runner, title: str, leave: bool = True) -> dict[str, float]:
    """The metrics of `evaluate_and_warn`; its warnings are in the log."""
    return evaluate_and_warn(runner, title, leave)[0]


def evaluate_and_warn(runner: Runner, title: str, leave: bool = True) -> tuple[dict[str, float], list[str]]:
    """Runs the config's test loop and evaluator on the runner's model as it is now.

    A detector that finds nothing has average precisions of 0 and errors of 1, and a warning says so.

    Args:
        runner: Built from a config with a test set; loads its checkpoint the first time.
        title: Shown beside the progress bar.
        leave: Whether the bar stays on the screen.

    Returns:
        All metrics, under the evaluator's full names; and a sentence for each accident, such as equal scores, that they
        depend on (see `score_warnings`). The log has these sentences, too.

    Raises:
        NaNPredictionError: If the model predicts NaN.
        ValueError: Before the first batch, if a hook of the runner prunes: whoever measures attaches the plan.
    """
    check_hooks(runner)
    # a test that ended early, as with a plan that does not fit, has left its results
    for metric in runner.test_evaluator.metrics:
        metric.results.clear()
    added = [ProgressBarHook(title, leave), UnchangedHook(runner.model)]
    for hook in added:
        runner.register_hook(hook, priority='LOWEST')
    try:
        with collected(runner) as found:
            metrics = runner.test()
    finally:
        runner.hooks[:] = [hook for hook in runner.hooks if hook not in added]
    warnings = score_warnings({title: found.detections()}, nuscenes='NDS' in summarize(metrics))
    for warning in warnings:
        runner.logger.warning(warning)
    return metrics, warnings


def figures_of_row(runner: Runner, title: str) -> dict[str, float]:
    """`evaluate` and `summarize` for a row of a study, which goes on with the next one if this one predicts NaN.

    Returns:
        The nuScenes figures; mAP and NDS are 0 after NaN, with a warning.
    """
    try:
        return summarize(evaluate(runner, title, leave=False))
    except NaNPredictionError as error:
        print_log(f'{title}: {error}; counted as a detector that finds nothing', logger='current', level=WARNING)
        return {'mAP': 0.0, 'NDS': 0.0}
