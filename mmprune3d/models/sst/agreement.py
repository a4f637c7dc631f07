"""Checks that settings shared by several parts of SST agree with each other.

None of these mismatches raises an error by itself: tokens would silently share cells and windows with others, and
boxes would be metres off.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from mmprune3d.layers.settings_check import check_equal, check_room, warn_of_misfits
from mmprune3d.ops.grid import grid_shape

VOXELS = 'data_preprocessor.voxel_layer'


def check_detector(detector: nn.Module) -> None:
    """Compares voxels, windows, map and head of an SST detector; parts without such settings are skipped.

    Voxels that do not fill the range are logged as a warning, with sizes and ranges that fit.

    Raises:
        ValueError: If settings differ; the message lists all of them.
    """
    voxels = getattr(detector.data_preprocessor, 'voxel_layer', None)
    if not (hasattr(voxels, 'voxel_size') and hasattr(voxels, 'point_cloud_range')):
        return
    area, size = list(voxels.point_cloud_range), list(voxels.voxel_size)
    warn_of_misfits(VOXELS, area, size)
    grid, why = grid_shape(area, size), f'the grid of {VOXELS} (point_cloud_range, voxel_size)'
    if hasattr(detector.middle_encoder, 'sparse_shape'):
        check_room('middle_encoder.sparse_shape', detector.middle_encoder.sparse_shape, grid, why)
    if hasattr(detector.backbone, 'output_shape') and getattr(detector.backbone, 'to_bev', True):
        check_room('backbone.output_shape', detector.backbone.output_shape, grid[1::-1], f'{why}, y first,')
    encoder = detector.voxel_encoder
    # The targets of the halting loss are drawn on the encoder's grid.
    if getattr(encoder, 'with_voxel_center', False) or hasattr(detector.backbone, 'halting'):
        _check_encoder(encoder, area, size)
    _check_head(getattr(detector, 'bbox_head', None), area, size)


def _check_encoder(encoder: nn.Module, area: Sequence[float], size: Sequence[float]) -> None:
    check_equal(
        'point_cloud_range',
        {VOXELS: area, 'voxel_encoder': getattr(encoder, 'point_cloud_range', None)},
    )
    check_equal('voxel_size', {VOXELS: size, 'voxel_encoder': getattr(encoder, 'voxel_size', None)})


def _check_head(head: nn.Module | None, area: Sequence[float], size: Sequence[float]) -> None:
    train_cfg = getattr(head, 'train_cfg', None) or {}
    if not isinstance(train_cfg, Mapping) or not hasattr(getattr(head, 'bbox_coder', None), 'out_size_factor'):
        return  # anchor generators have a range of their own
    wanted = {'point_cloud_range': _seen_from_above(area), 'voxel_size': size[:2]}
    for key, values in wanted.items():
        if key in train_cfg:
            found = _seen_from_above(train_cfg[key]) if key == 'point_cloud_range' else train_cfg[key][:2]
            check_equal(f'{key} along x and y', {VOXELS: values, 'train_cfg': found})
    coder = head.bbox_coder
    check_equal('the origin of the map (x, y)', {VOXELS: area[:2], 'bbox_head.bbox_coder.pc_range': coder.pc_range[:2]})
    check_equal('voxel_size along x and y', {VOXELS: size[:2], 'bbox_head.bbox_coder': coder.voxel_size[:2]})


def check_centre_head(coder: Any, train_cfg: Mapping[str, Any] | None, tasks: Sequence[Mapping[str, Any]]) -> None:
    """Compares the settings that a centre head gets both in its coder and in its training config.

    Raises:
        ValueError: If the coder and the training targets use different cells, `grid_size` does not match the range, or
            the number of classes of a task differs from the number of its names.
    """
    for number, task in enumerate(tasks):
        if task.get('num_class', len(task['class_names'])) != len(task['class_names']):
            raise ValueError(f'task {number} has num_class={task["num_class"]}, but class_names={task["class_names"]}')
    if not train_cfg:
        return
    factor = train_cfg['out_size_factor']
    check_equal('out_size_factor', {'train_cfg': [factor], 'bbox_coder': [coder.out_size_factor]})
    check_equal(
        'voxel_size along x and y', {'train_cfg': train_cfg['voxel_size'][:2], 'bbox_coder': coder.voxel_size[:2]}
    )
    area = train_cfg['point_cloud_range']
    check_equal('the origin of the map (x, y)', {'train_cfg': area[:2], 'bbox_coder.pc_range': coder.pc_range[:2]})
    spans = zip(area[:2], area[3:5], train_cfg['voxel_size'])
    check_equal(
        'the number of voxels along x and y',
        {
            'train_cfg.grid_size': train_cfg['grid_size'][:2],
            'train_cfg.point_cloud_range / voxel_size': [round((high - low) / size) for low, high, size in spans],
        },
    )


def check_map(shape: Sequence[int], train_cfg: Mapping[str, Any] | None) -> None:
    """Checks that the map [..., y, x] of a head has the number of cells that its settings give.

    Raises:
        ValueError: If the numbers differ; the message says what to set.
    """
    if not train_cfg:
        return
    factor = train_cfg['out_size_factor']
    nx, ny = (size // factor for size in train_cfg['grid_size'][:2])
    if tuple(shape[-2:]) != (ny, nx):
        raise ValueError(
            f'the head got a map of {list(shape[-2:])} cells along y and x, but train_cfg.grid_size='
            f'{list(train_cfg["grid_size"])} and out_size_factor={factor} give {[ny, nx]}: out_size_factor must be the '
            'product of the strides of backbone and neck'
        )


def _seen_from_above(point_cloud_range: Sequence[float]) -> list[float]:
    return [*point_cloud_range[:2], *point_cloud_range[3:5]]
