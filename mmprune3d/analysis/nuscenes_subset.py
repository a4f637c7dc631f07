"""The nuScenes devkit's evaluation on chosen samples, and without reading the tables again for every test."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any
from unittest.mock import patch


@contextmanager
def quick_evaluation(tokens: Sequence[str]) -> Iterator[None]:
    """Inside, nuScenes evaluations are about `tokens` alone; tables and ground truth are read once; no progress bars.

    The devkit insists on predictions for all samples of a split, and reads all tables for every evaluation. Figures of
    the samples that are evaluated do not change.

    Args:
        tokens: Samples; if empty (another dataset), nothing changes.
    """
    if not tokens:
        yield
        return
    import mmengine
    import nuscenes
    from mmdet3d.evaluation.metrics import nuscenes_metric
    from nuscenes.eval.detection import evaluate

    load_truth = cache(evaluate.load_gt)
    with (
        patch.object(nuscenes, 'NuScenes', cache(nuscenes.NuScenes)),
        patch.object(nuscenes_metric, 'load', _read_once(nuscenes_metric.load)),
        patch.object(evaluate, 'load_gt', lambda *args, **kwargs: _chosen(load_truth, tokens, *args, **kwargs)),
        patch.object(mmengine, 'track_iter_progress', _iterate),
    ):
        yield


def _chosen(load_truth: Callable[..., Any], tokens: Sequence[str], *args: Any, **kwargs: Any) -> Any:
    """A copy, since the evaluation filters the lists of boxes; the boxes themselves are not changed."""
    truth = load_truth(*args, **kwargs)
    chosen = type(truth)()
    for token in tokens:
        chosen.add_boxes(token, list(truth[token]))
    return chosen


def _read_once(load: Callable[..., Any]) -> Callable[..., Any]:
    files: dict[str, Any] = {}

    def read(path: str, *args: Any, **kwargs: Any) -> Any:
        if path not in files:
            files[path] = load(path, *args, **kwargs)
        return files[path]

    return read


def _iterate(tasks: Iterable[Any], *_: Any, **__: Any) -> Iterator[Any]:
    return iter(tasks)
