"""One sample before and after key pruning: cameras with the keys that each layer still reads, and the boxes found."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from mmengine.structures import BaseDataElement
from torch import Tensor

from .drawing import (
    CLASS_COLORS,
    Color,
    bird_eye_canvas,
    box_corners,
    draw_boxes,
    draw_boxes_from_above,
    mosaic,
)

REMOVED = np.array((18, 14, 40), np.uint8)
CAMERAS = ('CAM_FRONT', 'CAM_FRONT_RIGHT', 'CAM_FRONT_LEFT', 'CAM_BACK', 'CAM_BACK_LEFT', 'CAM_BACK_RIGHT')
"""Order of the cameras in mmdet3d's nuScenes info files, and so of images and keys in a batch."""
FALLBACK: Color = (255, 255, 255)


def camera_images(inputs: Tensor) -> list[np.ndarray]:
    """RGB images from the un-normalised BGR tensor [N, 3, H, W] that a dataset yields."""
    images = inputs.float().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()
    return [np.ascontiguousarray(image[..., ::-1]) for image in images]


def shade_removed(images: list[np.ndarray], kept: np.ndarray, stride: int) -> list[np.ndarray]:
    """Copies of the images in which cells whose key was removed are dark.

    Args:
        images: N images [H, W, 3].
        kept: Ids of the keys that stayed; key = image * rows * cols + row * cols + col.
        stride: Pixels per cell.
    """
    rows, cols = (-(-size // stride) for size in images[0].shape[:2])
    alive = np.zeros(len(images) * rows * cols, bool)
    alive[kept] = True
    shaded = []
    for image, cells in zip(images, alive.reshape(len(images), rows, cols), strict=True):
        mask = np.kron(cells, np.ones((stride, stride), bool))[: image.shape[0], : image.shape[1]]
        shaded.append(np.where(mask[..., None], image, image // 6 + REMOVED))
    return shaded


def titled(image: np.ndarray, text: str) -> np.ndarray:
    """`image` under a strip with a line of text."""
    strip = np.full((28, image.shape[1], 3), 20, np.uint8)
    cv2.putText(strip, text, (8, 20), cv2.FONT_HERSHEY_SIMPLEX, 0.55, (235, 235, 235), 1, cv2.LINE_AA)
    return np.vstack([strip, image])


def _confident(sample: BaseDataElement, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    found = sample.pred_instances_3d
    keep = found.scores_3d >= threshold
    return found.bboxes_3d.tensor[keep.cpu()].cpu().numpy(), found.labels_3d[keep].cpu().numpy()


def _with_boxes(
    images: list[np.ndarray], sample: BaseDataElement, classes: list[str], threshold: float
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    boxes, labels = _confident(sample, threshold)
    corners, colors = box_corners(boxes), [CLASS_COLORS.get(classes[label], FALLBACK) for label in labels]
    drawn = {}
    metas = zip(CAMERAS, images, sample.cam2img, sample.lidar2cam, strict=True)
    for name, image, cam2img, lidar2cam in metas:
        intrinsic = np.eye(4)
        cam2img = np.asarray(cam2img)
        intrinsic[: cam2img.shape[0], : cam2img.shape[1]] = cam2img
        drawn[name] = image.copy()
        draw_boxes(drawn[name], corners, intrinsic @ np.asarray(lidar2cam), colors)
    canvas = bird_eye_canvas(480, 55.0)
    draw_boxes_from_above(canvas, corners, 55.0, colors)
    return drawn, canvas


def draw_upgrade(
    path: Path,
    inputs: Tensor,
    before: BaseDataElement,
    after: BaseDataElement,
    kept: list[Tensor],
    classes: list[str],
    threshold: float = 0.3,
) -> None:
    """Writes one picture: boxes of the baseline, then the surviving keys of every stage, then the boxes after pruning.

    Args:
        path: File to write.
        inputs: [N, 3, H, W], un-normalised BGR images of the sample.
        before: Baseline prediction with `pred_instances_3d`, `cam2img`, `lidar2cam`.
        after: Prediction of the pruned model.
        kept: Per decoder layer, the original ids [K] of the keys it reads.
        classes: Class names by label.
        threshold: Boxes below this score are left out.
    """
    images = camera_images(inputs)
    stride = round((images[0].shape[0] * images[0].shape[1] * len(images) / len(kept[0])) ** 0.5)
    first, canvas_before = _with_boxes(images, before, classes, threshold)
    last, canvas_after = _with_boxes(images, after, classes, threshold)
    panels = [titled(mosaic(first), f'baseline: {len(kept[0])} keys in every layer')]
    stages = [layer for layer in range(1, len(kept)) if len(kept[layer]) < len(kept[layer - 1])]
    for layer in stages:
        shaded = shade_removed(images, kept[layer].cpu().numpy(), stride)
        title = f'{len(kept[layer])} keys from layer {layer + 1} on'
        panels.append(titled(mosaic(dict(zip(CAMERAS, shaded, strict=True))), title))
    panels.append(titled(mosaic(last), 'pruned'))
    left = np.vstack(panels)
    above = [titled(canvas_before, 'baseline, from above'), titled(canvas_after, 'pruned, from above')]
    write_columns(path, left, np.vstack(above))


def write_columns(path: Path, *columns: np.ndarray) -> None:
    """Writes RGB columns side by side, padded to equal height, as one file."""
    height = max(len(column) for column in columns)
    padded = [np.pad(column, ((0, height - len(column)), (0, 0), (0, 0)), constant_values=20) for column in columns]
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.hstack(padded)[..., ::-1])
