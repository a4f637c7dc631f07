from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from mmprune3d.visualization import contact_sheet as contact_sheets
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


def test_other_rigs_are_drawn_too():
    view = make_view(CAR, ('car',))
    for names in (['ahead'], ['left', 'ahead', 'right', 'behind', 'above']):
        images = dict.fromkeys(names, view.images['CAM_FRONT'])
        projections = dict.fromkeys(names, view.projections['CAM_FRONT'])
        drawn = draw_view(replace(view, images=images, projections=projections), WIDTH)
        rows, columns = (1, 1) if len(names) == 1 else (2, 3)
        side = rows * HEIGHT
        assert drawn.shape == (24 + side, columns * WIDTH + side, 3)
        for place in range(len(names)):
            top, left = 24 + place // columns * HEIGHT, place % columns * WIDTH
            assert count(drawn[top : top + HEIGHT, left : left + WIDTH], 'car') > 10


def test_samples_with_different_cameras_stand_below_each_other(monkeypatch):
    view = make_view(CAR, ('car',))
    one = {name: {'CAM_FRONT': getattr(view, name)['CAM_FRONT']} for name in ('images', 'projections')}
    monkeypatch.setattr(contact_sheets, 'load_view', lambda nusc, index: replace(view, **one) if index else view)
    sheet = contact_sheet(SimpleNamespace(sample=[{}, {}]), [0, 1], WIDTH)
    assert sheet.shape[1] == 3 * WIDTH + 2 * HEIGHT
    found = [label for label in CLASS_COLORS if count(sheet[3 * HEIGHT + 48 :], label)]
    assert found == list(CLASS_COLORS)  # the legend has room for all


def test_a_missing_image_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'none\.jpg does not exist or is not an image'):
        contact_sheets._read(str(tmp_path / 'none.jpg'))


def test_wrong_samples_and_folders_are_named(tmp_path):
    with pytest.raises(IndexError, match=r'\[7\] do not exist; there are 2'):
        contact_sheet(SimpleNamespace(sample=[{}, {}]), [1, 7])
    with pytest.raises(FileNotFoundError, match=r'v1\.0-trainval'):
        save_contact_sheet(tmp_path, tmp_path / 'sheet.png')
