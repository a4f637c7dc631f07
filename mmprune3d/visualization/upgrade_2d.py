"""One image before and after key pruning, for detectors of boxes in images: what was removed when, and both boxes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from mmengine.structures import BaseDataElement
from torch import Tensor

from .drawing import Color, save_image
from .keys import KEPT, cells_of, removal_stages, stage_colors
from .legend import TRUTH, draw_legend
from .upgrade import LEAST_WIDTH, Boxes, Comparison, camera_images, draw_keys, join_nearest, label_image

OVERLAP = 0.5
"""Intersection over union from which on two boxes of a class are the same object."""


def found_boxes(sample: BaseDataElement, threshold: float) -> Boxes:
    """Predicted boxes [N, 4] (left, top, right, bottom in pixels of the original image) from a score on."""
    found = sample.pred_instances
    keep = (found.scores >= threshold).cpu().numpy()
    corners = getattr(found.bboxes, 'tensor', found.bboxes).cpu().numpy().reshape(-1, 4)
    return Boxes(corners[keep], found.labels.cpu().numpy()[keep])


def true_boxes(instances: Iterable[Mapping[str, Any]]) -> np.ndarray:
    """[N, 4] in pixels of the original image; crowds and what else is ignored are left out."""
    rows = [instance['bbox'] for instance in instances if 'bbox' in instance and not instance.get('ignore_flag')]
    return np.array(rows, float).reshape(-1, 4)


def match_boxes_2d(first: Boxes, second: Boxes, overlap: float = OVERLAP) -> tuple[np.ndarray, np.ndarray]:
    """Which boxes have a partner of their class in the other list; those that overlap most are joined first.

    Args:
        first: N boxes, see `found_boxes`.
        second: M boxes.
        overlap: Smallest intersection over union of partners.

    Returns:
        Masks [N] and [M].
    """
    a, b = first.corners[:, None].astype(float), second.corners[None].astype(float)
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    common = sides.clip(0).prod(-1)
    union = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1) - common
    distances = 1 - common / np.maximum(union, 1e-9)
    distances[(first.labels[:, None] != second.labels[None]) | (distances > 1 - overlap)] = np.inf
    return join_nearest(distances)


def draw_upgrade_2d(
    path: Path,
    inputs: Tensor,
    before: BaseDataElement,
    after: BaseDataElement,
    kept: list[Tensor],
    info: Mapping[str, Any] | None = None,
    threshold: float = 0.3,
) -> None:
    """Writes one picture: the image with both models' boxes, and what the colours mean.

    Args:
        path: File to write.
        inputs: [3, H, W], the un-normalised BGR image as the network gets it.
        before: Baseline prediction with `pred_instances`, whose boxes are in the original image.
        after: Prediction of the pruned model.
        kept: Per decoder layer, the original ids [K] of the keys it reads.
        info: The sample's info; its `instances` are drawn as annotated.
        threshold: Boxes below this score are left out.

    Raises:
        OSError: If the file cannot be written.
        ValueError: If the keys are not those of one feature map.
    """
    stages = removal_stages([ids.cpu().numpy() for ids in kept])
    first, last = found_boxes(before, threshold), found_boxes(after, threshold)
    boxes, truth = (
        Comparison(first, last, *match_boxes_2d(first, last)),
        true_boxes((info or {}).get('instances') or ()),
    )
    (image,) = camera_images(inputs[None])
    (cells,), side = cells_of(stages, 1, *after.get('batch_input_shape', image.shape[:2]))
    picture, scale = draw_keys(image, cells, stage_colors(stages), side, max(LEAST_WIDTH, image.shape[1]))
    # rows that pad the image have keys, but are not shown
    shown = cells[: -(-image.shape[0] // side), : -(-image.shape[1] // side)]
    zoom = scale * np.tile(np.asarray(after.get('scale_factor', (1.0, 1.0)), float)[:2], 2)
    _draw(picture, truth * zoom, TRUTH, 5)
    for part, color, thickness in boxes.layers():
        _draw(picture, part.corners * zoom, color, thickness)
    name = Path(after.get('img_path') or 'image').name
    label_image(picture, f'{name}: {100 * (shown == KEPT).mean():.0f} % of keys kept')
    legend = draw_legend(stages, boxes, len(truth) > 0, picture.shape[1])
    save_image(path, np.vstack([picture, legend]), quality=92)


def _draw(image: np.ndarray, boxes: np.ndarray, color: Color, thickness: int) -> None:
    for left, top, right, bottom in np.rint(boxes).astype(int).tolist():
        cv2.rectangle(image, (left, top), (right, bottom), color, thickness, cv2.LINE_AA)
