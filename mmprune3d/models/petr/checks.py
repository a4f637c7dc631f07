"""Checks of PETR's settings and data before the first computation; the messages name the settings in the config."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

CODE_SIZES = (8, 10)
NO_VELOCITY = (
    'the boxes of the data have no velocity, but the head predicts velocities (10 code_weights). Either set '
    'model.pts_bbox_head.code_weights to 8 numbers, such as [1.0] * 8, and to begin with weights that predict '
    "velocities add custom_hooks=[dict(type='AllowShapeMismatchHook', prefixes=['pts_bbox_head.reg_branches'])]; or "
    'give the boxes velocities (with_velocity=True of the dataset, `velocity` in its info file).'
)


def check_range(name: str, values: Sequence[float]) -> None:
    """Raises ValueError unless `values` are six numbers, lower x, y, z and upper x, y, z, with lower < upper."""
    if len(values) != 6 or not all(low < high for low, high in zip(values[:3], values[3:])):
        raise ValueError(f'{name}={list(values)}: must be six numbers, lower x, y, z and upper x, y, z')


def check_depth(depth_start: float, position_range: Sequence[float]) -> None:
    """Raises ValueError unless the first depth is at least 0 and less than the upper x of `position_range`."""
    check_range('position_range', position_range)
    if not 0 <= depth_start < position_range[3]:
        raise ValueError(
            f'depth_start={depth_start:g} must be from 0 to below the upper x of position_range, {position_range[3]:g}'
        )


def check_counts(**counts: int) -> None:
    """Raises ValueError unless all values are whole numbers of at least 1."""
    wrong = [f'{name}={value!r}' for name, value in counts.items() if not isinstance(value, int) or value < 1]
    if wrong:
        raise ValueError(f'{", ".join(wrong)}: must be a whole number, at least 1')


def check_width(embed_dims: int, num_heads: int) -> None:
    """Raises ValueError unless the width is a multiple of 4 (sine embedding of positions) and of the heads."""
    check_counts(embed_dims=embed_dims, num_heads=num_heads)
    if embed_dims % 4 or embed_dims % num_heads:
        raise ValueError(f'embed_dims={embed_dims} must be a multiple of 4 and of num_heads={num_heads}')


def check_codes(code_weights: Sequence[float]) -> None:
    """Raises ValueError unless there are 8 weights, or 10 for boxes with velocities."""
    if len(code_weights) not in CODE_SIZES:
        raise ValueError(f'there are {len(code_weights)} code_weights, but boxes have 8 codes, or 10 with velocities')


def check_same_classes(num_classes: int, of_part: int, part: str) -> None:
    """Raises ValueError unless a part of the detector has the same number of classes as the head."""
    if num_classes != of_part:
        raise ValueError(
            f'{part}.num_classes is {of_part}, but pts_bbox_head.num_classes is {num_classes}: both are the number of '
            'classes of the dataset'
        )


def check_cameras(images: int, cameras: int) -> None:
    """Raises ValueError unless a sample has one camera per image."""
    if images != cameras:
        raise ValueError(
            f'{images} images per sample, but matrices of {cameras} cameras in its meta information '
            '(cam2img and lidar2cam, or lidar2img)'
        )


def check_truth(sample: Any, num_classes: int, num_codes: int) -> None:
    """Raises ValueError unless the head can be trained with the ground truth of a sample.

    Args:
        sample: Training sample, a ``Det3DDataSample``.
        num_classes: Number of classes of the head.
        num_codes: Number of entries of the head's box codes.
    """
    truth = sample.get('gt_instances_3d', {})
    if 'bboxes_3d' not in truth or 'labels_3d' not in truth:
        raise ValueError(
            'a training sample has no boxes or no labels: the training pipeline needs LoadAnnotations3D and '
            "Pack3DDetInputs(keys=[..., 'gt_bboxes_3d', 'gt_labels_3d']), the info file annotations"
        )
    boxes, labels = truth.bboxes_3d, truth.labels_3d
    if boxes.tensor.shape[1] < num_codes - 1:  # the code has sine and cosine where the box has one angle
        raise ValueError(NO_VELOCITY)
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        found = sorted(set(labels.tolist()) - set(range(num_classes)))
        raise ValueError(
            f'the data have labels {found}, but num_classes={num_classes} allows 0 to {num_classes - 1}: set '
            'num_classes of pts_bbox_head, of its bbox_coder and of aux_head to the number of classes of the dataset'
        )
