"""KITTI's metric for machines without CUDA."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmdet3d.evaluation.metrics import KittiMetric
from mmdet3d.registry import METRICS
from mmengine.logging import MMLogger, print_log

from .kitti_ap import EVAL_TYPES, kitti_average_precision
from .nothing_found import check_predictions, warn_if_nothing


@METRICS.register_module('MMPrune3DKittiMetric')
class KittiMetricCPU(KittiMetric):
    """mmdet3d's ``KittiMetric`` without CUDA, with the same arguments and the same keys.

    In a config it is ``dict(type='MMPrune3DKittiMetric', ...)``. Overlaps of rotated boxes are exact and in float64
    (see :mod:`mmprune3d.evaluation.kitti_ap`); those of mmdet3d are in float32 on the GPU.
    """

    def process(self, data_batch: Mapping[str, Any], data_samples: Sequence[Mapping[str, Any]]) -> None:
        """Stores the results of a batch.

        Raises:
            NaNPredictionError: If boxes or scores contain NaN.
        """
        check_predictions(data_samples)
        super().process(data_batch, data_samples)

    def compute_metrics(self, results: list[dict]) -> dict[str, float]:
        """Computes the average precisions of all stored results; 0, with a warning, if there are no detections."""
        warn_if_nothing(results)
        return super().compute_metrics(results)

    def kitti_evaluate(
        self,
        results_dict: dict[str, list[dict]],
        gt_annos: list[dict],
        metric: str | None = None,
        classes: Sequence[str] | None = None,
        logger: MMLogger | None = None,
    ) -> dict[str, float]:
        """Computes the average precisions of each kind of results.

        Args:
            results_dict: Detections of each frame by ``pred_instances_3d`` and ``pred_instances``.
            gt_annos: Ground truth of each frame.
            metric: With ``img_bbox`` only image boxes are evaluated.
            classes: Names of the classes, of which KITTI evaluates Car, Pedestrian and Cyclist.
            logger: Logger that gets the tables.

        Returns:
            Percentages with four digits by names such as ``pred_instances_3d/KITTI/Car_3D_AP40_easy_strict``.

        Raises:
            ValueError: If no frame has ground truth, or a class is not evaluated by KITTI.
        """
        found = {}
        for kind, dt_annos in results_dict.items():
            flat = kind == 'pred_instances' or metric == 'img_bbox'
            table, values = kitti_average_precision(gt_annos, dt_annos, classes, ('bbox',) if flat else EVAL_TYPES)
            print_log(f'{kind}:\n{table}', logger=logger)
            found.update({f'{kind}/{name}': round(float(value), 4) for name, value in values.items()})
        return found
