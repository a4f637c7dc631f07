"""Data without velocities for a BEVFusion that predicts them."""

from __future__ import annotations

import pytest
import torch

from mmprune3d.models.bevfusion.box_coder import BEVFusion3DBoxCoder


@pytest.mark.parametrize('count', [0, 3])
def test_boxes_without_velocities(count: int) -> None:
    settings = dict(pc_range=[-10.0, -10.0], voxel_size=[0.5, 0.5], out_size_factor=1)
    boxes = torch.rand(count, 7) + 0.5
    with pytest.raises(ValueError, match=r'no velocity, but bbox_coder\.code_size is 10: set code_size=8'):
        BEVFusion3DBoxCoder(**settings, code_size=10).encode(boxes)
    assert BEVFusion3DBoxCoder(**settings, code_size=8).encode(boxes).shape == (count, 8)
