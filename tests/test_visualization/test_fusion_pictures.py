"""Pictures of AlterMOMA: that they show what they are given."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from experiments.altermoma.bev_features import draw_bev_features
from mmprune3d.visualization.keep_rates import draw_keep_rates


def row(kept: int, total: int, **more: str) -> dict:
    return {'kept': kept, 'total': total, 'rate': kept / total, **more}


def report(second: int) -> dict:
    layers = {'cam.weight': row(90, 100, group='camera'), 'head.weight': row(second, 100, group='fusion')}
    groups = {'camera': row(90, 100), 'fusion': row(second, 100)}
    return {'total': row(90 + second, 200), 'groups': groups, 'layers': layers}


def blue(path: Path) -> int:
    """Pixels of the first group's colour."""
    image = cv2.imread(str(path)).astype(int)
    return int((np.abs(image - np.array([0xB2, 0x72, 0x00])).sum(-1) < 12).sum())


def orange(path: Path) -> int:
    image = cv2.imread(str(path)).astype(int)
    return int((np.abs(image - np.array([0x00, 0x5E, 0xD5])).sum(-1) < 12).sum())


def test_a_bar_is_as_long_as_what_is_left(tmp_path: Path) -> None:
    for second in (10, 90):
        draw_keep_rates(report(second), tmp_path / f'made/{second}.png')
    few, many = tmp_path / 'made/10.png', tmp_path / 'made/90.png'
    assert 0.8 < blue(few) / blue(many) < 1.25  # the camera's bar is the same
    assert orange(many) > 3 * orange(few)
    assert 0.8 < orange(many) / blue(many) < 1.25  # as much is left of both


def test_many_layers_and_none(tmp_path: Path) -> None:
    many = report(10)
    many['layers'] = {f'layer{i}.weight': row(i, 200, group='camera') for i in range(120)}
    draw_keep_rates(many, tmp_path / 'many.png')
    assert cv2.imread(str(tmp_path / 'many.png')).shape[0] > 1500
    with pytest.raises(ValueError, match='no layers'):
        draw_keep_rates({**many, 'layers': {}}, tmp_path / 'none.png')


def test_maps_lie_with_x_up_and_y_to_the_left(tmp_path: Path) -> None:
    front_left = np.zeros((20, 20))
    front_left[15:, 15:] = 1.0  # large x, large y
    path = tmp_path / 'maps.png'
    draw_bev_features(path, {'original': {'camera': front_left}}, (-10, -10, 10, 10))
    image = cv2.imread(str(path)).astype(int).sum(-1)
    ink = (image < 100) & (image >= 0)  # magma's lowest colour is nearly black
    rows, columns = np.nonzero(ink)
    top, bottom, left, right = rows.min(), rows.max(), columns.min(), columns.max()
    inside = image[top : bottom + 1, left : right + 1]
    half_height, half_width = inside.shape[0] // 2, inside.shape[1] // 2
    bright = {
        'front left': inside[:half_height, :half_width].mean(),
        'front right': inside[:half_height, half_width:].mean(),
        'back left': inside[half_height:, :half_width].mean(),
    }
    assert bright['front left'] > 2 * max(bright['front right'], bright['back left'])


def test_states_share_a_scale_and_may_lack_maps(tmp_path: Path) -> None:
    rows = {
        'original': {'camera': np.ones((8, 8)), 'fused': np.ones((8, 8))},
        'reactivated': {'camera': np.full((8, 8), 0.1)},
    }
    boxes = np.array([[[1.0, 1.0], [1.0, 2.0], [3.0, 2.0], [3.0, 1.0]]])
    draw_bev_features(tmp_path / 'states.png', rows, (-10, -10, 10, 10), boxes, 'a sample')
    image = cv2.imread(str(tmp_path / 'states.png')).astype(int).sum(-1)
    height = image.shape[0]
    upper, lower = image[int(0.3 * height), image.shape[1] // 8], image[int(0.8 * height), image.shape[1] // 8]
    assert upper > lower + 200  # magma goes from black to light
    with pytest.raises(ValueError, match='no maps'):
        draw_bev_features(tmp_path / 'none.png', {'original': {}}, (-10, -10, 10, 10))
