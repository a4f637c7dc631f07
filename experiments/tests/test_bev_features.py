"""Pictures of feature maps: that they show what they are given."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from experiments.altermoma.bev_features import draw_bev_features
from experiments.altermoma.features import feature_maps
from mmprune3d.adapters.fusion import FusionMap


class _Streams(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.camera = nn.Sequential(nn.BatchNorm2d(2), nn.Dropout(0.5))
        self.fusion_layer = nn.Identity()

    def forward(self, inputs: Tensor, mode: str) -> Tensor:
        return self.fusion_layer(self.camera(inputs))


def test_feature_maps_leave_the_detector_as_it_was() -> None:
    model = _Streams()
    model.camera[0].eval()  # a frozen part of a detector in training
    fusion = FusionMap({'camera': ('camera',), 'fusion': ('fusion_layer',)}, {'camera': 'camera'})
    maps = feature_maps(model, fusion, {'inputs': torch.ones(1, 2, 3, 4)})
    assert set(maps) == {'camera', 'fused'} and maps['camera'].shape == (3, 4)
    assert np.allclose(maps['camera'], 1, atol=1e-4)  # dropout is off
    assert [module.training for module in model.modules()] == [True, True, False, True, True]


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
