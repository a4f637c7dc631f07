"""The detector that trains and runs an SST backbone with dynamic token halting."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from mmdet3d.registry import MODELS
from torch import Tensor

from mmprune3d.pruning import checks
from mmprune3d.pruning.halting import HaltingRecord
from mmprune3d.pruning.halting_loss import POSITIVES, sparsity_loss, token_heatmap, uniform_sparsity_loss

from .detector import SSTDetector

LOSS_KEYS = ('kind', 'weight', 'alpha', 'gamma', 'positives', 'overlap', 'min_radius')
KINDS = ('nonuniform', 'uniform')

Listener = Callable[[HaltingRecord, list[Tensor] | None], None]


@MODELS.register_module()
class HaltingSSTDetector(SSTDetector):
    """A detector with an SST backbone whose tokens halt (Dynamic Token Halting, ICCV 2023).

    Losses are computed with the differentiable forward pass, predictions with the sparse one, in training and
    evaluation mode.

    Args:
        sparsity_loss: Settings of the loss of the scores (sections 4.6, A.1.1): ``kind`` (``'nonuniform'``, or
            ``'uniform'``, the paper's ablation), ``weight`` (0.5), ``alpha`` (2), ``gamma`` (4), ``positives``,
            ``overlap``, ``min_radius``; see :mod:`mmprune3d.pruning.halting_loss`. A backbone with a method
            ``regularization``, from a record to a dict of losses (:class:`AViTSST`), is trained with these losses
            instead and `sparsity_loss` must be None.
        **kwargs: Arguments of :class:`SSTDetector`.

    Attributes:
        record_listeners: Functions that are called after every loss and prediction with the record of decisions and
            the ground-truth boxes [G, 7+] of each sample (None if they are not known).

    Raises:
        ValueError: If `sparsity_loss` has unknown keys or kinds, the backbone does not halt tokens, or `sparsity_loss`
            is given although the backbone has losses of its own.
    """

    def __init__(self, sparsity_loss: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        settings = _checked_loss(sparsity_loss or {})
        if not hasattr(self.backbone, 'forward_with_record'):
            raise ValueError(f'{type(self.backbone).__name__} has no tokens that halt; use HaltingSST or AViTSST')
        if sparsity_loss and hasattr(self.backbone, 'regularization'):
            raise ValueError(f'{type(self.backbone).__name__} has its own losses; leave out sparsity_loss')
        self.kind, self.loss_weight = settings.pop('kind'), settings.pop('weight')
        self.focal = {key: settings.pop(key) for key in ('alpha', 'gamma') if key in settings}
        self.heatmap = settings
        self.record_listeners: list[Listener] = []

    def extract_feat(self, batch_inputs_dict: dict[str, Any]) -> list[Tensor]:
        """Computes the maps for the head with the sparse forward pass."""
        return self.extract_feat_with_record(batch_inputs_dict, 'sparse')[0]

    def extract_feat_with_record(
        self, batch_inputs_dict: dict[str, Any], path: str
    ) -> tuple[list[Tensor], HaltingRecord]:
        """Computes the maps for the head and the record of decisions; `path` as in ``forward_with_record``."""
        maps, record = self.backbone.forward_with_record(self.tokens(batch_inputs_dict), path)
        return (self.neck(maps) if self.with_neck else maps), record

    def loss(self, batch_inputs_dict: dict[str, Any], batch_data_samples: Sequence[Any], **kwargs: Any) -> dict:
        """Computes the losses of the head, and ``loss_halting`` (Eq. 12) or the losses of the backbone."""
        maps, record = self.extract_feat_with_record(batch_inputs_dict, 'edf')
        losses = self.bbox_head.loss(maps, batch_data_samples, **kwargs)
        boxes = _boxes(batch_data_samples, record.coords)
        losses.update(self.halting_loss(record, boxes))
        self._tell(record, boxes)
        return losses

    def halting_loss(self, record: HaltingRecord, boxes: Sequence[Tensor]) -> dict[str, Tensor]:
        """Computes the sparsity loss, summed over gates, or the losses of the backbone.

        Args:
            record: Halting decisions of a forward pass.
            boxes: Ground-truth boxes [G, 7+] of each sample.
        """
        if hasattr(self.backbone, 'regularization'):
            return self.backbone.regularization(record)
        if self.kind == 'uniform':
            each = [uniform_sparsity_loss(step.scores) for step in record.steps]
        else:
            encoder = self.voxel_encoder
            heatmap = token_heatmap(record.coords, boxes, encoder.voxel_size, encoder.point_cloud_range, **self.heatmap)
            each = [sparsity_loss(step.scores, heatmap[step.rows], **self.focal) for step in record.steps]
        return dict(loss_halting=self.loss_weight * sum(each))

    def predict(self, batch_inputs_dict: dict[str, Any], batch_data_samples: Sequence[Any], **kwargs: Any) -> list:
        """Returns the data samples with predictions of the sparse forward pass."""
        maps, record = self.extract_feat_with_record(batch_inputs_dict, 'sparse')
        results = self.bbox_head.predict(maps, batch_data_samples, **kwargs)
        self._tell(record, _boxes(batch_data_samples, record.coords))
        return self.add_pred_to_datasample(batch_data_samples, results)

    def _tell(self, record: HaltingRecord, boxes: list[Tensor] | None) -> None:
        if self.record_listeners:
            steps = tuple(replace(step, scores=step.scores.detach()) for step in record.steps)
            decisions = HaltingRecord(steps, record.coords, record.batch_size, record.num_layers)
            for listener in self.record_listeners:
                listener(decisions, boxes)


def _checked_loss(given: Any) -> dict[str, Any]:
    """The settings of the sparsity loss as plain types; raises ValueError if one is not valid."""
    settings = dict(kind='nonuniform', weight=0.5)
    settings |= checks.settings('sparsity_loss', given, LOSS_KEYS, "dict(kind='nonuniform', weight=0.5)")
    for name, valid in (('kind', KINDS), ('positives', POSITIVES)):
        if name in settings:
            settings[name] = checks.choice(f'sparsity_loss: {name}', settings[name], valid)
    for name, most in (('weight', math.inf), ('alpha', math.inf), ('gamma', math.inf), ('overlap', 1)):
        if name in settings:
            settings[name] = checks.number(f'sparsity_loss: {name}', settings[name], most=most)
    if 'min_radius' in settings:
        settings['min_radius'] = checks.count('sparsity_loss: min_radius', settings['min_radius'])
    return settings


def _boxes(samples: Sequence[Any], like: Tensor) -> list[Tensor] | None:
    """Ground-truth boxes [G, 7+] of each sample, on the device of `like`; None if a sample has none."""
    found = [_annotated(sample) for sample in samples]
    return None if any(boxes is None for boxes in found) else [boxes.tensor.to(like.device) for boxes in found]


def _annotated(sample: Any) -> Any:
    """Boxes of a training sample, or those that a test sample carries for evaluation."""
    truth = sample.get('gt_instances_3d')
    if truth is not None and 'bboxes_3d' in truth:
        return truth.bboxes_3d
    return (sample.get('eval_ann_info') or {}).get('gt_bboxes_3d')
