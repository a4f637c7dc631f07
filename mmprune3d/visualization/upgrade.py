"""One sample before and after key pruning: cameras with what was removed when, and both models' boxes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from mmengine.structures import BaseDataElement
from torch import Tensor

from .cameras import camera_names, columns_of, mosaic
from .contact_sheet import EGO_BOX
from .drawing import (
    BACKGROUND,
    Color,
    bird_eye_canvas,
    box_corners,
    draw_boxes,
    draw_boxes_from_above,
    save_image,
    to_canvas,
)
from .keys import KEPT, cells_of, removal_stages, stage_colors, tint_removed
from .legend import AFTER, BEFORE, LOST, NEW, TEXT, TRUTH, draw_legend

CAMERA_WIDTH = 640
"""Pixels that a camera is wide in the picture; one alone or two are wider, so that there is room for the legend."""
LEAST_WIDTH = 1280
"""Pixels that all cameras together are wide, at least."""
REACH = 55.0
"""Metres that the view from above shows to each side."""
NEAR = 2.0
"""Metres on the ground within which two boxes of a class are the same object."""


class Boxes(NamedTuple):
    """Confident boxes of a prediction, or annotated ones.

    Attributes:
        corners: [N, 8, 3], see `box_corners`.
        labels: [N].
    """

    corners: np.ndarray
    labels: np.ndarray

    @property
    def centers(self) -> np.ndarray:
        """[N, 2] on the ground."""
        return self.corners[:, :4, :2].mean(1)

    def where(self, keep: np.ndarray) -> Boxes:
        """Those of a mask [N]."""
        return Boxes(self.corners[keep], self.labels[keep])


def camera_images(inputs: Tensor) -> list[np.ndarray]:
    """RGB images from the un-normalised BGR tensor [N, 3, H, W] that a dataset yields."""
    images = inputs.float().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()
    return [np.ascontiguousarray(image[..., ::-1]) for image in images]


def confident_boxes(sample: BaseDataElement, threshold: float) -> Boxes:
    """Predicted boxes with a score from `threshold` on."""
    found = sample.pred_instances_3d
    keep = found.scores_3d >= threshold
    return Boxes(box_corners(found.bboxes_3d.tensor[keep.cpu()].cpu().numpy()), found.labels_3d[keep].cpu().numpy())


def annotated_boxes(sample: BaseDataElement) -> Boxes | None:
    """Ground truth that the dataset put into the sample for evaluation, if it did."""
    truth = sample.get('eval_ann_info')
    if not truth:
        return None
    return Boxes(box_corners(truth['gt_bboxes_3d'].tensor.cpu().numpy()), np.asarray(truth['gt_labels_3d']))


def match_boxes(first: Boxes, second: Boxes, within: float = NEAR) -> tuple[np.ndarray, np.ndarray]:
    """Which boxes have a partner of their class in the other list; the nearest pairs are joined first.

    Args:
        first: N boxes.
        second: M boxes.
        within: Largest distance of centres on the ground, metres.

    Returns:
        Masks [N] and [M].
    """
    distances = np.linalg.norm(first.centers[:, None] - second.centers[None], axis=-1)
    distances[(first.labels[:, None] != second.labels[None]) | (distances > within)] = np.inf
    return join_nearest(distances)


def join_nearest(distances: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which rows and columns of distances [N, M] find a partner; nearest pairs are joined first, infinite never."""
    distances = distances.copy()
    has_first, has_second = (np.zeros(size, bool) for size in distances.shape)
    while distances.size and np.isfinite(distances.min()):
        row, col = np.unravel_index(distances.argmin(), distances.shape)
        has_first[row] = has_second[col] = True
        distances[row], distances[:, col] = np.inf, np.inf
    return has_first, has_second


class Comparison(NamedTuple):
    """Boxes of both models, and which of them have a partner.

    Attributes:
        before: Of the baseline.
        after: Of the pruned model.
        found_again: [N], whether a box of `before` has a partner in `after`.
        known: [M], whether a box of `after` has a partner in `before`.
    """

    before: Boxes
    after: Boxes
    found_again: np.ndarray
    known: np.ndarray

    def layers(self) -> list[tuple[Boxes, Color, int]]:
        """Boxes with colour and line width, in the order of drawing: thin ones last, so that they stay visible."""
        return [
            (self.after.where(self.known), AFTER, 3),
            (self.after.where(~self.known), NEW, 3),
            (self.before.where(self.found_again), BEFORE, 1),
            (self.before.where(~self.found_again), LOST, 1),
        ]


def projections(sample: BaseDataElement, count: int) -> list[np.ndarray]:
    """From the LiDAR's frame to pixels of each image times depth, [4, 4].

    Args:
        sample: Has `cam2img` and `lidar2cam`, or `lidar2img`.
        count: How many images there are.

    Raises:
        ValueError: If it has neither for each image.
    """
    found = [np.asarray(sample.get(name)) for name in ('cam2img', 'lidar2cam', 'lidar2img')]
    fits = [matrix.ndim == 3 and len(matrix) == count for matrix in found]
    if fits[0] and fits[1]:
        intrinsics = np.tile(np.eye(4), (count, 1, 1))
        intrinsics[:, : found[0].shape[1], : found[0].shape[2]] = found[0]
        return list(intrinsics @ found[1])
    if fits[2]:
        return list(found[2])
    raise ValueError(f'the data sample has neither cam2img and lidar2cam nor lidar2img for its {count} images')


def draw_cameras(
    images: list[np.ndarray],
    sample: BaseDataElement,
    names: list[str],
    stages: np.ndarray,
    boxes: Comparison,
    width: int = CAMERA_WIDTH,
) -> np.ndarray:
    """All cameras, with removed keys tinted and the boxes of both models.

    Args:
        images: RGB.
        sample: Says where the cameras are, see `projections`.
        names: Of the cameras.
        stages: [N_k], see `removal_stages`.
        boxes: What to draw.
        width: Pixels that each camera is wide in the picture, if there are several side by side.
    """
    seen = sample.get('batch_input_shape', images[0].shape[:2])
    width = max(width, -(-LEAST_WIDTH // columns_of(len(images))))
    (cells, side), colors, drawn = cells_of(stages, len(images), *seen), stage_colors(stages), {}
    for name, image, cell, matrix in zip(names, images, cells, projections(sample, len(images)), strict=True):
        drawn[name], scale = draw_keys(image, cell, colors, side, width)
        projection = np.diag([scale, scale, 1.0, 1.0]) @ matrix
        for part, color, thickness in boxes.layers():
            draw_boxes(drawn[name], part.corners, projection, [color] * len(part.labels), thickness)
        label_image(drawn[name], f'{name}: {100 * (cell == KEPT).mean():.0f} % of keys kept')
        drawn[name][:, -1] = drawn[name][-1] = BACKGROUND
    return mosaic(drawn)


def draw_keys(
    image: np.ndarray, cells: np.ndarray, colors: dict[int, Color], side: int, width: int
) -> tuple[np.ndarray, float]:
    """An image of `width` pixels with removed keys tinted, and how much larger it is; see `keys.tint_removed`."""
    scale = width / image.shape[1]
    size = (width, round(scale * image.shape[0]))
    resized = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    return tint_removed(resized, cells, colors, scale * side), scale


def draw_from_above(boxes: Comparison, truth: Boxes | None, size: int) -> np.ndarray:
    """Boxes of both models from above, over the ground truth; what has no partner is filled.

    Args:
        boxes: What to draw.
        truth: Drawn as grey areas, or None.
        size: Pixels.
    """
    canvas = bird_eye_canvas(size, REACH)
    if truth is not None:
        _fill(canvas, truth, TRUTH, 1.0)
    for part, color, thickness in boxes.layers():
        if color in (LOST, NEW):
            _fill(canvas, part, color, 0.45)
        draw_boxes_from_above(canvas, part.corners, REACH, [color] * len(part.labels), min(thickness, 2))
    draw_boxes_from_above(canvas, box_corners(EGO_BOX), REACH, [(150, 150, 150)])
    label_image(canvas, 'from above, 10 m between rings')
    return canvas


def _fill(canvas: np.ndarray, boxes: Boxes, color: Color, opacity: float) -> None:
    layer = canvas.copy()
    outlines = to_canvas(boxes.corners[:, :4, :2], len(canvas), REACH)
    for outline in np.rint(outlines).astype(np.int32):
        cv2.fillPoly(layer, [outline], color, cv2.LINE_AA)
    cv2.addWeighted(layer, opacity, canvas, 1 - opacity, 0, dst=canvas)


def label_image(image: np.ndarray, text: str) -> None:
    """Writes `text` into the upper left corner."""
    for color, thickness in (((0, 0, 0), 3), (TEXT, 1)):
        cv2.putText(image, text, (8, 20), cv2.FONT_HERSHEY_SIMPLEX, 0.5, color, thickness, cv2.LINE_AA)


def draw_upgrade(
    path: Path,
    inputs: Tensor,
    before: BaseDataElement,
    after: BaseDataElement,
    kept: list[Tensor],
    images: Mapping[str, Mapping[str, Any]] | None = None,
    threshold: float = 0.3,
) -> None:
    """Writes one picture: the cameras, the scene from above, and what the colours mean.

    Args:
        path: File to write.
        inputs: [N, 3, H, W], un-normalised BGR images of the sample.
        before: Baseline prediction with `pred_instances_3d`, and where the cameras are (see `projections`).
        after: Prediction of the pruned model.
        kept: Per decoder layer, the original ids [K] of the keys it reads.
        images: Of the sample's info, for the names of the cameras.
        threshold: Boxes below this score are left out.

    Raises:
        OSError: If the file cannot be written.
        ValueError: If keys or cameras are not known well enough to draw them.
    """
    stages = removal_stages([ids.cpu().numpy() for ids in kept])
    first, last = confident_boxes(before, threshold), confident_boxes(after, threshold)
    boxes, truth = Comparison(first, last, *match_boxes(first, last)), annotated_boxes(after)
    names = camera_names(after.metainfo, images or {}, len(inputs))
    cameras = draw_cameras(camera_images(inputs), after, names, stages, boxes)
    left = np.vstack([cameras, draw_legend(stages, boxes, truth is not None, cameras.shape[1])])
    save_image(path, np.hstack([left, draw_from_above(boxes, truth, len(left))]), quality=92)
