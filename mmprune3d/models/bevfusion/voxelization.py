"""Voxelization of a batch of point clouds, the first step of BEVFusion's LiDAR stream."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mmengine.utils import is_list_of
from torch import Tensor, nn
from torch.nn import functional as F

from mmprune3d.layers.settings_check import warn_of_misfits
from mmprune3d.ops.grid import grid_shape
from mmprune3d.ops.voxelize import voxelize


class BEVFusion3DVoxelization(nn.Module):
    """Groups the points of a batch into voxels; this module has no parameters.

    Args:
        point_cloud_range: Lower limits x, y, z, then upper limits, in metres.
        voxel_size: Size of a cell along x, y and z in metres.
        max_num_points: Largest number of points kept in a voxel; -1: all.
        max_voxels: Largest number of voxels kept per sample, for training and test, or one number for both; -1: all.
        voxelize_reduce: Return the mean of each voxel's points instead of the points.
        axes: Order of the coordinates: ``'xyz'`` for BEVFusion's encoder, ``'zyx'`` for mmdet3d's encoders.

    Raises:
        ValueError: If `axes` is unknown, or range and size do not give a grid. Voxels that do not fill the range are
            logged as a warning, with sizes and ranges that fit.
    """

    def __init__(
        self,
        point_cloud_range: Sequence[float],
        voxel_size: Sequence[float],
        max_num_points: int = -1,
        max_voxels: int | Sequence[int] = -1,
        voxelize_reduce: bool = True,
        axes: str = 'xyz',
    ) -> None:
        super().__init__()
        if axes not in ('xyz', 'zyx'):
            raise ValueError(f'axes={axes!r}; valid are xyz (BEVFusion3DSparseEncoder) and zyx (encoders of mmdet3d)')
        warn_of_misfits('data_preprocessor.voxelize_cfg', point_cloud_range, voxel_size)
        self.point_cloud_range = list(point_cloud_range)
        self.lower = self.point_cloud_range[:3]
        self.voxel_size = list(voxel_size)
        self.grid = grid_shape(point_cloud_range, voxel_size)
        self.max_num_points = max_num_points
        self.max_voxels = (max_voxels, max_voxels) if isinstance(max_voxels, int) else tuple(max_voxels)
        self.voxelize_reduce = voxelize_reduce
        self.axes = axes

    @torch.no_grad()
    def forward(self, points: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Computes the voxels of all samples, concatenated.

        Args:
            points: Point clouds [points, features] of each sample, x, y, z in metres first.

        Returns:
            Features ([voxels, features], or [voxels, max_num_points, features] without `voxelize_reduce`), coordinates
            [voxels, 4] int32 (sample, then the cell in the order of `axes`), and points per voxel [voxels] int32.

        Raises:
            ValueError: If `points` is not a list of tensors.
        """
        if not is_list_of(points, Tensor):
            raise ValueError('points must be a list of tensors, one per sample')
        most = self.max_voxels[0 if self.training else 1]
        each = [voxelize(cloud, self.lower, self.voxel_size, self.grid, self.max_num_points, most) for cloud in points]
        coords = [voxels.coords if self.axes == 'xyz' else voxels.coords.flip(1) for voxels in each]
        coords = [F.pad(cells, (1, 0), value=sample) for sample, cells in enumerate(coords)]
        if self.voxelize_reduce:
            feats = [voxels.mean() for voxels in each]
        else:  # without a limit the largest number of points in a voxel differs between samples
            places = max(voxels.points.shape[1] for voxels in each)
            feats = [F.pad(voxels.points, (0, 0, 0, places - voxels.points.shape[1])) for voxels in each]
        return torch.cat(feats), torch.cat(coords), torch.cat([voxels.counts for voxels in each])
