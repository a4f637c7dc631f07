"""Boxes for the unmodified nuScenes devkit, and short ways to its evaluation, that the tests beside this share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from nuscenes.eval.common.config import config_factory
from nuscenes.eval.common.data_classes import EvalBoxes
from nuscenes.eval.detection.algo import accumulate, calc_ap, calc_tp
from nuscenes.eval.detection.constants import TP_METRICS
from nuscenes.eval.detection.data_classes import DetectionBox, DetectionMetrics
from nuscenes.eval.detection.evaluate import DetectionEval

NAN = (float('nan'), float('nan'))


def box(x: float, score: float = -1.0, name: str = 'car', **changes: object) -> DetectionBox:
    """A parked car at (x, 0); without a score it is ground truth."""
    settings = {
        'sample_token': 'sample',
        'translation': (float(x), 0.0, 0.0),
        'size': (2.0, 4.0, 1.5),
        'rotation': (1.0, 0.0, 0.0, 0.0),
        'attribute_name': 'vehicle.parked',
    }
    return DetectionBox(**{**settings, 'detection_name': name, 'detection_score': float(score), **changes})


def together(rows: Sequence[DetectionBox]) -> EvalBoxes:
    boxes = EvalBoxes()
    boxes.add_boxes('sample', list(rows))
    return boxes


def evaluate_class(
    truth: Sequence[DetectionBox], found: Sequence[DetectionBox], name: str = 'car', distance: float = 2.0
) -> tuple[float, dict[str, float]]:
    """Average precision at one distance, and the five errors, with the settings of the benchmark."""
    config = config_factory('detection_cvpr_2019')
    data = accumulate(together(truth), together(found), name, config.dist_fcn_callable, distance)
    errors = {metric: calc_tp(data, config.min_recall, metric) for metric in TP_METRICS}
    return calc_ap(data, config.min_recall, config.min_precision), errors


def evaluate_all(truth: Sequence[DetectionBox], found: Sequence[DetectionBox]) -> DetectionMetrics:
    """All classes; files and filters by distance and points are left out."""
    evaluation = DetectionEval.__new__(DetectionEval)
    evaluation.cfg, evaluation.verbose = config_factory('detection_cvpr_2019'), False
    evaluation.gt_boxes, evaluation.pred_boxes = together(truth), together(found)
    return evaluation.evaluate()[0]


def area(precision: np.ndarray) -> float:
    """AP from the precision at the recalls 0, 0.01, ..., 1: above 0.1 of both, scaled to 1."""
    return float(np.clip(precision[11:] - 0.1, 0, None).mean() / 0.9)
