"""Which proposals and detections of a class are duplicates; the rules depend on how small a dataset's classes are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

POINTLIKE = {None: (), 'nuScenes': (8, 9), 'Waymo': (1, 2)}
"""Classes so small that every cell of the heatmap may be an object: pedestrian and cone, pedestrian and cyclist."""
RADIUS = {None: {}, 'nuScenes': {8: 0.175, 9: 0.175}, 'Waymo': {0: 0.7, 1: 0.7, 2: 0.7}}
"""Classes whose detections are suppressed, and the limit: square of a distance in metres, or IoU if rotated."""
NMS_TYPES = (None, 'circle', 'rotate')
MOST_PER_CLASS = 83
"""Detections per class that circular suppression leaves, as in mmdet3d."""


def check(test_cfg: Mapping[str, Any], num_classes: int) -> None:
    """Raises a ValueError that lists what is valid if there are no rules for ``dataset`` or ``nms_type``."""
    dataset, nms_type = test_cfg.get('dataset'), test_cfg.get('nms_type')
    if dataset not in POINTLIKE:
        raise ValueError(f'test_cfg.dataset is {dataset!r}; there are rules for {", ".join(map(str, POINTLIKE))}')
    if nms_type not in NMS_TYPES:
        raise ValueError(f'test_cfg.nms_type is {nms_type!r}; valid are {", ".join(map(str, NMS_TYPES))}')
    highest = max((*POINTLIKE[dataset], *RADIUS[dataset]), default=-1)
    if highest >= num_classes:
        raise ValueError(f'the rules for {dataset} need class {highest}, but there are {num_classes} classes; '
                         'set test_cfg.dataset to None to have none')  # fmt: skip


def peaks(heatmap: Tensor, kernel_size: int, dataset: str | None) -> Tensor:
    """The heatmap with zeros wherever a cell is not the largest of its neighbourhood.

    Cells closer to the border than half a neighbourhood are no peaks. Point-like classes are left alone.

    Args:
        heatmap: [B, classes, x, y].
        kernel_size: Side of the neighbourhood in cells, odd.
        dataset: Names the point-like classes.
    """
    margin = kernel_size // 2
    x, y = (slice(margin, size - margin) for size in heatmap.shape[-2:])
    peak = torch.zeros_like(heatmap, dtype=torch.bool)
    peak[..., x, y] = heatmap[..., x, y] == F.max_pool2d(heatmap, kernel_size, stride=1)
    peak[:, list(POINTLIKE[dataset])] = True
    return heatmap * peak


def suppress(boxes: Tensor, scores: Tensor, labels: Tensor, test_cfg: Mapping[str, Any]) -> Tensor:
    """Which detections of one sample survive suppression within their class: bool [N].

    Args:
        boxes: [N, 7+], (x, y, z, l, w, h, yaw, ...) in metres and radians.
        scores: [N].
        labels: [N].
        test_cfg: ``nms_type`` (None keeps all), ``dataset``, and for ``'rotate'`` maybe ``pre_maxsize`` and
            ``post_maxsize``, the most detections of a class before and after.
    """
    keep = torch.ones_like(labels, dtype=torch.bool)
    if test_cfg.get('nms_type') is None:
        return keep
    method = _circle if test_cfg['nms_type'] == 'circle' else _rotate
    for label, limit in RADIUS[test_cfg.get('dataset')].items():
        members = (labels == label).nonzero().flatten()
        keep[members] = False
        if len(members):
            keep[members[method(boxes[members], scores[members], limit, test_cfg)]] = True
    return keep


def _circle(boxes: Tensor, scores: Tensor, limit: float, test_cfg: Mapping[str, Any]) -> Tensor:
    """Kept boxes, best first: none lies within a squared distance of `limit` of a better kept one.

    mmdet3d's own function (compiled by numba when first called, which takes seconds), because which of equal scores
    goes first is an accident of the sort within it.
    """
    from mmdet3d.models.layers import circle_nms

    detections = torch.cat((boxes[:, :2], scores[:, None]), dim=1).detach().cpu().numpy()
    return torch.as_tensor(circle_nms(detections, limit, MOST_PER_CLASS), dtype=torch.int64, device=boxes.device)


def _rotate(boxes: Tensor, scores: Tensor, limit: float, test_cfg: Mapping[str, Any]) -> Tensor:
    """Kept boxes, best first: no footprint has an IoU of `limit` or more with a better one's; the first of equals wins.

    That is what mmcv 2.1's ``nms_rotated`` does on a CPU. Its CUDA kernel lets an IoU of exactly `limit` pass, as its
    ``nms`` for boxes along the axes does on either device.
    """
    from mmcv.ops import nms_rotated

    order = scores.argsort(descending=True, stable=True)[: test_cfg.get('pre_maxsize')]
    places = torch.arange(len(order), 0, -1, dtype=boxes.dtype, device=boxes.device)  # it sorts again, not stably
    kept = nms_rotated(boxes[order][:, [0, 1, 3, 4, 6]], places, limit)[1]
    return order[kept][: test_cfg.get('post_maxsize')]
