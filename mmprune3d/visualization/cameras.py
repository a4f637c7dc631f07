"""Names of the cameras in the data, and the positions of their images in a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .drawing import BACKGROUND

FAMILIAR = ('CAM_FRONT_LEFT', 'CAM_FRONT', 'CAM_FRONT_RIGHT', 'CAM_BACK_LEFT', 'CAM_BACK', 'CAM_BACK_RIGHT')
"""The cameras of nuScenes in the order of a panorama, in two rows of three."""
NAME_KEYS = ('cam_names', 'camera_names', 'cam_types')
"""Keys under which pipelines store camera names in a data sample."""
MOST_IN_TWO_ROWS = 8


def camera_names(sample: Mapping[str, Any], images: Mapping[str, Mapping[str, Any]], count: int) -> list[str]:
    """Names of the cameras of a sample, in the order of its images.

    The first source that exists is used: names that the pipeline stored; names of the info, found by file, by
    calibration, or by their order; folders of the files; numbers.

    Args:
        sample: Meta information of the sample, which may contain one of `NAME_KEYS`, ``img_path`` or ``filename``, and
            ``lidar2cam``.
        images: ``images`` of the sample's info: name -> ``img_path``, ``lidar2cam`` and so on.
        count: Number of images.

    Returns:
        List of `count` names, all different.
    """
    paths = _files(sample, count)
    written = next((sample[key] for key in NAME_KEYS if len(_as_list(sample.get(key))) == count), None)
    names = (
        written
        or _by_file(paths, images)
        or _by_calibration(sample.get('lidar2cam'), images, count)
        or (list(images) if len(images) == count else None)
        or [Path(path).parent.name or Path(path).name for path in paths]
        or [f'camera {number}' for number in range(1, count + 1)]
    )
    return _distinct([str(name) for name in names])


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else []


def _files(sample: Mapping[str, Any], count: int) -> list[str]:
    """The image files in order, or an empty list if the sample does not have one for each image."""
    for key in ('img_path', 'filename'):
        value = sample.get(key)
        paths = [value] if isinstance(value, str) else _as_list(value)
        if len(paths) == count and all(isinstance(path, str) for path in paths):
            return paths
    return []


def _by_file(paths: Sequence[str], images: Mapping[str, Mapping[str, Any]]) -> list[str] | None:
    known = {str(image['img_path']): name for name, image in images.items() if image.get('img_path')}
    names = [known.get(path) for path in paths]
    return names if names and None not in names else None


def _by_calibration(
    lidar2cam: Sequence[Any] | None, images: Mapping[str, Mapping[str, Any]], count: int
) -> list[str] | None:
    """Finds names by equal `lidar2cam`; a matrix that two cameras share cannot identify either."""
    known = {name: np.asarray(image['lidar2cam']) for name, image in images.items() if 'lidar2cam' in image}
    if lidar2cam is None or len(lidar2cam) != count:
        return None
    names = []
    for matrix in map(np.asarray, lidar2cam):
        equal = [name for name, other in known.items() if other.shape == matrix.shape and np.allclose(matrix, other)]
        names.extend(equal if len(equal) == 1 else [None])
    return None if None in names else names


def _distinct(names: Sequence[str]) -> list[str]:
    """Appends a number to repeated names, which occur with earlier frames of the same cameras."""
    made: list[str] = []
    for name in names:
        number = names[: len(made)].count(name) + 1
        made.append(name if number == 1 else f'{name} ({number})')
    return made


def columns_of(count: int) -> int:
    """Number of images side by side: up to three in one row, up to eight in two rows, then rows of four."""
    if count <= 3:
        return max(count, 1)
    return -(-count // 2) if count <= MOST_IN_TWO_ROWS else 4


def mosaic(images: Mapping[str, np.ndarray]) -> np.ndarray:
    """Combines the images of all cameras into one.

    The cameras of nuScenes are placed in the order of a panorama, whatever their order in `images`, with gaps for one
    or two that are missing; others are placed row by row in the given order. Images of different sizes get a margin.

    Args:
        images: Camera name -> image [H, W, 3] uint8, at least one.

    Returns:
        Image [H', W', 3] uint8.

    Raises:
        ValueError: If there are no images.
    """
    if not images:
        raise ValueError('there are no camera images to draw')
    order = _order(images)
    columns = columns_of(len(order))
    height, width = (max(image.shape[axis] for image in images.values()) for axis in (0, 1))
    canvas = np.full((-(-len(order) // columns) * height, columns * width, 3), BACKGROUND, np.uint8)
    for place, name in enumerate(order):
        top, left = place // columns * height, place % columns * width
        if name in images:
            image = images[name]
            canvas[top : top + image.shape[0], left : left + image.shape[1]] = image
    return canvas


def _order(images: Mapping[str, np.ndarray]) -> list[str]:
    """Names in the order of their positions, including those of gaps."""
    if not set(images) <= set(FAMILIAR):
        return list(images)
    return [name for name in FAMILIAR if name in images or len(images) >= 4]
