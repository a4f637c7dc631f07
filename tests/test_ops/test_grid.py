"""Ranges and voxels that fit, and what is said of others."""

from __future__ import annotations

import re

import pytest
import torch

from mmprune3d.ops.grid import grid_shape, misfits
from mmprune3d.ops.voxelize import voxelize

FITTING = [
    ([-54.0, -54.0, -5.0, 54.0, 54.0, 3.0], [0.075, 0.075, 0.2], [1440, 1440, 40]),
    ([-74.88, -74.88, -2, 74.88, 74.88, 4], [0.32, 0.32, 6], [468, 468, 1]),
    ([0, -40.32, -3, 69.12, 40.32, 1], [0.32, 0.32, 4], [216, 252, 1]),
    ([0, -40, -3, 70.4, 40, 1], [0.05, 0.05, 0.1], [1408, 1600, 40]),
]
"""Of shipped configs and of mmdet3d's."""


@pytest.mark.parametrize(('area', 'size', 'shape'), FITTING)
def test_what_fits_is_passed_in_silence(area, size, shape):
    assert grid_shape(area, size) == shape
    assert misfits(area, size) == []


def test_a_lost_stripe_is_named_with_what_fits():
    area, size = [-50, -50, -5, 50, 50, 3], [0.3, 0.25, 8]
    (sentence,) = misfits(area, size)
    assert 'x from -50 to 50 is 333.33 voxels of 0.3; 333 are made, and points beyond 49.9 are dropped' in sentence
    # the point that the sentence is about
    points = torch.tensor([[49.95, 0, 0], [49.85, 0, 0]])
    assert len(voxelize(points, area[:3], size, grid_shape(area, size), -1, -1).coords) == 1
    # and what it proposes does fit
    sizes = [float(found) for found in re.findall(r'([\d.]+) \(\d+ voxels\)', sentence)]
    ranges = [tuple(map(float, found)) for found in re.findall(r'from (-[\d.]+) to ([\d.]+)', sentence)[1:]]
    assert len(sizes) == len(ranges) == 2
    for proposed in sizes:
        assert misfits(area, [proposed, *size[1:]]) == []
    for lower, upper in ranges:
        assert misfits([lower, *area[1:3], upper, *area[4:]], size) == []


def test_a_grid_that_is_too_large_is_named_too():
    (sentence,) = misfits([0, -40, -3, 70, 40, 1], [0.36, 0.4, 4])
    assert '194 are made' in sentence and 'points beyond 69.84 are dropped' in sentence
    (sentence,) = misfits([0, -40, -3, 70.1, 40, 1], [0.36, 0.4, 4])
    assert '195 are made, and the grid ends at 70.2, beyond the range' in sentence
    assert 'a range from 0 to 69.84 or from 0 to 70.2' in sentence


@pytest.mark.parametrize('axis', range(3))
def test_every_axis_is_looked_at(axis):
    size = [0.5, 0.5, 0.5]
    size[axis] = 0.3
    (sentence,) = misfits([-5, -5, -5, 5, 5, 5], size)
    assert sentence.startswith('xyz'[axis])


@pytest.mark.parametrize(
    ('area', 'size', 'message'),
    [
        ([0, 0, 1, 1], [1, 1, 1], 'six numbers and voxel_size three'),
        ([0, 0, 0, 1, 1, 1], [1, 1], 'six numbers and voxel_size three'),
        ([0, 0, 0, 1, 1, 1], [1, 0, 1], 'must be positive'),
        ([0, 0, 0, 1, -1, 1], [1, 1, 1], 'at least one voxel wide'),
        ([0, 0, 0, 1, 1, 1], [1, 1, 4], 'at least one voxel wide'),
    ],
)
def test_what_is_no_grid(area, size, message):
    with pytest.raises(ValueError, match=message):
        grid_shape(area, size)
