"""Functions that draw boxes on camera images and from above; images are uint8 RGB arrays, modified in place."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from mmprune3d.files import write_image

Color = tuple[int, int, int]

CLASS_COLORS: dict[str, Color] = {
    'car': (66, 135, 245),
    'truck': (245, 158, 66),
    'construction_vehicle': (214, 189, 36),
    'bus': (233, 84, 84),
    'trailer': (168, 108, 62),
    'barrier': (150, 150, 150),
    'motorcycle': (214, 66, 245),
    'bicycle': (66, 233, 200),
    'pedestrian': (94, 220, 80),
    'traffic_cone': (255, 110, 180),
}
"""RGB of each nuScenes detection class."""

BACKGROUND: Color = (24, 24, 24)
NEAR_PLANE = 0.2
EDGES = ((0, 1), (1, 2), (2, 3), (3, 0), (4, 5), (5, 6), (6, 7), (7, 4), (0, 4), (1, 5), (2, 6), (3, 7))


def box_corners(boxes: np.ndarray) -> np.ndarray:
    """Computes the corners of boxes.

    Args:
        boxes: Boxes [N, >=7]: x, y, z (bottom centre), length, width, height, yaw; metres and radians.

    Returns:
        Corners [N, 8, 3]: the bottom face counter-clockwise from the front left corner, then the top face likewise.
    """
    footprint = np.array([(0.5, 0.5), (-0.5, 0.5), (-0.5, -0.5), (0.5, -0.5)])
    x, y = footprint[:, 0] * boxes[:, 3:4], footprint[:, 1] * boxes[:, 4:5]
    cos, sin = np.cos(boxes[:, 6:7]), np.sin(boxes[:, 6:7])
    ground = np.stack([boxes[:, 0:1] + cos * x - sin * y, boxes[:, 1:2] + sin * x + cos * y], -1)
    corners = np.empty((len(boxes), 8, 3))
    corners[:, :4, :2] = corners[:, 4:, :2] = ground
    corners[:, :4, 2] = boxes[:, 2:3]
    corners[:, 4:, 2] = boxes[:, 2:3] + boxes[:, 5:6]
    return corners


def draw_boxes(
    image: np.ndarray, corners: np.ndarray, projection: np.ndarray, colors: list[Color], width: int = 1
) -> None:
    """Draws wire frames of boxes on one camera image; edges are cut where they pass behind the camera.

    Args:
        image: Image [H, W, 3].
        corners: Corners [N, 8, 3] in the source frame of `projection`.
        projection: Matrix [4, 4] to pixels times depth.
        colors: Colour of each box.
        width: Line width in pixels.
    """
    height, columns = image.shape[:2]
    for box, color in zip(corners, colors, strict=True):
        points = np.c_[box, np.ones(8)] @ projection.T
        for a, b in EDGES:
            edge = _clip_near(points[a, :3], points[b, :3])
            if edge is None:
                continue
            start, end = (np.rint(point[:2] / point[2]).clip(-1e5, 1e5).astype(int) for point in edge)
            inside, start, end = cv2.clipLine((0, 0, columns, height), tuple(map(int, start)), tuple(map(int, end)))
            if inside:
                cv2.line(image, start, end, color, width, cv2.LINE_AA)


def _clip_near(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    if a[2] < NEAR_PLANE and b[2] < NEAR_PLANE:
        return None
    if a[2] < NEAR_PLANE:
        a = b + (a - b) * (b[2] - NEAR_PLANE) / (b[2] - a[2])
    elif b[2] < NEAR_PLANE:
        b = a + (b - a) * (a[2] - NEAR_PLANE) / (a[2] - b[2])
    return a, b


def bird_eye_canvas(size: int, reach: float, step: float = 10.0) -> np.ndarray:
    """A dark square of `size` pixels that shows `reach` metres to each side, with rings every `step` metres."""
    canvas = np.full((size, size, 3), BACKGROUND, np.uint8)
    center = (size // 2, size // 2)
    for radius in np.arange(step, reach * 1.5, step):
        cv2.circle(canvas, center, round(radius * size / (2 * reach)), (52, 52, 52), 1, cv2.LINE_AA)
    return canvas


def to_canvas(xy: np.ndarray, size: int, reach: float) -> np.ndarray:
    """Converts points [..., 2] in metres to pixels (column, row); x points to the right of the canvas, y up."""
    scale = size / (2 * reach)
    return np.stack([size / 2 + xy[..., 0] * scale, size / 2 - xy[..., 1] * scale], -1)


def draw_boxes_from_above(
    canvas: np.ndarray, corners: np.ndarray, reach: float, colors: list[Color], width: int = 1
) -> None:
    """Draws footprints of boxes with a tick that shows the front."""
    for box, color in zip(corners, colors, strict=True):
        outline = to_canvas(box[:4, :2], len(canvas), reach)
        front = (outline[0] + outline[3]) / 2
        cv2.polylines(canvas, [np.rint(outline).astype(np.int32)], True, color, width, cv2.LINE_AA)
        tick = np.rint(np.stack([outline.mean(0), front])).astype(np.int32)
        cv2.polylines(canvas, [tick], False, color, width, cv2.LINE_AA)


def save_image(path: Path, image: np.ndarray, quality: int) -> None:
    """Writes an RGB image to a file, completely or not at all.

    Args:
        path: File to write; its suffix selects the format.
        image: Image [H, W, 3] uint8.
        quality: Quality of a JPEG, up to 100.

    Raises:
        OSError: If the file cannot be written.
        ValueError: If the suffix is not that of an image format.
    """
    write_image(path, np.ascontiguousarray(image[..., ::-1]), quality)
