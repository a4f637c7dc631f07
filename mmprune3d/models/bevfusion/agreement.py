"""Checks that settings shared by several parts of BEVFusion agree with each other and with the batch.

None of these mismatches raises an error by itself: boxes and rays would silently be metres or pixels off.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from mmprune3d.layers.settings_check import check_columns, check_equal, check_room

VOXELS = 'data_preprocessor.voxelize_cfg'


def check_voxels(voxels: Any | None, encoder: nn.Module | None) -> None:
    """Checks that the grid of a middle encoder is large enough for the voxels.

    Args:
        voxels: The ``BEVFusion3DVoxelization`` of the detector; None skips the check.
        encoder: The middle encoder, or None.

    Raises:
        ValueError: If ``sparse_shape`` or ``output_shape`` is smaller than the grid.
    """
    if voxels is None:
        return
    why = f'the grid of {VOXELS} (point_cloud_range, voxel_size)'
    if hasattr(encoder, 'sparse_shape'):
        need = voxels.grid if voxels.axes == 'xyz' else voxels.grid[::-1]
        check_room('pts_middle_encoder.sparse_shape', encoder.sparse_shape, need, why)
    elif hasattr(encoder, 'ny') and hasattr(encoder, 'nx'):  # PointPillarsScatter
        check_room('pts_middle_encoder.output_shape', (encoder.ny, encoder.nx), voxels.grid[1::-1], why)


def check_place(voxels: Any | None, view_transform: nn.Module | None, head: nn.Module | None) -> None:
    """Checks that the LiDAR map, the camera map and the head cover the same range along x and y.

    Raises:
        ValueError: If they differ; the message lists all settings.
    """
    limits: dict[str, Sequence[float] | None] = {}
    if voxels is not None:
        limits[f'{VOXELS}.point_cloud_range'] = _seen_from_above(voxels.point_cloud_range)
    if hasattr(view_transform, 'bounds'):
        (x, y, _), name = view_transform.bounds, 'view_transform.xbound and ybound'
        limits[name] = (x[0], y[0], x[1], y[1])
    train_cfg = getattr(head, 'train_cfg', None) or {}
    if 'point_cloud_range' in train_cfg:
        limits['bbox_head.train_cfg.point_cloud_range'] = _seen_from_above(train_cfg['point_cloud_range'])
    check_equal('the range along x and y (lower x, y, upper x, y)', limits)
    begins = {name: values[:2] for name, values in limits.items() if values is not None}
    origin = getattr(getattr(head, 'bbox_coder', None), 'origin', None)
    check_equal('the origin of the map (x, y)', {**begins, 'bbox_head.bbox_coder.pc_range': origin})


def check_head(coder: Any, train_cfg: Mapping[str, Any] | None, test_cfg: Mapping[str, Any]) -> None:
    """Checks that the box coder and the training and test settings of a TransFusion head describe the same cells.

    Raises:
        ValueError: If they differ; the message lists all settings.
    """
    train_cfg = train_cfg or {}
    cells: dict[str, Sequence[float] | None] = {'bbox_coder': coder.cell_size}
    origins: dict[str, Sequence[float] | None] = {'bbox_coder.pc_range': coder.origin}
    for name, config in (('train_cfg', train_cfg), ('test_cfg', test_cfg)):
        if 'voxel_size' in config and 'out_size_factor' in config:
            cells[name] = [size * config['out_size_factor'] for size in config['voxel_size'][:2]]
        for key in ('point_cloud_range', 'pc_range'):
            if key in config:
                origins[f'{name}.{key}'] = config[key][:2]
    check_equal('the size of a cell of the map (voxel_size * out_size_factor, along x and y)', cells)
    check_equal('the origin of the map (x, y)', origins)
    if {'grid_size', 'point_cloud_range', 'voxel_size'} <= set(train_cfg):
        lower, upper = train_cfg['point_cloud_range'][:2], train_cfg['point_cloud_range'][3:5]
        spans = zip(lower, upper, train_cfg['voxel_size'])
        need = [round((high - low) / size) for low, high, size in spans]
        check_equal(
            'the number of voxels along x and y',
            {
                'train_cfg.grid_size': train_cfg['grid_size'][:2],
                'train_cfg.point_cloud_range / voxel_size': need,
                'test_cfg.grid_size': test_cfg['grid_size'][:2] if test_cfg.get('grid_size') else None,
            },
        )


def check_canvas(canvas: Sequence[int], image_size: Sequence[int] | None) -> None:
    """Checks that the padded images of a batch have the size for which the viewing rays were computed.

    Raises:
        ValueError: If the sizes differ; the message says what to set.
    """
    if image_size is None or tuple(canvas) == tuple(image_size):
        return
    raise ValueError(
        f'the images of the batch are {canvas[0]} x {canvas[1]} pixels (height x width, after padding by '
        f'data_preprocessor.pad_size_divisor), but view_transform.image_size={list(image_size)}: rays would be cast '
        f'through other pixels. Set view_transform.image_size={list(canvas)}, and feature_size to the size of the '
        'features of such images; or let the pipeline make images of image_size'
    )


def check_cameras(number: int, metas: Sequence[Mapping[str, Any]]) -> None:
    """Checks that every sample has one matrix per image.

    Raises:
        ValueError: If the numbers differ.
    """
    keys = ('lidar2img', 'cam2img', 'cam2lidar', 'img_aug_matrix')
    for sample, meta in enumerate(metas):
        for key in keys:
            if key in meta and len(meta[key]) != number:
                raise ValueError(
                    f'sample {sample} has {number} images and {len(meta[key])} matrices {key}: a pipeline that '
                    'removes or reorders images must do the same to all of ' + ', '.join(keys)
                )


def check_point_columns(points: Sequence[Tensor], voxels: Any, encoder_cfg: Mapping[str, Any], middle: Any) -> None:
    """Checks that point clouds have the number of columns for which the LiDAR stream was built.

    Raises:
        ValueError: If the number of columns differs; the message names the settings.
    """
    columns = points[0].shape[1]
    if voxels.voxelize_reduce:  # the mean of a voxel's points is the input of the middle encoder
        if hasattr(middle, 'in_channels'):
            check_columns(columns, middle.in_channels, 'pts_middle_encoder.in_channels')
    elif 'in_channels' in encoder_cfg:
        check_columns(columns, encoder_cfg['in_channels'], 'pts_voxel_encoder.in_channels')
    elif columns < encoder_cfg.get('num_features', 0):  # HardSimpleVFE uses the first num_features columns
        check_columns(columns, encoder_cfg['num_features'], 'pts_voxel_encoder.num_features')


def _seen_from_above(point_cloud_range: Sequence[float]) -> list[float]:
    return [*point_cloud_range[:2], *point_cloud_range[3:5]]
