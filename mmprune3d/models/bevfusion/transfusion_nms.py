"""Non-maximum suppression of proposals and detections; the rules depend on how small the classes of a dataset are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

POINTLIKE = {None: (), 'nuScenes': (8, 9), 'Waymo': (1, 2)}
"""Classes so small that every cell of the heatmap may be an object: pedestrian and cone, pedestrian and cyclist."""
RADIUS = {None: {}, 'nuScenes': {8: 0.175, 9: 0.175}, 'Waymo': {0: 0.7, 1: 0.7, 2: 0.7}}
"""Classes whose detections are suppressed, and the limit: a squared distance in metres, or an IoU if rotated."""
NMS_TYPES = (None, 'circle', 'rotate')
MOST_PER_CLASS = 83
"""Largest number of detections per class that circular suppression keeps, as in mmdet3d."""


def check(test_cfg: Mapping[str, Any], num_classes: int) -> None:
    """Checks that there are rules for ``dataset`` and ``nms_type``.

    Raises:
        ValueError: If not; the message lists the valid values.
    """
    dataset, nms_type = test_cfg.get('dataset'), test_cfg.get('nms_type')
    if dataset not in POINTLIKE:
        raise ValueError(f'test_cfg.dataset is {dataset!r}; there are rules for {", ".join(map(str, POINTLIKE))}')
    if nms_type not in NMS_TYPES:
        raise ValueError(f'test_cfg.nms_type is {nms_type!r}; valid are {", ".join(map(str, NMS_TYPES))}')
    highest = max((*POINTLIKE[dataset], *RADIUS[dataset]), default=-1)
    if highest >= num_classes:
        raise ValueError(f'the rules for {dataset} need class {highest}, but there are {num_classes} classes; '
                         'set test_cfg.dataset=None for no rules')  # fmt: skip


def peaks(heatmap: Tensor, kernel_size: int, dataset: str | None) -> Tensor:
    """Sets all cells of a heatmap to zero that are not the maximum of their neighbourhood.

    Cells closer to the border than half a neighbourhood are never peaks. Point-like classes are not changed.

    Args:
        heatmap: Class scores [B, classes, x, y].
        kernel_size: Side length of the neighbourhood in cells, odd.
        dataset: Name of the dataset, which selects the point-like classes, or None.
    """
    margin = kernel_size // 2
    x, y = (slice(margin, size - margin) for size in heatmap.shape[-2:])
    peak = torch.zeros_like(heatmap, dtype=torch.bool)
    peak[..., x, y] = heatmap[..., x, y] == F.max_pool2d(heatmap, kernel_size, stride=1)
    peak[:, list(POINTLIKE[dataset])] = True
    return heatmap * peak


def suppress(boxes: Tensor, scores: Tensor, labels: Tensor, test_cfg: Mapping[str, Any]) -> Tensor:
    """Marks the detections of one sample that survive suppression within their class: bool [N].

    Args:
        boxes: Boxes [N, 7+], (x, y, z, l, w, h, yaw, ...) in metres and radians.
        scores: Scores [N].
        labels: Labels [N].
        test_cfg: ``nms_type`` (None keeps all), ``dataset``, and for ``'rotate'`` optionally ``pre_maxsize`` and
            ``post_maxsize``, the largest numbers of detections of a class before and after suppression.
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
    """Kept boxes by descending score: none is within a squared distance of `limit` of a kept box with a higher score.

    Calls mmdet3d's own function (numba compiles it at the first call, which takes seconds), because the order of equal
    scores depends on the sorting algorithm in it.
    """
    from mmdet3d.models.layers import circle_nms

    detections = torch.cat((boxes[:, :2], scores[:, None]), dim=1).detach().cpu().numpy()
    return torch.as_tensor(circle_nms(detections, limit, MOST_PER_CLASS), dtype=torch.int64, device=boxes.device)


def _rotate(boxes: Tensor, scores: Tensor, limit: float, test_cfg: Mapping[str, Any]) -> Tensor:
    """Kept boxes by descending score: none has a footprint IoU of `limit` or more with one of a higher score.

    Of equal scores the first wins. This is what mmcv 2.1's ``nms_rotated`` does on a CPU. Its CUDA kernel keeps a box
    with an IoU of exactly `limit`, as does ``nms`` for axis-aligned boxes on either device.
    """
    from mmcv.ops import nms_rotated

    order = scores.argsort(descending=True, stable=True)[: test_cfg.get('pre_maxsize')]
    places = torch.arange(len(order), 0, -1, dtype=boxes.dtype, device=boxes.device)  # mmcv sorts again, not stably
    kept = nms_rotated(boxes[order][:, [0, 1, 3, 4, 6]], places, limit)[1]
    return order[kept][: test_cfg.get('post_maxsize')]
