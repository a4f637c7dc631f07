"""nuScenes' metric for detectors that predict no velocities."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from mmdet3d.evaluation.metrics import NuScenesMetric
from mmdet3d.registry import METRICS
from mmdet3d.structures import BaseInstance3DBoxes
from mmengine.logging import MMLogger, print_log
from torch import Tensor


@METRICS.register_module('MMPrune3DNuScenesMetric')
class NuScenesMetricWithoutVelocity(NuScenesMetric):
    """mmdet3d's ``NuScenesMetric`` with support for boxes of seven numbers; it has the same arguments and keys.

    In a config it is ``dict(type='MMPrune3DNuScenesMetric', ...)``. Detections without velocities count as standing
    still (both velocities are 0), so that AVE is the mean speed of the objects that were found, attributes are those of
    standing objects, and NDS includes both. (NaN velocities would be left out of AVE instead, which could make it 0.)
    Boxes with velocities are evaluated as by mmdet3d's metric. The latter fails on boxes without velocities after the
    whole test set, where it rotates velocities; with mmprune3d imported it fails at the first batch, with a message
    that names this class.
    """

    _warned = False

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Stores the predictions of a batch, with velocities of 0 where there are none.

        Args:
            data_batch: Not used.
            data_samples: Data samples with ``pred_instances_3d``, ``pred_instances`` and ``sample_idx``.
        """
        super().process(data_batch, data_samples)
        for result in self.results[len(self.results) - len(data_samples) :]:
            found: dict[str, Any] = result['pred_instances_3d']
            if 'bboxes_3d' in found and found['bboxes_3d'].tensor.shape[1] == 7:
                found['bboxes_3d'] = standing(found['bboxes_3d'])
                self._say_so()

    def _say_so(self) -> None:
        if not self._warned:
            print_log(
                'the detections have no velocities and count as standing still, which AVE, AAE and NDS include',
                logger=MMLogger.get_current_instance(),
                level=logging.WARNING,
            )
        self._warned = True


def check_velocities(metric: NuScenesMetric, data_samples: Sequence[Mapping[str, Any]]) -> None:
    """Checks that boxes have velocities if `metric` needs them.

    Raises:
        ValueError: If a sample has boxes of 7 numbers and `metric` is mmdet3d's own metric.
    """
    if isinstance(metric, NuScenesMetricWithoutVelocity):
        return
    for sample in data_samples:
        values = getattr((sample.get('pred_instances_3d') or {}).get('bboxes_3d'), 'tensor', None)
        if values is not None and len(values) and values.shape[1] == 7:
            raise ValueError(
                'the detections have 7 numbers and no velocities, which NuScenesMetric needs: set '
                "type='MMPrune3DNuScenesMetric' in val_evaluator and test_evaluator, which counts such boxes as "
                'standing still, or let the head predict velocities'
            )


def standing(boxes: BaseInstance3DBoxes) -> BaseInstance3DBoxes:
    """Appends two velocities of 0 to boxes [N, 7], which makes them [N, 9]; other boxes are returned as they are."""
    values: Tensor = boxes.tensor
    if values.shape[1] != 7:
        return boxes
    moved = type(boxes)(boxes.tensor.new_zeros(len(values), 9), box_dim=9)
    moved.tensor[:, :7] = values
    return moved
