from __future__ import annotations

import cv2

from mmprune3d.visualization.contact_sheet import load_view, save_contact_sheet


def test_contact_sheet_of_generated_data(tiny, tmp_path):
    drawn = save_contact_sheet(tiny.root, tmp_path / 'sheet.jpg', count=2, camera_width=160)
    image = cv2.imread(str(tmp_path / 'sheet.jpg'))
    assert len(drawn) == 2 and image.std() > 20
    assert image.shape[1] == 3 * 160 + 2 * 64


def test_view_holds_what_the_lidar_hit(nusc):
    view = load_view(nusc, 0)
    assert len(view.boxes) == len(view.labels) > 3
    assert set(view.images) == set(view.projections) and len(view.images) == 6
    assert len(view.points) > 5000 and view.radar.shape[1] == 3
