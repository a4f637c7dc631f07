from __future__ import annotations

from pathlib import Path

import cv2

from experiments.curves import draw_curves


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
