"""Metrics for detectors without any detection, and an error message for predictions that contain NaN.

A detector that was pruned too much, that has just begun to train, or whose score threshold is high may find nothing in
a whole data set. The nuScenes devkit (1.2.0) then stops with ``Invalid box type: None``, and mmdet's ``CocoMetric``
returns no values at all, so a training, test or study of many hours would end without a result. Importing mmprune3d
makes both return the values that they define for this case: an average precision of 0 and errors of 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any
from unittest.mock import patch

import torch
from mmdet3d.evaluation.metrics import NuScenesMetric
from mmengine.logging import MMLogger
from torch import Tensor

from .nuscenes_metric import check_velocities

GEOMETRY = 7
"""Numbers of a box that must be finite; the velocities, which follow, may be NaN in nuScenes."""
COCO_FIGURES = ('mAP', 'mAP_50', 'mAP_75', 'mAP_s', 'mAP_m', 'mAP_l')
"""Values that ``CocoMetric`` returns unless its `metric_items` says otherwise."""


class NaNPredictionError(ValueError):
    """Raised if a detector predicts NaN, so that its accuracy cannot be measured."""


def check_predictions(data_samples: Sequence[Mapping[str, Any]]) -> None:
    """Checks that boxes and scores contain no NaN.

    Args:
        data_samples: Data samples as metrics get them: ``pred_instances_3d`` with ``bboxes_3d`` and ``scores_3d``.

    Raises:
        NaNPredictionError: If there is a NaN; the message names the sample.
    """
    for sample in data_samples:
        found = sample.get('pred_instances_3d') or {}
        values = {'boxes': _tensor(found.get('bboxes_3d'))[..., :GEOMETRY], 'scores': _tensor(found.get('scores_3d'))}
        for name, tensor in values.items():
            bad = int(tensor.isnan().reshape(len(tensor), -1).any(1).sum()) if tensor.numel() else 0
            if bad:
                raise NaNPredictionError(
                    f'the detector predicts NaN: {bad} of {len(tensor)} {name} of sample {sample.get("sample_idx")}. '
                    'Check its weights and, with mixed precision, for numbers too large for float16'
                )


def check_labels(data_samples: Sequence[Mapping[str, Any]], classes: Sequence[str] | None) -> None:
    """Checks that every label has a class; the evaluation would otherwise stop after the whole set (``IndexError``).

    Args:
        data_samples: Data samples as metrics get them.
        classes: Names of the data set's classes, or None if they are not known.

    Raises:
        ValueError: If a label is not less than the number of classes.
    """
    for sample in data_samples if classes is not None else ():
        labels = (sample.get('pred_instances_3d') or {}).get('labels_3d')
        if labels is not None and len(labels) and int(labels.max()) >= len(classes):
            raise ValueError(
                f'the detector predicts label {int(labels.max())}, but the data set has {len(classes)} classes '
                f'({", ".join(classes)}): num_classes of the head and metainfo=dict(classes=...) must be the same'
            )


def _tensor(values: Any) -> Tensor:
    values = getattr(values, 'tensor', values)
    return values if isinstance(values, Tensor) and values.is_floating_point() else torch.zeros(0)


@contextmanager
def devkit_counts_nothing() -> Iterator[None]:
    """In this context the nuScenes devkit evaluates predictions without any box like a class without any box.

    It reads from the first box whether the task is detection or tracking, and raises an error if there is none.
    """
    from nuscenes.eval.common import loaders

    original = loaders._get_box_class_field

    def class_field(eval_boxes: Any) -> str:
        return original(eval_boxes) if any(eval_boxes.boxes.values()) else 'detection_name'

    with patch.object(loaders, '_get_box_class_field', class_field):
        yield


def _evaluating(original: Callable[..., dict[str, float]]) -> Callable[..., dict[str, float]]:
    @wraps(original)
    def evaluate_single(self: NuScenesMetric, result_path: str, *args: Any, **kwargs: Any) -> dict[str, float]:
        try:
            with devkit_counts_nothing():
                return original(self, result_path, *args, **kwargs)
        except AssertionError as error:
            if 'boxes per sample allowed' not in str(error):
                raise
            raise ValueError(
                f'nuScenes evaluates up to {self.eval_detection_configs.max_boxes_per_sample} boxes per sample, and '
                'the detector gives more: lower max_num of its box coder, or max_per_img of test_cfg'
            ) from error

    return evaluate_single


def _processing(original: Callable[..., None]) -> Callable[..., None]:
    @wraps(original)
    def process(self: Any, data_batch: Any, data_samples: Sequence[Mapping[str, Any]]) -> None:
        check_predictions(data_samples)
        check_velocities(self, data_samples)
        check_labels(data_samples, (self.dataset_meta or {}).get('classes'))
        original(self, data_batch, data_samples)

    return process


def _warning(original: Callable[..., dict[str, float]]) -> Callable[..., dict[str, float]]:
    @wraps(original)
    def compute_metrics(self: Any, results: list[Any]) -> dict[str, float]:
        warn_if_nothing(results)
        return original(self, results)

    return compute_metrics


def warn_if_nothing(results: Sequence[Mapping[str, Any]]) -> None:
    """Logs a warning if `results` of a 3D metric contain no box at all."""
    counts = [len(result['pred_instances_3d']['scores_3d']) for result in results if 'pred_instances_3d' in result]
    if counts and not any(counts):
        MMLogger.get_current_instance().warning(
            f'The detector found nothing in any of {len(counts)} samples: its average precision is 0'
        )


def _coco(original: Callable[..., dict[str, float]]) -> Callable[..., dict[str, float]]:
    @wraps(original)
    def compute_metrics(self: Any, results: list[Any]) -> dict[str, float]:
        found = original(self, results)
        if self.format_only:
            return found
        for metric in self.metrics:
            if metric in ('bbox', 'segm'):
                for name in self.metric_items or COCO_FIGURES:
                    found.setdefault(f'{metric}_{name}', 0.0)
        return found

    return compute_metrics


def install() -> None:
    """Wraps the metrics of mmdet3d and mmdet, once; other results of theirs do not change."""
    from mmdet.evaluation.metrics import CocoMetric

    for owner, name, around in (
        (NuScenesMetric, 'process', _processing),
        (NuScenesMetric, 'compute_metrics', _warning),
        (NuScenesMetric, '_evaluate_single', _evaluating),
        (CocoMetric, 'compute_metrics', _coco),
    ):
        original = getattr(owner, name)
        if not hasattr(original, '__wrapped__'):
            setattr(owner, name, around(original))
