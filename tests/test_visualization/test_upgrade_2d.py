from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.structures import BaseDataElement, InstanceData

from mmprune3d.visualization.legend import AFTER, BEFORE, LOST, NEW, TRUTH
from mmprune3d.visualization.upgrade import Boxes
from mmprune3d.visualization.upgrade_2d import draw_upgrade_2d, found_boxes, match_boxes_2d, true_boxes

HEIGHT, WIDTH, SIDE = 64, 96, 16
KEYS = (HEIGHT // SIDE) * (WIDTH // SIDE)


def prediction(*rows: tuple[float, float, float, float, int, float]) -> BaseDataElement:
    """Left, top, right, bottom in an original image of half the size, label, score."""
    table = torch.tensor(rows, dtype=torch.float32).reshape(-1, 6)
    found = InstanceData(bboxes=table[:, :4], labels=table[:, 4].long(), scores=table[:, 5])
    return BaseDataElement(metainfo=dict(scale_factor=(2.0, 2.0), img_path='a/b.jpg'), pred_instances=found)


def boxes(*rows: tuple[float, float, float, float, int]) -> Boxes:
    table = np.array(rows, float).reshape(-1, 5)
    return Boxes(table[:, :4], table[:, 4].astype(int))


def test_boxes_are_matched_by_class_and_overlap_largest_first() -> None:
    first = boxes((0, 0, 10, 10, 1), (0, 0, 10, 8, 1), (20, 0, 30, 10, 1), (40, 0, 50, 10, 1))
    second = boxes((0, 0, 10, 10, 1), (20, 0, 30, 10, 2), (46, 0, 56, 10, 1))
    has_first, has_second = match_boxes_2d(first, second)
    assert has_first.tolist() == [True, False, False, False] and has_second.tolist() == [True, False, False]
    assert match_boxes_2d(boxes(), second)[1].tolist() == [False] * 3


def test_scores_and_ignored_annotations_are_left_out() -> None:
    found = found_boxes(prediction((0, 0, 9, 9, 1, 0.9), (0, 0, 5, 5, 2, 0.1)), 0.3)
    assert found.labels.tolist() == [1]
    rows = [dict(bbox=[0, 0, 4, 4], ignore_flag=0), dict(bbox=[1, 1, 2, 2], ignore_flag=1), dict(other=1)]
    assert true_boxes(rows).tolist() == [[0, 0, 4, 4]]


def test_boxes_stand_where_they_are_in_the_image(tmp_path: Path) -> None:
    same, lost, new = (4, 4, 12, 12, 0, 0.9), (20, 4, 28, 12, 0, 0.9), (36, 4, 44, 12, 0, 0.9)
    truth = dict(instances=[dict(bbox=[4, 20, 12, 28])])
    kept = [torch.arange(KEYS), torch.arange(KEYS // 2, KEYS)]
    image = torch.full((3, HEIGHT, WIDTH), 200.0)
    draw_upgrade_2d(tmp_path / 'a.png', image, prediction(same, lost), prediction(same, new), kept, truth)
    picture = cv2.imread(str(tmp_path / 'a.png'))[..., ::-1].astype(int)
    zoom = picture.shape[1] / (WIDTH / 2)

    def is_there(color: tuple[int, int, int], left: float, top: float) -> bool:
        row, column = round((top + 4) * zoom), round(left * zoom)
        return bool((np.abs(picture[row, column - 3 : column + 4] - color).max(-1) < 60).any())

    assert is_there(BEFORE, 4, 4) and is_there(AFTER, 4, 4) and is_there(LOST, 20, 4) and is_there(NEW, 36, 4)
    assert is_there(TRUTH, 4, 20) and not is_there(TRUTH, 20, 20)
    # the upper half lost its keys
    upper, lower = (picture[round(row * zoom), round(16 * zoom)] for row in (2, 30))
    assert np.ptp(lower) < 5 < np.ptp(upper)


def test_keys_of_several_maps_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='do not cover'):
        kept = [torch.arange(KEYS + 7)] * 2
        draw_upgrade_2d(tmp_path / 'a.png', torch.zeros(3, HEIGHT, WIDTH), prediction(), prediction(), kept)
    assert not any(tmp_path.iterdir())
