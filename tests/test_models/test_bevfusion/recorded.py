"""Whole detectors with the sizes and weights of the reference files, and their recorded batches."""

from __future__ import annotations

from typing import Any

import torch
from mmdet3d.registry import MODELS
from mmdet3d.structures import Det3DDataSample, LiDARInstance3DBoxes
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData
from torch import Tensor, nn

from .upstream import as_ours

META_NAMES = {
    'lidar2img': 'lidar2image',
    'cam2img': 'camera_intrinsics',
    'cam2lidar': 'camera2lidar',
    'img_aug_matrix': 'img_aug_matrix',
    'lidar_aug_matrix': 'lidar_aug_matrix',
}


def detector_of(data: dict) -> nn.Module:
    """Our detector with a reference file's sizes and weights."""
    init_default_scope('mmdet3d')
    detector = MODELS.build(as_ours({'type': data['meta']['class'], **data['meta']['constructor']}))
    own = detector.state_dict()
    assert set(own) == set(data['state_dict'])
    for key, value in data['state_dict'].items():  # in place: the recorded layout is that of spconv 2
        own[key].copy_(value)
    return detector


def batch_of(data: dict) -> tuple[dict[str, Any], list[Det3DDataSample]]:
    """Inputs and data samples (with ground truth) of a reference file."""
    recorded = data['inputs']
    inputs = {'points': [points.clone() for points in recorded['points']]}
    if 'imgs' in recorded:
        inputs['imgs'] = recorded['imgs'].clone()
    samples = []
    for number, (boxes, labels) in enumerate(zip(recorded['gt_boxes'], recorded['gt_labels'], strict=True)):
        metas = {name: recorded[key][number].numpy() for name, key in META_NAMES.items() if key in recorded}
        sample = Det3DDataSample(metainfo={**metas, 'box_type_3d': LiDARInstance3DBoxes})
        sample.gt_instances_3d = InstanceData(
            bboxes_3d=LiDARInstance3DBoxes(boxes, box_dim=boxes.shape[1]), labels_3d=labels
        )
        samples.append(sample)
    return inputs, samples


def assert_leaves_close(actual: dict[str, Tensor], expected: dict[str, Any], tolerance: float, group: str) -> None:
    """Leaf by leaf, relative to the group's largest value, as the reference data's README asks."""
    floats = {key: value for key, value in expected.items() if isinstance(value, Tensor) and value.is_floating_point()}
    largest = max(float(value.abs().max()) for value in floats.values() if value.numel())
    for key, value in floats.items():
        assert actual[key].shape == value.shape, (group, key)
        torch.testing.assert_close(
            actual[key].detach(),
            value,
            rtol=0,
            atol=tolerance * largest,
            msg=lambda text, key=key: f'{group}/{key}: {text}',
        )
