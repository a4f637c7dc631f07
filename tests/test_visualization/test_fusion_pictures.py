"""Pictures of AlterMOMA: that they show what they are given."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

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
