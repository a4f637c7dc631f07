from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from mmprune3d.visualization.contact_sheet import SampleView, contact_sheet, draw_view, save_contact_sheet
from mmprune3d.visualization.drawing import CLASS_COLORS

CAMERAS = ('FRONT', 'FRONT_LEFT', 'FRONT_RIGHT', 'BACK', 'BACK_LEFT', 'BACK_RIGHT')
WIDTH, HEIGHT = 160, 90


def make_view(boxes: np.ndarray, labels: tuple[str, ...]) -> SampleView:
    """Grey images; the front camera looks along y of the LiDAR frame, the others see nothing of what lies there."""
    intrinsic = np.array([[80.0, 0.0, 80.0, 0.0], [0.0, 80.0, 45.0, 0.0], [0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]])
    front = np.array([[1.0, 0, 0, 0], [0, 0, -1.0, 0], [0, 1.0, 0, 0], [0, 0, 0, 1.0]])
    behind = np.diag([-1.0, 1.0, -1.0, 1.0]) @ front
    images = {f'CAM_{name}': np.full((HEIGHT, WIDTH, 3), 128, np.uint8) for name in CAMERAS}
    projections = {name: intrinsic @ (front if name == 'CAM_FRONT' else behind) for name in images}
    points = np.array([[0.0, 20.0, -1.0], [30.0, 0.0, 0.5], [400.0, 0.0, 0.0]])
    return SampleView('a title', images, projections, points, np.array([[10.0, 10.0, 0.0]]), boxes, labels)


CAR = np.array([[0.0, 15.0, -1.8, 4.6, 1.9, 1.7, np.pi / 2]])


def count(image: np.ndarray, label: str) -> int:
    return int((np.abs(image.astype(int) - CLASS_COLORS[label]).max(axis=-1) < 40).sum())


def test_boxes_are_drawn_in_the_camera_that_sees_them_and_from_above():
    drawn, plain = draw_view(make_view(CAR, ('car',)), WIDTH), draw_view(make_view(CAR[:0], ()), WIDTH)
    assert drawn.shape == plain.shape and drawn.dtype == np.uint8
    changed = (drawn != plain).any(axis=-1)
    top = drawn.shape[0] - 2 * HEIGHT
    front = changed[top : top + HEIGHT, WIDTH : 2 * WIDTH]
    above = changed[:, 3 * WIDTH :]
    assert front.sum() > 20 and above.sum() > 5
    assert changed.sum() == front.sum() + above.sum(), 'no other camera shows the box'
    assert np.abs(np.argwhere(front)[:, 1].mean() - 80.0) < 3.0, 'straight ahead is the middle of the image'
    assert np.argwhere(above)[:, 0].mean() < drawn.shape[0] / 2, 'ahead is up'


def test_colour_tells_the_class():
    bus = draw_view(make_view(CAR, ('bus',)), WIDTH)
    car = draw_view(make_view(CAR, ('car',)), WIDTH)
    assert count(bus, 'bus') > count(car, 'bus') and count(car, 'car') > count(bus, 'car')


def test_cameras_keep_their_shape_when_resized():
    small, large = (draw_view(make_view(CAR, ('car',)), width) for width in (WIDTH, 2 * WIDTH))
    assert large.shape[1] - small.shape[1] == 3 * WIDTH + 2 * HEIGHT


def test_wrong_samples_and_folders_are_named(tmp_path):
    with pytest.raises(IndexError, match=r'\[7\] do not exist; there are 2'):
        contact_sheet(SimpleNamespace(sample=[{}, {}]), [1, 7])
    with pytest.raises(FileNotFoundError, match=r'v1\.0-trainval'):
        save_contact_sheet(tmp_path, tmp_path / 'sheet.png')
