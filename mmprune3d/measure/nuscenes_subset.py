"""The nuScenes devkit's evaluation on chosen samples, and without reading the tables again for every test."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

from mmprune3d.files import read_json

SPLITS = {'v1.0-trainval': 'val', 'v1.0-mini': 'mini_val'}
"""Version of the tables -> the one split of it that mmdet3d's NuScenesMetric evaluates."""


def outside_split(tokens: Sequence[str], root: Path, version: str) -> str:
    """What is wrong with samples that nuScenes' evaluation does not know, or ''.

    Without `quick_evaluation` the devkit stops on them, after the whole test. Inside, it would find no annotations of
    theirs, and an average precision of 0.

    Args:
        tokens: Tokens of the samples.
        root: Folder that has the folder of the tables.
        version: Version of the tables, one of `SPLITS`.
    """
    from nuscenes.utils.splits import create_splits_scenes

    tables = [root / version / name for name in ('scene.json', 'sample.json')]
    if not all(table.is_file() for table in tables):
        return ''
    names = set(create_splits_scenes()[SPLITS[version]])
    scenes = {scene['token'] for scene in read_json(tables[0]) if scene['name'] in names}
    known = {sample['token'] for sample in read_json(tables[1]) if sample['scene_token'] in scenes}
    outside = [token for token in tokens if token not in known]
    return _not_in(outside, tokens, f'the split {SPLITS[version]} of {version}') if outside else ''


def _not_in(outside: Sequence[str], tokens: Sequence[str], split: str) -> str:
    return (
        f'{len(outside)} of {len(tokens)} samples of the test set are not in {split}, the only one that NuScenesMetric '
        f'evaluates (such as {outside[0]}): test that split, with its ann_file in the data set and in the evaluator'
    )


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
    """A copy, since the evaluation filters the lists of boxes; the boxes themselves are not changed.

    Raises:
        ValueError: If a sample has no ground truth.
    """
    truth = load_truth(*args, **kwargs)
    outside = sorted(set(tokens) - set(truth.sample_tokens))  # looked up, they would be samples without objects
    if outside:
        raise ValueError(_not_in(outside, tokens, 'the evaluated split'))
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
