"""Reduces the points of each voxel to one feature, whatever their number: mmcv's ``DynamicScatter`` in plain torch.

mmcv 2.1 has this operation for CUDA only. Values, order of voxels and gradients are the same as in mmcv.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

REDUCTIONS = ('max', 'mean', 'sum')


def dynamic_scatter(features: Tensor, coords: Tensor, reduce: str = 'max') -> tuple[Tensor, Tensor]:
    """Reduces the features of all points with the same coordinates.

    Args:
        features: Features of the points [N, C].
        coords: Voxel of each point [N, D], integers. Points with a negative coordinate are outside of the grid: they
            are left out and get no gradient.
        reduce: One of `REDUCTIONS`. The gradient of a maximum goes to the first point that attains it.

    Returns:
        Features [M, C] and coordinates [M, D] of the voxels that have points, ordered by coordinates.

    Raises:
        ValueError: If `reduce` is unknown.
    """
    if reduce not in REDUCTIONS:
        raise ValueError(f'unknown reduction {reduce!r}; valid are {", ".join(REDUCTIONS)}')
    inside = (coords >= 0).all(dim=1)
    if not inside.all():
        features, coords = features[inside], coords[inside]
    if len(coords) == 0:
        return features, coords
    voxels = group_points(coords)
    return reduce_points(features, voxels, reduce), voxels.coords


@dataclass(frozen=True)
class PointGroups:
    """Assignment of points to voxels.

    Attributes:
        coords: Coordinates [M, D], integers, of the voxels that have points, in lexicographic order.
        voxel: Row of each point's voxel [N] int64.
        counts: Number of points in each voxel [M] int64.
    """

    coords: Tensor
    voxel: Tensor
    counts: Tensor


def group_points(coords: Tensor) -> PointGroups:
    """Groups points by their voxel coordinates [N, D]; N is at least 1 and no coordinate is negative."""
    _, voxel, counts = linear_index(coords, coords).unique(return_inverse=True, return_counts=True)
    found = coords.new_empty(len(counts), coords.shape[1])
    found[voxel] = coords  # all points of a voxel write the same
    return PointGroups(found, voxel, counts)


def reduce_points(features: Tensor, groups: PointGroups, reduce: str) -> Tensor:
    """Reduces features [N, C] of points to features [M, C] of their voxels, with `reduce` as in `dynamic_scatter`.

    Sums are in float32 or better and rounded once, to the dtype of the features.
    """
    if reduce == 'max':
        return features.gather(0, _first_maximum(features, groups.voxel, len(groups.counts)))
    values = features.to(torch.promote_types(features.dtype, torch.float32))
    total = values.new_zeros(len(groups.counts), features.shape[1]).index_add(0, groups.voxel, values)
    total = total / groups.counts.to(total)[:, None] if reduce == 'mean' else total
    return total.to(features.dtype)


def voxels_of_points(point_coords: Tensor, voxel_coords: Tensor) -> Tensor:
    """Finds the row of each point's voxel among the voxels.

    Args:
        point_coords: Voxel coordinates of the points [N, D], integers. The result for a point outside of the grid (with
            a negative coordinate) is an arbitrary row.
        voxel_coords: Coordinates of the voxels [M, D], in the order of `dynamic_scatter`: at least one voxel, and all
            voxels that hold points.

    Returns:
        Rows [N] int64, from 0 to M - 1.
    """
    rows = torch.searchsorted(linear_index(voxel_coords, voxel_coords), linear_index(point_coords, voxel_coords))
    return rows.clamp_(max=len(voxel_coords) - 1)


def linear_index(coords: Tensor, within: Tensor) -> Tensor:
    """Numbers the rows of `coords`: one [N] int64 per row, in lexicographic order.

    Args:
        coords: Integer coordinates [N, D].
        within: Coordinates [M, D] whose maxima give the size of the grid along each axis.
    """
    sizes = (within.amax(dim=0) + 1).tolist()
    index = coords[:, 0].long()
    for column, size in zip(coords.unbind(dim=1)[1:], sizes[1:], strict=True):
        index = index * size + column
    return index


@torch.no_grad()
def _first_maximum(features: Tensor, voxels: Tensor, num_voxels: int) -> Tensor:
    """The first point [num_voxels, C] that attains the maximum of each voxel and channel."""
    place = voxels[:, None].expand_as(features)
    shape = (num_voxels, features.shape[1])
    largest = features.new_full(shape, float('-inf')).scatter_reduce(0, place, features, 'amax')
    points = torch.arange(len(features), device=features.device)[:, None]
    attains = torch.where(features < largest[voxels], len(features), points)
    return attains.new_full(shape, len(features)).scatter_reduce(0, place, attains, 'amin')
