"""KITTI's average precision without CUDA.

mmdet3d's evaluation runs on the CPU except for the overlaps of rotated boxes: the module with them compiles kernels for
numba.cuda when it is imported, which raises ``CudaSupportError`` where there is no driver. Here the same evaluation
takes its overlaps from :mod:`mmprune3d.ops.rotated_iou`.

Annotations are those of mmdet3d: one dict per frame with arrays ``name`` [N], ``bbox`` [N, 4] in pixels, ``location``
[N, 3] (centre of the bottom face in the camera's frame: x right, y down, z forward), ``dimensions`` [N, 3] (l, h, w),
``rotation_y`` [N], ``alpha`` [N], ``truncated`` [N], ``occluded`` [N] and ``score`` [N].
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec, module_from_spec
from types import ModuleType

import numpy as np
import torch

from mmprune3d.ops.rotated_iou import rotated_iou_3d

CLASSES = ('Car', 'Pedestrian', 'Cyclist')
"""The classes for which KITTI defines which objects are ignored."""

EVAL_TYPES = ('bbox', 'bev', '3d')
SOURCE = 'mmdet3d.evaluation.functional.kitti_utils.eval'


def camera_iou_bev(boxes1: np.ndarray, boxes2: np.ndarray, criterion: int = -1) -> np.ndarray:
    """Intersection over union of footprints of boxes [N, 5] and [M, 5] in the camera's frame: [N, M] float32.

    A row is (x, z, l, w, rotation_y), where rotation_y turns clockwise from x to z. A box with a side that is not
    positive has no overlap with any box.

    Raises:
        ValueError: If `criterion` is not -1 (overlap divided by the union).
    """
    # Both become 3D boxes on one plane, one metre high.
    first, second = (np.insert(boxes, [2, 4], [0, 1], axis=1) for boxes in (boxes1, boxes2))
    return _iou(first, second, criterion)


def camera_iou_3d(boxes1: np.ndarray, boxes2: np.ndarray, criterion: int = -1) -> np.ndarray:
    """Intersection over union of volumes of boxes [N, 7] and [M, 7] in the camera's frame: [N, M] float32.

    A row is (x, y, z, l, h, w, rotation_y), where y, which points down, is that of the bottom face.

    Raises:
        ValueError: If `criterion` is not -1 (overlap divided by the union).
    """
    upright = [(boxes * [1, -1, 1, 1, 1, 1, 1])[:, [0, 2, 1, 3, 5, 4, 6]] for boxes in (boxes1, boxes2)]
    return _iou(*upright, criterion)


def _iou(boxes1: np.ndarray, boxes2: np.ndarray, criterion: int) -> np.ndarray:
    """Intersections over union of boxes (x, forward, up, l, w, h, yaw clockwise)."""
    if criterion != -1:
        raise ValueError(f'criterion={criterion}; valid is -1 (over the union)')
    turned = (torch.from_numpy(boxes * [1, 1, 1, 1, 1, 1, -1]) for boxes in (boxes1, boxes2))
    return rotated_iou_3d(*turned).numpy()


@cache
def _evaluation() -> ModuleType:
    """A private copy of mmdet3d's evaluation module in which our overlaps replace the functions for CUDA.

    Its functions look up names in the copy, so the original module is not changed for other users.
    """
    spec = find_spec(SOURCE)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    # Frames are processed one by one: overlaps between frames are never used, and with some numbers of frames (398,
    # 796, ...) mmdet3d gets an empty part, which it cannot concatenate.
    replaced = {
        'bev_box_overlap': camera_iou_bev,
        'd3_box_overlap': camera_iou_3d,
        'get_split_parts': lambda frames, parts: [1] * frames,
    }
    missing = [name for name in replaced if not hasattr(module, name)]
    if missing:
        raise RuntimeError(f'{SOURCE} has no {", ".join(missing)}; mmprune3d supports the version of mmdet3d 1.4')
    vars(module).update(replaced)
    return module


def kitti_average_precision(
    gt_annos: Sequence[dict[str, np.ndarray]],
    dt_annos: Sequence[dict[str, np.ndarray]],
    classes: Sequence[str],
    eval_types: Sequence[str] = EVAL_TYPES,
) -> tuple[str, dict[str, float]]:
    """Computes average precision with 11 and 40 recall positions (easy, moderate, hard), as mmdet3d's ``kitti_eval``.

    Args:
        gt_annos: Ground truth of each frame, with ``DontCare`` regions.
        dt_annos: Detections of the same frames.
        classes: One or more of Car, Pedestrian, Cyclist.
        eval_types: One or more of bbox (image), bev (footprint) and 3d. With bbox, and if ground truth and detections
            have alpha, the table also has the average orientation similarity (aos).

    Returns:
        The table as text, and percentages by names such as ``KITTI/Car_3D_AP40_moderate_strict``. The value of a class
        without ground truth is 0.

    Raises:
        ValueError: If the numbers of frames differ, no frame has an object, or a class or type is unknown.
    """
    for wanted, valid, what in ((classes, CLASSES, 'classes'), (eval_types, EVAL_TYPES, 'eval_types')):
        if not wanted or set(wanted) - set(valid):
            raise ValueError(f'{what}={list(wanted)}; valid are one or more of {", ".join(valid)}')
    if len(gt_annos) != len(dt_annos):
        raise ValueError(f'{len(gt_annos)} frames of ground truth but {len(dt_annos)} of detections')
    if not any(len(anno['name']) for anno in gt_annos):
        raise ValueError(f'none of the {len(gt_annos)} frames has an annotation, so there is nothing to evaluate')
    ground_truth = [_as_float64(anno) if len(anno['name']) else _nothing(anno) for anno in gt_annos]
    detections = [_as_float64(anno) for anno in dt_annos]
    if 'bbox' not in eval_types:
        # Orientations are evaluated together with image boxes; mmdet3d fails on detections with alpha but without them.
        detections = [{**anno, 'alpha': np.full_like(anno['alpha'], -10.0)} for anno in detections]
    return _evaluation().kitti_eval(ground_truth, detections, list(classes), eval_types=list(eval_types))


def _as_float64(anno: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Converts all numbers to one precision, so that the evaluation is compiled only once."""
    return {key: value if key == 'name' else np.asarray(value, np.float64) for key, value in anno.items()}


def _nothing(anno: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """One row of no class, which is never counted, for an empty frame: mmdet3d reads the first alpha of every frame."""
    row = {key: np.zeros((1, *np.shape(value)[1:])) for key, value in anno.items()}
    return {**row, 'name': np.array(['']), 'alpha': np.array([-10.0])}
