"""Checks that voxels of a given size fill the point cloud range exactly."""

from __future__ import annotations

from collections.abc import Sequence

TOLERANCE = 1e-3
"""Largest tolerated difference between a range and its voxels, in cells: ranges and sizes are rounded decimals."""


def cells_along(lower: float, upper: float, size: float) -> int:
    """Number of cells that mmcv and this package make of a range: the nearest whole number."""
    return round((upper - lower) / size)


def grid_shape(point_cloud_range: Sequence[float], voxel_size: Sequence[float]) -> list[int]:
    """Number of cells along x, y and z.

    Args:
        point_cloud_range: Lower limits x, y, z, then upper limits, in metres.
        voxel_size: Size of a cell along x, y, z in metres.

    Raises:
        ValueError: If `point_cloud_range` does not have six numbers or `voxel_size` three, if a size is not positive,
            or if an axis has no cell.
    """
    if len(point_cloud_range) != 6 or len(voxel_size) != 3:
        raise ValueError(
            'point_cloud_range takes six numbers and voxel_size three, got '
            f'{list(point_cloud_range)} and {list(voxel_size)}'
        )
    axes = list(zip(point_cloud_range[:3], point_cloud_range[3:], voxel_size, strict=True))
    if any(size <= 0 for size in voxel_size) or any(cells_along(*axis) < 1 for axis in axes):
        raise ValueError(
            f'voxel_size={list(voxel_size)} must be positive, and point_cloud_range={list(point_cloud_range)} (lower '
            'x, y, z, upper x, y, z) at least one voxel wide along every axis'
        )
    return [cells_along(*axis) for axis in axes]


def misfits(point_cloud_range: Sequence[float], voxel_size: Sequence[float]) -> list[str]:
    """Describes each axis whose voxels do not fill the range exactly.

    mmcv rounds the number of cells. Where it rounds down, the end of the range has no cells and the points there are
    dropped silently; where it rounds up, the map is larger than the range.

    Args:
        point_cloud_range: Lower limits x, y, z, then upper limits, in metres.
        voxel_size: Size of a cell along x, y, z in metres.

    Returns:
        One sentence for each such axis, with sizes and ranges that fit; an empty list if all axes fit.
    """
    cells = grid_shape(point_cloud_range, voxel_size)
    axes = zip('xyz', point_cloud_range[:3], point_cloud_range[3:], voxel_size, cells, strict=True)
    return [
        _misfit(*axis)
        for axis in axes
        if abs((axis[2] - axis[1]) / axis[3] - axis[4]) > TOLERANCE  # (upper - lower) / size - cells
    ]


def _misfit(axis: str, lower: float, upper: float, size: float, cells: int) -> str:
    end, below = lower + cells * size, max(int((upper - lower) / size), 1)
    effect = f'points beyond {end:g} are dropped' if end < upper else f'the grid ends at {end:g}, beyond the range'
    around = (below, below + 1)
    sizes = ' or '.join(f'{(upper - lower) / count:.7g} ({count} voxels)' for count in around)
    ranges = ' or '.join(_range_of(lower, upper, count * size) for count in around)
    return (
        f'{axis} from {lower:g} to {upper:g} is {(upper - lower) / size:.5g} voxels of {size:g}; {cells} are made, and '
        f'{effect}. A size of {sizes} fits, or with this size a range {ranges}'
    )


def _range_of(lower: float, upper: float, width: float) -> str:
    """A range of this width: centred on 0 if the given range is centred on 0, else from the same lower limit."""
    if abs(lower + upper) < 1e-6:
        return f'from {-width / 2:.6g} to {width / 2:.6g}'
    return f'from {lower:g} to {lower + width:.6g}'
