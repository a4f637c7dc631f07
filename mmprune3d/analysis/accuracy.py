"""Accuracy by the evaluators of the config, brought down to the figures that nuScenes tables show."""

from __future__ import annotations

from collections.abc import Mapping

from mmengine.hooks import Hook
from mmengine.runner import Runner
from tqdm import tqdm

from .baseline import UnchangedHook, check_hooks

NUSCENES_METRICS = ('mAP', 'NDS', 'mATE', 'mASE', 'mAOE', 'mAVE', 'mAAE')
"""Detection score and its parts, as the nuScenes evaluation names them (errors: m, 1 - IoU, rad, m/s, 1 - accuracy)."""


class ProgressBarHook(Hook):
    """A progress bar over the test set, named after what is being tested; it stays on the screen if `leave`."""

    def __init__(self, title: str, leave: bool = True) -> None:
        self.title = title
        self.leave = leave
        self._bar: tqdm | None = None

    def before_test_epoch(self, runner: Runner) -> None:
        """Opens the bar."""
        self._bar = tqdm(total=len(runner.test_dataloader), desc=self.title, unit='batch', leave=self.leave)

    def after_test_iter(self, runner: Runner, *_: object, **__: object) -> None:
        """One step."""
        self._bar.update()

    def after_test_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Closes the bar."""
        self._bar.close()


def summarize(metrics: Mapping[str, float]) -> dict[str, float]:
    """The nuScenes figures among `metrics`, by short name; other evaluators' figures keep their full names."""
    summary = {}
    for name in NUSCENES_METRICS:
        matches = [value for key, value in metrics.items() if key.rsplit('/', 1)[-1] == name]
        if matches:
            summary[name] = float(matches[0])
    return summary or {name: float(value) for name, value in metrics.items()}


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
    """Runs the config's test loop and evaluator on the runner's model as it is now.

    Args:
        runner: Built from a config with a test set; loads its checkpoint the first time.
        title: Shown beside the progress bar.
        leave: Whether the bar stays on the screen.

    Returns:
        All metrics, under the evaluator's full names.

    Raises:
        ValueError: Before the first batch, if a hook of the runner prunes; what is measured is pruned by who measures.
    """
    check_hooks(runner)
    added = [ProgressBarHook(title, leave), UnchangedHook(runner.model)]
    for hook in added:
        runner.register_hook(hook, priority='LOWEST')
    try:
        return runner.test()
    finally:
        runner.hooks[:] = [hook for hook in runner.hooks if hook not in added]
