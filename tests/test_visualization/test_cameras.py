from __future__ import annotations

from itertools import permutations
from pathlib import Path

import cv2
import numpy as np
import pytest

from mmprune3d.visualization.cameras import FAMILIAR, camera_names, mosaic
from mmprune3d.visualization.drawing import save_image
from mmprune3d.visualization.keys import KEPT
from mmprune3d.visualization.legend import LEGEND_HEIGHT, draw_legend
from mmprune3d.visualization.upgrade import Boxes, Comparison, projections


def infos(*names: str) -> dict[str, dict]:
    """`images` of an info: every camera has a file and a matrix of its own."""
    return {
        name: dict(img_path=f'data/{name}/{number}.jpg', lidar2cam=(np.eye(4) * (number + 1)).tolist())
        for number, name in enumerate(names)
    }


def test_names_follow_the_images_whatever_the_order_of_the_info() -> None:
    known = infos('left', 'ahead', 'right')
    for order in permutations(known):
        by_file = dict(filename=[known[name]['img_path'] for name in order])
        by_matrix = dict(lidar2cam=[np.array(known[name]['lidar2cam']) for name in order])
        assert camera_names(by_file, known, 3) == camera_names(by_matrix, known, 3) == list(order)


def test_a_part_of_the_cameras_is_found_too() -> None:
    known = infos('left', 'ahead', 'right')
    assert camera_names(dict(lidar2cam=[known['right']['lidar2cam']]), known, 1) == ['right']
    assert camera_names(dict(img_path=known['ahead']['img_path']), known, 1) == ['ahead']


def test_what_says_less_comes_later() -> None:
    known = infos('left', 'ahead')
    assert camera_names(dict(cam_names=['a', 'b'], filename=['x/1.jpg', 'y/2.jpg']), known, 2) == ['a', 'b']
    same = dict(lidar2cam=[np.eye(4)] * 2)
    assert camera_names(same, {name: dict(lidar2cam=np.eye(4)) for name in known}, 2) == ['left', 'ahead']
    assert camera_names(dict(filename=['rig/x/1.jpg', 'rig/y/2.jpg']), {}, 2) == ['x', 'y']
    assert camera_names({}, {}, 2) == ['camera 1', 'camera 2']
    assert camera_names({}, known, 3) == ['camera 1', 'camera 2', 'camera 3']


def test_earlier_frames_of_the_same_cameras_get_numbers() -> None:
    files = [f'{folder}/{camera}/{number}.jpg' for number, folder in enumerate('ab') for camera in ('x', 'y')]
    assert camera_names(dict(filename=files), {}, 4) == ['x', 'y', 'x (2)', 'y (2)']


def panels(*names: str) -> dict[str, np.ndarray]:
    """Images [4, 6] that are told apart by their grey."""
    return {name: np.full((4, 6, 3), 100 + number, np.uint8) for number, name in enumerate(names)}


def test_cameras_of_nuscenes_stand_as_a_driver_looks_around() -> None:
    images = panels(*FAMILIAR)
    made = mosaic(images)
    assert np.array_equal(made[::4, ::6, 0], [[100, 101, 102], [103, 104, 105]])
    assert np.array_equal(mosaic(dict(sorted(images.items()))), made)
    del images['CAM_BACK']
    assert np.array_equal(mosaic(images)[::4, ::6, 0], [[100, 101, 102], [103, 24, 105]])


@pytest.mark.parametrize(
    ('count', 'rows', 'columns'),
    [(1, 1, 1), (2, 1, 2), (3, 1, 3), (4, 2, 2), (5, 2, 3), (7, 2, 4), (8, 2, 4), (9, 3, 4)],
)
def test_any_number_of_cameras_has_a_place_each(count: int, rows: int, columns: int) -> None:
    made = mosaic(panels(*(f'camera {number}' for number in range(count))))
    assert made.shape == (4 * rows, 6 * columns, 3)
    assert made[::4, ::6, 0].ravel()[:count].tolist() == list(range(100, 100 + count))


def test_images_of_different_sizes_have_a_margin() -> None:
    made = mosaic({'wide': np.full((4, 6, 3), 100, np.uint8), 'flat': np.full((2, 6, 3), 200, np.uint8)})
    assert made.shape == (4, 12, 3) and (made[2:, 6:] == 24).all() and (made[:2, 6:] == 200).all()
    with pytest.raises(ValueError, match='no camera images'):
        mosaic({})


def test_projections_from_either_kind_of_matrices() -> None:
    intrinsic, pose = np.diag([2.0, 3.0, 1.0]), np.eye(4) * 2
    first = projections(dict(cam2img=[intrinsic] * 2, lidar2cam=[pose] * 2), 2)
    expected = np.diag([4.0, 6.0, 2.0, 2.0])
    assert np.array_equal(first, [expected] * 2)
    assert np.array_equal(projections(dict(lidar2img=[expected] * 2), 2), first)
    with pytest.raises(ValueError, match='neither cam2img and lidar2cam nor lidar2img for its 3 images'):
        projections(dict(lidar2img=[expected] * 2), 3)


def test_a_legend_takes_the_lines_that_it_needs() -> None:
    none = Boxes(np.zeros((0, 8, 3)), np.zeros(0, int))
    boxes = Comparison(none, none, np.zeros(0, bool), np.zeros(0, bool))
    stages = np.array([1, 2, 3, 4, 5, KEPT])
    wide, narrow = (draw_legend(stages, boxes, True, width) for width in (1920, 500))
    assert wide.shape == (LEGEND_HEIGHT, 1920, 3) and narrow.shape[0] > LEGEND_HEIGHT
    # nothing is cut off: the last columns are empty
    assert (narrow[:, -8:] == 24).all() and (wide[:, -8:] == 24).all()


def test_an_image_is_written_as_it_is_and_errors_leave_the_old_one(tmp_path: Path) -> None:
    image = np.zeros((4, 6, 3), np.uint8)
    image[..., 0] = 250  # red
    save_image(tmp_path / 'new' / 'red.png', image, 90)
    assert np.array_equal(cv2.imread(str(tmp_path / 'new' / 'red.png')), image[..., ::-1])
    with pytest.raises(ValueError, match='red'):
        save_image(tmp_path / 'red.none', image, 90)
    assert [path.name for path in tmp_path.iterdir()] == ['new']
