"""Hard voxelization: the cells that hold points, and the points of every cell, in order of first appearance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Voxels(NamedTuple):
    """The voxels of one point cloud.

    Attributes:
        points: Points of each voxel [voxels, max_points, features]; unused places are 0.
        coords: Cell numbers along x, y and z [voxels, 3] int32.
        counts: Number of points kept in each voxel [voxels] int32, at most ``max_points``.
    """

    points: Tensor
    coords: Tensor
    counts: Tensor

    def mean(self) -> Tensor:
        """The mean of each voxel's points: [voxels, features]."""
        dtype = torch.promote_types(self.points.dtype, torch.float32)  # bfloat16 cannot count beyond 256
        return (self.points.sum(1, dtype=dtype) / self.counts.to(dtype).unsqueeze(1)).to(self.points.dtype)


def voxelize(
    points: Tensor, lower: Sequence[float], size: Sequence[float], grid: Sequence[int], max_points: int, max_voxels: int
) -> Voxels:
    """Groups the points of one cloud by the cell that they lie in ("hard voxelization" of VoxelNet).

    A voxel keeps its first points in the order of the cloud, and the voxels whose first point comes first are kept.
    The usual sequential kernels keep the same ones; here they are found by sorting instead of with a table of all
    cells.

    Args:
        points: Point cloud [points, features], with x, y, z in metres as the first features.
        lower: Lower limits of the grid along x, y and z in metres.
        size: Size of a cell along x, y and z in metres.
        grid: Number of cells along x, y and z.
        max_points: Largest number of points kept in a voxel; -1 keeps all (as many places as the fullest voxel needs).
        max_voxels: Largest number of voxels kept; -1 keeps all.
    """
    # In the points' own precision, as in mmcv's kernels: a point on a face between two cells falls into the same cell.
    cells = torch.floor((points[:, :3] - points.new_tensor(lower)) / points.new_tensor(size)).long()
    limits = torch.tensor(grid, device=points.device)
    inside = ((cells >= 0) & (cells < limits)).all(1)
    cells, points = cells[inside], points[inside]
    keys = (cells[:, 0] * grid[1] + cells[:, 1]) * grid[2] + cells[:, 2]
    ordered, order = keys.sort(stable=True)  # within a cell the points keep the order of the cloud
    starts = torch.ones_like(ordered, dtype=torch.bool)
    starts[1:] = ordered[1:] != ordered[:-1]
    begins = starts.nonzero().squeeze(1)
    sizes = torch.diff(begins, append=begins.new_tensor([len(ordered)]))
    voxel_of = starts.long().cumsum(0) - 1  # numbered by key
    place = torch.arange(len(ordered), device=points.device) - begins[voxel_of]
    by_appearance = order[begins].argsort()
    if max_voxels >= 0:
        by_appearance = by_appearance[:max_voxels]
    number = torch.full_like(begins, -1)
    number[by_appearance] = torch.arange(len(by_appearance), device=points.device)
    if max_points < 0:
        max_points = int(sizes.max()) if len(sizes) else 0
    kept = (place < max_points) & (number[voxel_of] >= 0)
    filled = points.new_zeros(len(by_appearance), max_points, points.shape[1])
    filled[number[voxel_of[kept]], place[kept]] = points[order[kept]]
    return Voxels(filled, cells[order[begins[by_appearance]]].int(), sizes[by_appearance].clamp(max=max_points).int())
