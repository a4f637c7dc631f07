"""Contact sheets of nuScenes-format data: the cameras with boxes, and the point clouds from above, sample by sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from .cameras import mosaic
from .drawing import (
    BACKGROUND,
    CLASS_COLORS,
    bird_eye_canvas,
    box_corners,
    draw_boxes,
    draw_boxes_from_above,
    save_image,
    to_canvas,
)

if TYPE_CHECKING:
    from nuscenes.nuscenes import NuScenes

CAMERA_WIDTH = 560
ENTRY_WIDTH = 176
"""Width in pixels of one class in the legend."""
REACH = 50.0
"""Distance in metres that the view from above shows to each side."""
EGO_BOX = np.array([[0.0, 0.4, -1.84, 4.1, 1.75, 1.6, np.pi / 2]])
"""The recording car in the LiDAR frame, as [x, y, z, length, width, height, yaw]."""


@dataclass(frozen=True)
class SampleView:
    """The data of one sample that are needed to draw it.

    Attributes:
        title: Title, one line of text.
        images: Camera channel -> image [H, W, 3] RGB.
        projections: Camera channel -> matrix [4, 4], from the LiDAR frame to pixels times depth.
        points: LiDAR points [N, 3] in the LiDAR frame (x right, y forward).
        radar: Radar points [M, 3] in the LiDAR frame.
        boxes: Boxes [K, 7]: x, y, z of the bottom's centre, length, width, height, yaw in the LiDAR frame.
        labels: Detection class of each box.
    """

    title: str
    images: dict[str, np.ndarray]
    projections: dict[str, np.ndarray]
    points: np.ndarray
    radar: np.ndarray
    boxes: np.ndarray
    labels: tuple[str, ...]


def load_view(nusc: NuScenes, index: int) -> SampleView:
    """Reads a sample with the nuScenes devkit.

    Args:
        nusc: The data set.
        index: Position in `nusc.sample`.

    Returns:
        The sample, with the annotated objects of the ten detection classes that the LiDAR hit.
    """
    sample = nusc.sample[index]
    scene = nusc.get('scene', sample['scene_token'])
    from_lidar = _sensor_to_global(nusc, sample['data']['LIDAR_TOP'])
    images, projections, radar = {}, {}, [np.zeros((0, 3))]
    for channel, token in sample['data'].items():
        data, pose = nusc.get('sample_data', token), np.linalg.inv(_sensor_to_global(nusc, token)) @ from_lidar
        if data['sensor_modality'] == 'camera':
            images[channel] = _read(nusc.get_sample_data_path(token))
            intrinsic = nusc.get('calibrated_sensor', data['calibrated_sensor_token'])['camera_intrinsic']
            projections[channel] = np.eye(4)
            projections[channel][:3, :3] = intrinsic
            projections[channel] = projections[channel] @ pose
        elif data['sensor_modality'] == 'radar':
            radar.append(_move(np.linalg.inv(pose), _radar_points(nusc.get_sample_data_path(token))))
    points = np.fromfile(nusc.get_sample_data_path(sample['data']['LIDAR_TOP']), np.float32).reshape(-1, 5)[:, :3]
    boxes, labels = _boxes(nusc, sample)
    title = (
        f'{scene["name"]}, sample {index}: {len(labels)} objects, {len(points)} LiDAR points. {scene["description"]}'
    )
    return SampleView(title, images, projections, points, np.concatenate(radar), boxes, labels)


def _sensor_to_global(nusc: NuScenes, token: str) -> np.ndarray:
    """Transform [4, 4] from the sensor of one recording to the global frame."""
    from nuscenes.utils.geometry_utils import transform_matrix
    from pyquaternion import Quaternion

    data = nusc.get('sample_data', token)
    steps = [nusc.get(table, data[f'{table}_token']) for table in ('ego_pose', 'calibrated_sensor')]
    ego, sensor = (transform_matrix(step['translation'], Quaternion(step['rotation'])) for step in steps)
    return ego @ sensor


def _read(path: str) -> np.ndarray:
    image = cv2.imread(path)
    if image is None:
        raise FileNotFoundError(f'{path} does not exist or is not an image')
    return image[..., ::-1]


def _move(pose: np.ndarray, points: np.ndarray) -> np.ndarray:
    return points @ pose[:3, :3].T + pose[:3, 3]


def _radar_points(path: str) -> np.ndarray:
    from nuscenes.utils.data_classes import RadarPointCloud

    return RadarPointCloud.from_file(path).points[:3].T


def _boxes(nusc: NuScenes, sample: dict) -> tuple[np.ndarray, tuple[str, ...]]:
    """Boxes in the LiDAR frame and their detection classes."""
    from nuscenes.eval.detection.utils import category_to_detection_name

    rows, labels = [], []
    for box in nusc.get_sample_data(sample['data']['LIDAR_TOP'])[1]:
        annotation, label = nusc.get('sample_annotation', box.token), category_to_detection_name(box.name)
        if label and annotation['num_lidar_pts'] > 0:
            width, length, height = box.wlh
            bottom = box.center - (0.0, 0.0, height / 2)
            rows.append((*bottom, length, width, height, box.orientation.yaw_pitch_roll[0]))
            labels.append(label)
    return np.array(rows, float).reshape(-1, 7), tuple(labels)


def draw_view(view: SampleView, camera_width: int = CAMERA_WIDTH) -> np.ndarray:
    """Draws one sample: a title, the cameras, and the view from above beside them.

    Args:
        view: Data of the sample.
        camera_width: Width of each camera image in pixels.

    Returns:
        Image [H, W, 3] uint8 RGB.
    """
    corners, colors = box_corners(view.boxes), [CLASS_COLORS[label] for label in view.labels]
    images = {}
    for channel, image in view.images.items():
        scale = camera_width / image.shape[1]
        resized = cv2.resize(
            image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
        )
        draw_boxes(resized, corners, np.diag([scale, scale, 1.0, 1.0]) @ view.projections[channel], colors)
        cv2.putText(resized, channel, (8, 18), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (255, 255, 255), 1, cv2.LINE_AA)
        images[channel] = resized
    cameras = mosaic(images)
    above = _draw_above(view, corners, colors, cameras.shape[0])
    body = np.hstack([cameras, above])
    return np.vstack([_text_band(view.title, body.shape[1]), body])


def _draw_above(view: SampleView, corners: np.ndarray, colors: list[tuple[int, int, int]], side: int) -> np.ndarray:
    canvas = bird_eye_canvas(side, REACH)
    low, high = -1.9, 2.0
    shade = np.clip((view.points[:, 2] - low) / (high - low), 0.0, 1.0)
    palette = cv2.applyColorMap(np.arange(256, dtype=np.uint8), cv2.COLORMAP_VIRIDIS)[:, 0, ::-1]
    pixels = np.rint(to_canvas(view.points[:, :2], side, REACH)).astype(int)
    inside = ((pixels >= 0) & (pixels < side)).all(axis=1)
    canvas[pixels[inside, 1], pixels[inside, 0]] = palette[(60 + 195 * shade[inside]).astype(int)]
    for column, row in np.rint(to_canvas(view.radar[:, :2], side, REACH)).astype(int):
        cv2.drawMarker(canvas, (int(column), int(row)), (255, 90, 90), cv2.MARKER_DIAMOND, 5, 1)
    draw_boxes_from_above(canvas, corners, REACH, colors)
    draw_boxes_from_above(canvas, box_corners(EGO_BOX), REACH, [(255, 255, 255)])
    return canvas


def _text_band(text: str, width: int, height: int = 24) -> np.ndarray:
    band = np.full((height, width, 3), BACKGROUND, np.uint8)
    cv2.putText(band, text, (8, height - 8), cv2.FONT_HERSHEY_SIMPLEX, 0.48, (235, 235, 235), 1, cv2.LINE_AA)
    return band


def _legend(width: int, height: int = 26) -> np.ndarray:
    """Draws the colours of the classes, in as many lines as the width requires."""
    columns = max(1, min(len(CLASS_COLORS), (width - 16) // ENTRY_WIDTH))
    band = np.full((-(-len(CLASS_COLORS) // columns) * height, width, 3), BACKGROUND, np.uint8)
    for k, (label, color) in enumerate(CLASS_COLORS.items()):
        left, top = 8 + k % columns * (width - 16) // columns, k // columns * height
        cv2.rectangle(band, (left, top + 7), (left + 12, top + height - 7), color, -1)
        place = (left + 18, top + height - 8)
        cv2.putText(band, label, place, cv2.FONT_HERSHEY_SIMPLEX, 0.45, (220, 220, 220), 1, cv2.LINE_AA)
    return band


def _widened(row: np.ndarray, width: int) -> np.ndarray:
    """Adds a margin to the right, because samples may have different numbers of cameras."""
    canvas = np.full((row.shape[0], width, 3), BACKGROUND, np.uint8)
    canvas[:, : row.shape[1]] = row
    return canvas


def contact_sheet(nusc: NuScenes, indices: Sequence[int], camera_width: int = CAMERA_WIDTH) -> np.ndarray:
    """Draws several samples below each other, with a legend.

    Args:
        nusc: The data set.
        indices: Positions in `nusc.sample`.
        camera_width: Width of each camera image in pixels.

    Returns:
        Image [H, W, 3] uint8 RGB.

    Raises:
        IndexError: If a sample does not exist; the message has the number of samples.
    """
    wrong = [index for index in indices if not 0 <= index < len(nusc.sample)]
    if wrong:
        raise IndexError(f'samples {wrong} do not exist; there are {len(nusc.sample)}, counted from 0')
    rows = [draw_view(load_view(nusc, index), camera_width) for index in indices]
    width = max(row.shape[1] for row in rows)
    return np.vstack([*(_widened(row, width) for row in rows), _legend(width)])


def save_contact_sheet(
    data_root: Path,
    out: Path,
    count: int = 4,
    indices: Sequence[int] = (),
    version: str = 'v1.0-trainval',
    camera_width: int = CAMERA_WIDTH,
) -> tuple[int, ...]:
    """Draws samples of a data set into an image file.

    Args:
        data_root: Folder that contains `version`.
        out: Image file, .jpg or .png.
        count: Number of samples, spread evenly, when `indices` is empty.
        indices: Positions of the samples to draw.
        version: Name of the folder with the tables.
        camera_width: Width of each camera image in pixels.

    Returns:
        Positions of the samples drawn.

    Raises:
        FileNotFoundError: If the tables are missing.
        OSError: If the image cannot be written.
    """
    from nuscenes.nuscenes import NuScenes

    if not (Path(data_root) / version).is_dir():
        raise FileNotFoundError(f'{data_root} has no {version} folder; give the root of a nuScenes data set')
    nusc = NuScenes(version, str(data_root), verbose=False)
    chosen = tuple(indices) or tuple(
        int(value) for value in np.linspace(0, len(nusc.sample) - 1, min(count, len(nusc.sample)) + 2)[1:-1]
    )
    sheet = contact_sheet(nusc, chosen, camera_width)
    save_image(out, sheet, quality=85)
    return chosen
