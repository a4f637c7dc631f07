"""Conversion of the official SST weights (on mmdet3d 0.15) to ours: state dict in, state dict out.

Names and networks are the same; boxes are not. mmdet3d 1.0 turned (w, l, h, yaw) of LiDAR boxes into (l, w, h,
-yaw - pi / 2); points, axes and velocities did not change. So only the last layers that regress sizes and angles
change, and the converted detector finds the same boxes.

Centre heads: sizes (or their logarithms) are swapped; the sine of the new angle is minus the old cosine, the new cosine
minus the old sine.

Anchor heads: residuals of length and width are swapped, and that of the angle changes its sign. An anchor of angle 0
becomes one of -pi / 2, one of 1.57 becomes one of -1.57 - pi / 2. An anchor's box is the same after half a turn, and
the direction classifier decides about half turns, so these are the anchors of 1.57 and 0 up to a difference of
pi / 2 - 1.57, which is added to the bias; hence the two anchors of each size are swapped. A direction bin begins at
`dir_offset`, and bins keep their numbers if the new head has ``dir_offset = pi / 2 - 0.7854``, where 0.7854 is that of
the official configs; with mmdet3d's own -0.7854 all boxes within 45 degrees of the x axis would point backwards. All of
this is exact.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

SOURCE = 'sst-0.15'

CLASSES = ('Car', 'Pedestrian', 'Cyclist')
"""Class order of the official Waymo configs."""

ROTATIONS = (0.0, 1.57)
"""Angles of the anchors that can be converted, the same before and after."""

DIR_OFFSET = 0.7854
"""Lower end of the first direction bin of the official anchor head; that of ours is pi / 2 minus this."""

CODE_SIZE = 7
"""Number of values that encode an anchor box."""

_AFFINE = ('weight', 'bias')
_BATCH_NORM = (*_AFFINE, 'running_mean', 'running_var', 'num_batches_tracked')
_CONV_BN = ('conv.weight', *(f'bn.{name}' for name in _BATCH_NORM))
_ATTENTION = ('in_proj_weight', 'in_proj_bias', 'out_proj.weight', 'out_proj.bias')
# For every row here: the row in the source, and its sign.
_CENTER_ROWS = {'dim': ((1, 0, 2), (1, 1, 1)), 'rot': ((1, 0), (-1, -1))}
_ANCHOR_ROWS = ((0, 1, 2, 4, 3, 5, 6), (1, 1, 1, 1, 1, 1, -1))


def convert_sst(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Converts the weights of SST on mmdet3d 0.15 to those of ``SSTDetector``.

    Args:
        state_dict: All weights of a ``DynamicCenterPoint`` (CenterHead of DCNSeparateHeads) or a ``DynamicVoxelNet``
            (Anchor3DHead with anchors of angles `ROTATIONS`). It is not modified; tensors that need no change are
            shared with the result.

    Returns:
        The same keys and shapes in the same order.

    Raises:
        ValueError: If keys are missing or do not belong to such a detector (one message lists all of them), or if the
            last layer of a box branch has another number of rows than expected.
    """
    _check_keys(state_dict)
    if 'bbox_head.conv_reg.weight' in state_dict:
        changed = _anchor_head(state_dict)
    else:
        changed = _center_head(state_dict)
    return {key: changed.get(key, tensor) for key, tensor in state_dict.items()}


def check_meta(meta: Mapping[str, Any]) -> None:
    """Checks that the anchor head in the config of a checkpoint is one that can be converted.

    Args:
        meta: Meta data that mmcv's runner wrote with the weights; its ``config`` is a text. Without it nothing is
            checked.

    Raises:
        ValueError: If the angles of the anchors are not `ROTATIONS`, or the direction bins do not begin at
            `DIR_OFFSET`.
    """
    config = str(meta.get('config', ''))
    if 'Anchor3DHead' not in config:
        return
    for name, wanted in (('rotations', ROTATIONS), ('dir_offset', (DIR_OFFSET,))):
        for found in re.findall(rf'\b{name}\s*=\s*[\[(]?([-+\d.eE,\s]+)', config):
            values = tuple(float(value) for value in found.split(',') if value.strip())
            if values != wanted:
                raise ValueError(
                    f'the anchor head of this checkpoint has {name} {values}; only {wanted} can be converted'
                )


def _check_keys(keys: Collection[str]) -> None:
    """Checks that the keys are those of one whole detector.

    Raises:
        ValueError: If keys are unknown or missing; the message lists all of them.
    """
    expected = _voxel_encoder(keys) | _backbone(keys) | _neck(keys) | _head(keys)
    problems = []
    for word, found in (('unknown', set(keys) - expected), ('missing', expected - set(keys))):
        if found:
            problems.append(f'{len(found)} {word} keys:' + ''.join(f'\n  {key}' for key in sorted(found)))
    if problems:
        raise ValueError(
            'this is not an SST detector of mmdet3d 0.15 with a centre head (DCNSeparateHead) or an anchor head with '
            'direction classifier, so it cannot be converted as ' + SOURCE + '; ' + '\n'.join(problems)
        )


def _count(keys: Iterable[str], prefix: str) -> int:
    """One more than the largest index after `prefix`, at least 1, so that a missing first layer is reported by name."""
    pattern = re.compile(re.escape(prefix) + r'\.(\d+)\.')
    return 1 + max((int(match[1]) for match in map(pattern.match, keys) if match), default=0)


def _under(prefix: str, names: Iterable[str]) -> set[str]:
    return {f'{prefix}.{name}' for name in names}


def _voxel_encoder(keys: Collection[str]) -> set[str]:
    prefix = 'voxel_encoder.vfe_layers'
    names = ('linear.weight', *(f'norm.{name}' for name in _BATCH_NORM))
    return {key for index in range(_count(keys, prefix)) for key in _under(f'{prefix}.{index}', names)}


def _backbone(keys: Collection[str]) -> set[str]:
    attention = (*_ATTENTION, 'tau') if any(key.endswith('.self_attn.tau') for key in keys) else _ATTENTION
    layer = {f'win_attn.self_attn.{name}' for name in attention}
    norm = _BATCH_NORM if any(key.endswith('.norm1.running_mean') for key in keys) else _AFFINE  # use_bn
    for name, parameters in (('linear1', _AFFINE), ('linear2', _AFFINE), ('norm1', norm), ('norm2', norm)):
        layer |= _under(name, parameters)
    blocks = range(_count(keys, 'backbone.block_list'))
    encoders = [f'backbone.block_list.{block}.encoder_list.{shift}' for block in blocks for shift in (0, 1)]
    expected = {key for encoder in encoders for key in _under(encoder, layer)}
    if any(key.startswith('backbone.linear0.') for key in keys):
        expected |= _under('backbone.linear0', _AFFINE)
    if any(key.startswith('backbone.conv_layer.') for key in keys):
        for index in range(_count(keys, 'backbone.conv_layer')):
            expected |= {f'backbone.conv_layer.{index}.0.weight'}
            expected |= _under(f'backbone.conv_layer.{index}.1', _BATCH_NORM)
    return expected


def _neck(keys: Collection[str]) -> set[str]:
    names = ('0.weight', *(f'1.{name}' for name in _BATCH_NORM))
    return {key for index in range(_count(keys, 'neck.deblocks')) for key in _under(f'neck.deblocks.{index}', names)}


def _head(keys: Collection[str]) -> set[str]:
    if not any(key.startswith('bbox_head.task_heads.') for key in keys):
        return {key for name in ('cls', 'reg', 'dir_cls') for key in _under(f'bbox_head.conv_{name}', _AFFINE)}
    expected = _under('bbox_head.shared_conv', _CONV_BN)
    for task in range(_count(keys, 'bbox_head.task_heads')):
        prefix = f'bbox_head.task_heads.{task}'
        for name in ('cls', 'reg'):
            expected |= _under(f'{prefix}.feature_adapt_{name}', ('weight', 'conv_offset.weight', 'conv_offset.bias'))
        velocity = ('vel',) if any(key.startswith(f'{prefix}.task_head.vel.') for key in keys) else ()
        branches = ['cls_head', *(f'task_head.{name}' for name in ('reg', 'height', 'dim', 'rot', *velocity))]
        for branch in branches:
            last = _count(keys, f'{prefix}.{branch}') - 1
            for index in range(last):
                expected |= _under(f'{prefix}.{branch}.{index}', _CONV_BN)
            expected |= _under(f'{prefix}.{branch}.{last}', _AFFINE)
    return expected


def _center_head(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Converts the last layers of all size and angle branches of a centre head."""
    changed = {}
    for task in range(_count(state_dict, 'bbox_head.task_heads')):
        for branch, (rows, signs) in _CENTER_ROWS.items():
            prefix = f'bbox_head.task_heads.{task}.task_head.{branch}'
            for name in _AFFINE:
                key = f'{prefix}.{_count(state_dict, prefix) - 1}.{name}'
                _check_rows(key, state_dict[key], len(rows))
                changed[key] = _take(state_dict[key], rows, signs)
    return changed


def _anchor_head(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Converts all three layers of an anchor head."""
    anchors = len(state_dict['bbox_head.conv_dir_cls.weight']) // 2
    if anchors == 0 or anchors % len(ROTATIONS):
        raise ValueError(f'bbox_head.conv_dir_cls has {anchors} anchors; with the angles {ROTATIONS} it must be even')
    classes = len(state_dict['bbox_head.conv_cls.weight']) // anchors
    size, signs = _ANCHOR_ROWS
    layers = {
        'conv_cls': (tuple(range(classes)), (1,) * classes),
        'conv_reg': (size, signs),
        'conv_dir_cls': ((0, 1), (1, 1)),
    }
    changed = {}
    for layer, (rows, row_signs) in layers.items():
        width = len(rows)
        order = [(anchor ^ 1) * width + row for anchor in range(anchors) for row in rows]
        for name in _AFFINE:
            key = f'bbox_head.{layer}.{name}'
            _check_rows(key, state_dict[key], anchors * width)
            changed[key] = _take(state_dict[key], order, row_signs * anchors)
    changed['bbox_head.conv_reg.bias'][CODE_SIZE - 1 :: CODE_SIZE] += math.pi / 2 - ROTATIONS[1]
    return changed


def _check_rows(key: str, tensor: Tensor, rows: int) -> None:
    if len(tensor) != rows:
        raise ValueError(f'{key} has {len(tensor)} rows; {rows} are expected for boxes of {CODE_SIZE} numbers')


def _take(tensor: Tensor, rows: Sequence[int], signs: Sequence[int]) -> Tensor:
    """Selects rows in another order, each multiplied by a sign."""
    sign = torch.tensor(signs).to(tensor).reshape(-1, *[1] * (tensor.dim() - 1))
    return tensor[torch.tensor(rows, device=tensor.device)] * sign
