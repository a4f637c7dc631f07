"""One sample before and after key pruning: cameras with what was removed when, and both models' boxes."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from mmengine.structures import BaseDataElement
from torch import Tensor

from mmprune3d.files import write_image

from .contact_sheet import BACKGROUND, EGO_BOX
from .drawing import Color, bird_eye_canvas, box_corners, draw_boxes, draw_boxes_from_above, mosaic, to_canvas
from .keys import KEPT, cells_of, removal_stages, stage_colors, tint_removed

CAMERAS = ('CAM_FRONT', 'CAM_FRONT_RIGHT', 'CAM_FRONT_LEFT', 'CAM_BACK', 'CAM_BACK_LEFT', 'CAM_BACK_RIGHT')
"""Order of the cameras in mmdet3d's nuScenes info files, and so of images and keys in a batch."""
CAMERA_WIDTH = 640
REACH = 55.0
"""Metres that the view from above shows to each side."""
NEAR = 2.0
"""Metres on the ground within which two boxes of a class are the same object."""
BEFORE: Color = (255, 255, 255)
AFTER: Color = (255, 190, 0)
LOST: Color = (255, 70, 70)
NEW: Color = (70, 230, 120)
TRUTH: Color = (78, 78, 84)
TEXT: Color = (235, 235, 235)
LEGEND_HEIGHT = 64


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
    has_first, has_second = np.zeros(len(first.labels), bool), np.zeros(len(second.labels), bool)
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


def draw_cameras(
    images: list[np.ndarray], sample: BaseDataElement, stages: np.ndarray, boxes: Comparison, width: int = CAMERA_WIDTH
) -> np.ndarray:
    """All cameras, with removed keys tinted and the boxes of both models.

    Args:
        images: RGB.
        sample: Has `cam2img` and `lidar2cam`.
        stages: [N_k], see `removal_stages`.
        boxes: What to draw.
        width: Pixels that each camera is wide in the picture.
    """
    seen = sample.get('batch_input_shape', images[0].shape[:2])
    (cells, side), colors, drawn = cells_of(stages, len(images), *seen), stage_colors(stages), {}
    for name, image, cell, cam2img, lidar2cam in zip(
        CAMERAS, images, cells, sample.cam2img, sample.lidar2cam, strict=True
    ):
        scale, intrinsic, cam2img = width / image.shape[1], np.eye(4), np.asarray(cam2img)
        size = (width, round(scale * image.shape[0]))
        resized = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
        drawn[name] = tint_removed(resized, cell, colors, scale * side)
        intrinsic[: cam2img.shape[0], : cam2img.shape[1]] = cam2img
        projection = np.diag([scale, scale, 1.0, 1.0]) @ intrinsic @ np.asarray(lidar2cam)
        for part, color, thickness in boxes.layers():
            draw_boxes(drawn[name], part.corners, projection, [color] * len(part.labels), thickness)
        _label(drawn[name], f'{name}: {100 * (cell == KEPT).mean():.0f} % of keys kept')
        drawn[name][:, -1] = drawn[name][-1] = BACKGROUND
    return mosaic(drawn)


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
    _label(canvas, 'from above, 10 m between rings')
    return canvas


def _fill(canvas: np.ndarray, boxes: Boxes, color: Color, opacity: float) -> None:
    layer = canvas.copy()
    outlines = to_canvas(boxes.corners[:, :4, :2], len(canvas), REACH)
    for outline in np.rint(outlines).astype(np.int32):
        cv2.fillPoly(layer, [outline], color, cv2.LINE_AA)
    cv2.addWeighted(layer, opacity, canvas, 1 - opacity, 0, dst=canvas)


def _label(image: np.ndarray, text: str) -> None:
    for color, thickness in (((0, 0, 0), 3), (TEXT, 1)):
        cv2.putText(image, text, (8, 20), cv2.FONT_HERSHEY_SIMPLEX, 0.5, color, thickness, cv2.LINE_AA)


def draw_legend(stages: np.ndarray, boxes: Comparison, has_truth: bool, width: int) -> np.ndarray:
    """Two lines: what the colours of cells mean, and those of boxes."""
    band, total = np.full((LEGEND_HEIGHT, width, 3), BACKGROUND, np.uint8), len(stages)
    cells = [(None, f'{total} keys:')]
    for stage, color in stage_colors(stages).items():
        cells.append((color, f'{(stages == stage).sum()} removed after layer {stage}'))
    cells.append((None, f'{(stages == KEPT).sum()} kept (image as it is)'))
    lines = [
        (AFTER, f'pruned ({len(boxes.after.labels)})'),
        (BEFORE, f'baseline ({len(boxes.before.labels)})'),
        (LOST, f'in the baseline only ({(~boxes.found_again).sum()})'),
        (NEW, f'in the pruned model only ({(~boxes.known).sum()})'),
    ]
    if has_truth:
        lines.append((TRUTH, 'annotated'))
    _legend_line(band, 22, cells)
    _legend_line(band, 50, [(None, 'boxes:'), *lines])
    return band


def _legend_line(band: np.ndarray, base: int, entries: list[tuple[Color | None, str]]) -> None:
    left = 10
    for color, text in entries:
        if color is not None:
            cv2.rectangle(band, (left, base - 12), (left + 18, base + 2), color, -1)
            cv2.rectangle(band, (left, base - 12), (left + 18, base + 2), (120, 120, 120), 1)
            left += 26
        cv2.putText(band, text, (left, base), cv2.FONT_HERSHEY_SIMPLEX, 0.5, TEXT, 1, cv2.LINE_AA)
        left += cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 0.5, 1)[0][0] + 28


def draw_upgrade(
    path: Path,
    inputs: Tensor,
    before: BaseDataElement,
    after: BaseDataElement,
    kept: list[Tensor],
    threshold: float = 0.3,
) -> None:
    """Writes one picture: the cameras, the scene from above, and what the colours mean.

    Args:
        path: File to write.
        inputs: [N, 3, H, W], un-normalised BGR images of the sample.
        before: Baseline prediction with `pred_instances_3d`, `cam2img`, `lidar2cam`.
        after: Prediction of the pruned model.
        kept: Per decoder layer, the original ids [K] of the keys it reads.
        threshold: Boxes below this score are left out.

    Raises:
        OSError: If the file cannot be written.
    """
    stages = removal_stages([ids.cpu().numpy() for ids in kept])
    first, last = confident_boxes(before, threshold), confident_boxes(after, threshold)
    boxes, truth = Comparison(first, last, *match_boxes(first, last)), annotated_boxes(after)
    cameras = draw_cameras(camera_images(inputs), after, stages, boxes)
    left = np.vstack([cameras, draw_legend(stages, boxes, truth is not None, cameras.shape[1])])
    picture = np.hstack([left, draw_from_above(boxes, truth, len(left))])
    write_image(path, np.ascontiguousarray(picture[..., ::-1]), jpeg_quality=92)
