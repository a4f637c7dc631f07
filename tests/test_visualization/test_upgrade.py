from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from experiments.curves import draw_curves
from mmprune3d.visualization.drawing import box_corners
from mmprune3d.visualization.keys import cells_of, removal_stages, stage_colors, tint_removed
from mmprune3d.visualization.upgrade import LOST, NEW, Boxes, Comparison, draw_from_above, match_boxes


def test_stages_say_after_which_layer_a_key_went() -> None:
    kept = [np.arange(6), np.array([5, 1, 2, 3]), np.array([3, 1, 2, 5]), np.array([5, 2])]
    assert removal_stages(kept).tolist() == [1, 3, 0, 3, 1, 0]


def test_without_pruning_the_image_stays() -> None:
    stages = removal_stages([np.arange(8)] * 3)
    image = np.random.default_rng(0).integers(0, 255, (32, 64, 3), np.uint8)
    assert stage_colors(stages) == {}
    assert np.array_equal(tint_removed(image, stages.reshape(2, 4), {}, 16), image)


def test_removed_cells_are_tinted_and_others_untouched() -> None:
    image = np.full((30, 64, 3), 200, np.uint8)  # two rows of cells of 16 pixels, the lower one cut off
    stages = np.array([0, 1, 0, 3, 0, 0, 1, 0])
    colors = stage_colors(stages)
    cells, side = cells_of(stages, 1, 30, 64)
    tinted = tint_removed(image, cells[0], colors, side)
    changed = (tinted != image).any(-1)
    expected = np.kron(stages.reshape(2, 4) > 0, np.ones((16, 16), bool))[:30]
    assert np.array_equal(changed, expected)
    early, late = tinted[5, 20].astype(int), tinted[5, 60].astype(int)
    assert early.sum() < late.sum() and sorted(colors) == [1, 3]


def test_keys_that_are_no_feature_map_are_refused() -> None:
    with pytest.raises(ValueError, match='7 keys do not cover 1 images'):
        cells_of(np.zeros(7, int), 1, 32, 64)


def boxes(*places: tuple[float, float, int]) -> Boxes:
    rows = np.array([(x, y, 0, 4, 2, 1.5, 0.3) for x, y, _ in places], float).reshape(-1, 7)
    return Boxes(box_corners(rows), np.array([label for *_, label in places], int))


def test_boxes_are_matched_by_class_and_distance_nearest_first() -> None:
    first = boxes((0, 0, 1), (1.5, 0, 1), (20, 0, 1), (30, 0, 1))
    second = boxes((1.0, 0, 1), (20, 0.5, 2), (31.9, 0, 1))
    has_first, has_second = match_boxes(first, second)
    # (1.0, 0) goes to the nearer of two; the box of another class and the one far away stay alone
    assert has_first.tolist() == [False, True, False, True]
    assert has_second.tolist() == [True, False, True]
    none = match_boxes(boxes(), second)
    assert none[0].tolist() == [] and none[1].tolist() == [False] * 3


def test_boxes_without_partner_stand_out_from_above() -> None:
    def count(before: Boxes, after: Boxes, color: tuple[int, int, int]) -> int:
        canvas = draw_from_above(Comparison(before, after, *match_boxes(before, after)), None, 400)
        return int((np.abs(canvas.astype(int) - color).max(-1) < 40).sum())

    here, there = boxes((10, 10, 0)), boxes((10, -20, 0))
    assert count(here, here, LOST) == count(here, here, NEW) == 0
    assert count(here, there, LOST) > 10 and count(here, there, NEW) > 10


def test_curves_have_a_panel_per_figure_and_show_every_curve(tmp_path: Path) -> None:
    points = [(25.0, [{'mAP': 0.3, 'NDS': 0.4}, {'mAP': 0.2, 'NDS': 0.3}]), (50.0, [{'mAP': 0.1, 'NDS': 0.2}])]
    baseline = {'mAP': 0.35, 'NDS': 0.45}
    images = []
    for index, curves in enumerate(({'a': points}, {'a': points, 'b': [], 'c': points[1:]})):
        draw_curves(tmp_path / f'{index}.png', 'title', 'keys removed (%)', curves, baseline)
        images.append(cv2.imread(str(tmp_path / f'{index}.png')))
    draw_curves(tmp_path / 'one.png', 'title', 'keys removed (%)', {'a': points}, {'mAP': 0.35})
    assert images[0].shape == images[1].shape and (images[0] != images[1]).any()
    assert images[0].shape[1] == 2 * cv2.imread(str(tmp_path / 'one.png')).shape[1]
