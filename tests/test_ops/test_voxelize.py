"""Voxelization against mmcv's sequential kernel, and a slow loop."""

from __future__ import annotations

import pytest
import torch
from mmcv.ops import Voxelization
from torch import Tensor

from mmprune3d.models.bevfusion.voxelization import BEVFusion3DVoxelization
from mmprune3d.ops.voxelize import voxelize

RANGE = [-4.0, -3.0, -2.0, 4.0, 3.0, 2.0]
SIZE = [0.5, 0.5, 1.0]
GRID = [16, 12, 4]


def cloud(count: int, seed: int = 0) -> Tensor:
    """Points in and around the grid."""
    return (torch.rand(count, 5, generator=torch.Generator().manual_seed(seed)) - 0.5) * 10


@pytest.mark.parametrize('count', [0, 1, 50, 4000])
@pytest.mark.parametrize(('max_points', 'max_voxels'), [(1, 7), (3, 40), (5, 1000), (3, 1)])
def test_equals_the_sequential_kernel(count: int, max_points: int, max_voxels: int) -> None:
    points = cloud(count)
    ours = voxelize(points, RANGE[:3], SIZE, GRID, max_points, max_voxels)
    theirs, coords, counts = Voxelization(SIZE, RANGE, max_points, max_voxels)(points)
    torch.testing.assert_close(ours.points, theirs, rtol=0, atol=0)
    assert torch.equal(ours.coords, coords.flip(1))
    assert torch.equal(ours.counts, counts)


def test_without_limits_every_point_inside_is_kept_once() -> None:
    points = cloud(500)
    inside = ((points[:, :3] >= torch.tensor(RANGE[:3])) & (points[:, :3] < torch.tensor(RANGE[3:]))).all(1)
    ours = voxelize(points, RANGE[:3], SIZE, GRID, -1, -1)
    assert int(ours.counts.sum()) == int(inside.sum()) > 0
    table: dict[tuple[int, ...], list[Tensor]] = {}
    for point in points[inside]:
        cell = torch.floor((point[:3] - torch.tensor(RANGE[:3])) / torch.tensor(SIZE)).int()
        table.setdefault(tuple(cell.tolist()), []).append(point)
    assert [tuple(cell) for cell in ours.coords.tolist()] == list(table)
    for mean, members in zip(ours.mean(), table.values(), strict=True):
        torch.testing.assert_close(mean, torch.stack(members).mean(0))


@pytest.mark.parametrize('training', [True, False])
def test_a_batch_keeps_its_samples_apart_also_empty_ones(training: bool) -> None:
    layer = BEVFusion3DVoxelization(RANGE, SIZE, 3, [20, 30]).train(training)
    clouds = [cloud(300), torch.full((4, 5), 99.0), cloud(200, seed=1)]
    feats, coords, counts = layer(clouds)
    most = 20 if training else 30
    assert coords[:, 0].bincount(minlength=3).tolist() == [most, 0, most]
    assert len(feats) == len(counts) == 2 * most
    alone, cells, _ = layer([clouds[2]])
    assert torch.equal(feats[most:], alone)
    assert torch.equal(coords[most:, 1:], cells[:, 1:])


def test_points_of_voxels_in_the_order_of_mmdet3d() -> None:
    clouds = [cloud(40), cloud(400)]
    points, coords, _ = BEVFusion3DVoxelization(RANGE, SIZE, -1, voxelize_reduce=False, axes='zyx')(clouds)
    means, reversed_coords, counts = BEVFusion3DVoxelization(RANGE, SIZE, -1)(clouds)
    assert torch.equal(coords[:, 1:].flip(1), reversed_coords[:, 1:])
    torch.testing.assert_close(points.sum(1) / counts[:, None], means)


def test_bad_settings() -> None:
    with pytest.raises(ValueError, match='valid are xyz'):
        BEVFusion3DVoxelization(RANGE, SIZE, axes='yzx')
    with pytest.raises(ValueError, match='six numbers'):
        BEVFusion3DVoxelization(RANGE[:3], SIZE)
    with pytest.raises(ValueError, match='list of tensors'):
        BEVFusion3DVoxelization(RANGE, SIZE)(cloud(3))


def test_the_mean_of_many_points_in_half_precision() -> None:
    """bfloat16 has no number between 300 and 302."""
    points = torch.full((301, 5), 0.25).bfloat16()
    points[:, 3:] = 3.0
    voxels = voxelize(points, RANGE[:3], SIZE, GRID, -1, -1)
    assert voxels.counts.tolist() == [301]
    assert voxels.mean().tolist() == [[0.25, 0.25, 0.25, 3.0, 3.0]]
