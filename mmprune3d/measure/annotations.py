"""Whether accuracy can be measured at all: checks before the test set is run through."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.registry import DATASETS, EVALUATOR, init_default_scope
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import Dataset

from .nuscenes_subset import SPLITS, outside_split
from .samples import count_samples, images_of, infos_of, innermost, is_kind

TABLE = 'sample_annotation.json'
"""Of nuScenes' tables, that with the boxes."""
LABELLED = ('Det3DDataset', 'BaseDetDataset')
"""Datasets of mmdet3d and mmdet, whose infos have annotations under `instances`."""
UNLABELLED = 'test_dataloader.dataset.load_eval_anns=False'


def no_accuracy(dataset: Dataset, evaluator: Evaluator) -> str:
    """Why `evaluator` can say nothing about accuracy on `dataset`, or ''.

    Args:
        dataset: The test set.
        evaluator: The evaluator of the config.
    """
    judging = [metric for metric in evaluator.metrics if not getattr(metric, 'format_only', False)]
    if judging:
        reasons = [_unlabelled(dataset, metric) for metric in judging]
        return reasons[0] if all(reasons) else ''
    names = ', '.join(type(metric).__name__ for metric in evaluator.metrics)
    words = f'{names} only writes results to a file (format_only=True)' if names else 'the config has no evaluator'
    return ', and '.join(reason for reason in (_missing(dataset), words) if reason)


def _unlabelled(dataset: Dataset, metric: Any) -> str:
    """Why one metric has nothing to compare with."""
    if is_kind(metric, 'NuScenesMetric'):
        return _unlabelled_nuscenes(dataset, metric)
    images = images_of(metric)
    if images is not None:
        return '' if images.anns else f'the ann_file of {type(metric).__name__} has no annotations'
    return _missing(dataset)


def _unlabelled_nuscenes(dataset: Dataset, metric: Any) -> str:
    """Its annotations are those of the tables, not of the infos."""
    version = (getattr(metric, 'dataset_meta', None) or {}).get('version')
    if version not in SPLITS:
        return f'{type(metric).__name__} knows annotations of {", ".join(SPLITS)}, not of {version}'
    table = Path(metric.data_root) / version / TABLE
    if not table.is_file():
        return f'{table} does not exist{_other_version(Path(metric.data_root))}'
    with table.open() as file:
        # an empty list, whatever its white space; the tables of nuScenes have a GiB
        start = ''.join(file.read(4096).split())
    if start == '[]':
        return f'{table} has no annotations'
    tokens = [info['token'] for info in infos_of(dataset) if info.get('token')]
    return outside_split(tokens, Path(metric.data_root), version)


def _other_version(root: Path) -> str:
    """What helps if there are tables of another version; mmdet3d (1.4) goes by the config, whatever the infos say."""
    there = next((name for name in SPLITS if (root / name / TABLE).is_file()), None)
    return f". {there} is there: for it, set test_dataloader.dataset.metainfo.version='{there}'" if there else ''


def _missing(dataset: Dataset) -> str:
    """The reason that no sample has an annotation, if infos of this kind show it; otherwise ''."""
    says = any(is_kind(part, *LABELLED) for part in innermost(dataset))
    if not says or any(info.get('instances') or _ground_truth(info) for info in infos_of(dataset)):
        return ''
    return f'the test set has no annotations (no instances in {count_samples(dataset)} samples)'


def _ground_truth(info: dict[str, Any]) -> bool:
    """Whether there are boxes under the other names that mmdet3d gives them."""
    boxes = (info.get('eval_ann_info') or info.get('ann_info') or {}).get('gt_labels_3d')
    return boxes is not None and len(boxes) > 0


def require_accuracy(runner: Runner, what: str) -> None:
    """Refuses work that needs accuracy where it cannot be measured.

    Args:
        runner: A runner with the test set.
        what: Name of the work, for the message.

    Raises:
        ValueError: If accuracy cannot be measured; the message has the reason, and what helps.
    """
    check_dataset(runner)
    _require(runner.test_dataloader.dataset, runner.test_evaluator, what)


def require_accuracy_of(config: Config, what: str) -> None:
    """`require_accuracy` for the test set of a config, without building its model.

    Raises:
        ValueError: If accuracy cannot be measured; see `require_accuracy`.
    """
    if config.get('test_dataloader') is None or config.get('test_evaluator') is None:
        raise ValueError(f'{what} needs accuracy, but the config has no test_dataloader and test_evaluator')
    init_default_scope(config.get('default_scope', 'mmdet3d'))
    dataset = DATASETS.build(copy.deepcopy(config.test_dataloader.dataset))
    evaluator = EVALUATOR.build(dict(type='Evaluator', metrics=copy.deepcopy(config.test_evaluator)))
    evaluator.dataset_meta = getattr(dataset, 'metainfo', None)
    _require(dataset, evaluator, what)


def _require(dataset: Dataset, evaluator: Evaluator, what: str) -> None:
    reason = no_accuracy(dataset, evaluator)
    if reason:
        raise ValueError(f'{what} needs accuracy, but {reason}: give a split with annotations and an evaluator for it')


def check_dataset(runner: Runner) -> None:
    """Builds the test set, and translates what mmdet3d says if its infos have no annotations.

    Raises:
        ValueError: If annotations are to be loaded that are not there; the message names the option.
    """
    how = f'To measure times alone: {UNLABELLED} (with --cfg-options), and an evaluator with format_only=True'
    with missing_named('test', how):
        next(infos_of(runner.test_dataloader.dataset), None)


@contextmanager
def missing_named(what: str, how: str) -> Iterator[None]:
    """Inside, a data set that is built may lack annotations: mmdet3d then stops with ``KeyError: 'instances'``.

    Args:
        what: The set, 'test' or 'training'.
        how: What helps, a sentence without its full stop.

    Raises:
        ValueError: Instead of it.
    """
    try:
        yield
    except KeyError as error:
        if "'instances'" not in str(error):
            raise
        raise ValueError(f'the infos of the {what} set have no annotations (no `instances`). {how}') from error


def check_classes(model: nn.Module, dataset: Dataset) -> None:
    """Refuses a head for another number of classes than the test set has: labels would stand for other classes.

    Args:
        model: A detector, whose heads say ``num_classes``, as those of mmdet3d and mmdet do.
        dataset: The test set, whose metainfo says ``classes``.

    Raises:
        ValueError: If they differ.
    """
    classes = (getattr(dataset, 'metainfo', None) or {}).get('classes')
    if classes is None:
        return
    for name, head in model.named_children():
        count = getattr(head, 'num_classes', None)
        count = sum(count) if isinstance(count, (list, tuple)) else count  # of several tasks
        if name.endswith('head') and 'rpn' not in name and isinstance(count, int) and count != len(classes):
            raise ValueError(
                f'model.{name} has {count} classes, but the test set has {len(classes)} ({", ".join(classes)}): set '
                'num_classes and metainfo=dict(classes=...) to the same; to fine-tune a checkpoint of other classes, '
                "put dict(type='AllowShapeMismatchHook', prefixes=[...]) into custom_hooks"
            )
