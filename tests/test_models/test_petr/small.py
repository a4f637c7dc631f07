"""A PETR that is small enough to run in a blink, and batches for it."""

from __future__ import annotations

import numpy as np
import torch
from mmdet3d.registry import MODELS
from mmdet3d.structures import Det3DDataSample, LiDARInstance3DBoxes
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData
from torch import nn

import mmprune3d.models  # noqa: F401

HEIGHT, WIDTH, CAMERAS = 32, 64, 3
PC_RANGE = [-51.2, -51.2, -5.0, 51.2, 51.2, 3.0]


def head_config(**changes: object) -> dict:
    transformer = {'type': 'PETR3DTransformer', 'num_layers': 3, 'embed_dims': 32, 'num_heads': 4}
    transformer |= {'feedforward_channels': 48, **changes.pop('transformer', {})}
    coder = {'type': 'PETR3DBoxCoder', 'pc_range': PC_RANGE, 'max_num': 20, 'num_classes': 4}
    base = {'type': 'PETR3DHead', 'num_classes': 4, 'in_channels': 24, 'num_query': 12, 'depth_num': 8}
    return base | {'transformer': transformer, 'bbox_coder': coder, **changes}


def detector_config(head: dict | None = None, **changes: object) -> dict:
    return {
        'type': 'PETR3D',
        'data_preprocessor': {
            'type': 'Det3DDataPreprocessor',
            'mean': [100.0] * 3,
            'std': [50.0] * 3,
            'pad_size_divisor': 32,
        },
        'img_backbone': {'type': 'mmdet.ResNet', 'depth': 18, 'base_channels': 8, 'out_indices': (2, 3)},
        'img_neck': {'type': 'PETR3DFPN', 'in_channels': [32, 64], 'out_channels': 24, 'num_outs': 2},
        'pts_bbox_head': head_config(**(head or {})),
        **changes,
    }


def build(config: dict, seed: int = 0) -> nn.Module:
    init_default_scope('mmdet3d')
    torch.manual_seed(seed)
    model = MODELS.build(config)
    for branch in getattr(model, 'pts_bbox_head', model).cls_branches:
        nn.init.normal_(branch[-1].bias)  # different scores for different classes
    return model.eval()


def cameras() -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Intrinsics 3x3 and lidar-to-camera 4x4, looking around the car."""
    intrinsic = np.array([[40.0, 0, WIDTH / 2], [0, 40.0, HEIGHT / 2], [0, 0, 1]])
    extrinsics = []
    for angle in np.arange(CAMERAS) * 2 * np.pi / CAMERAS:
        matrix = np.eye(4)
        matrix[:3, :3] = [[np.sin(angle), -np.cos(angle), 0], [0, 0, -1], [np.cos(angle), np.sin(angle), 0]]
        matrix[:3, 3] = [0.1, 0.5, -0.2]
        extrinsics.append(matrix)
    return [intrinsic] * CAMERAS, extrinsics


def sample(num_boxes: int = 5, seed: int = 0, size: tuple[int, int] = (HEIGHT, WIDTH)) -> Det3DDataSample:
    generator = torch.Generator().manual_seed(seed)
    boxes = torch.rand(num_boxes, 9, generator=generator) * 30 - 15
    boxes[:, 2] = -1.0
    boxes[:, 3:6] = boxes[:, 3:6].abs() / 5 + 0.5
    cam2img, lidar2cam = cameras()
    result = Det3DDataSample()
    result.set_metainfo(
        {
            'cam2img': [matrix.tolist() for matrix in cam2img],
            'lidar2cam': [matrix.tolist() for matrix in lidar2cam],
            'img_shape': size,
            'pad_shape': size,
            'box_type_3d': LiDARInstance3DBoxes,
        }
    )
    labels = torch.randint(0, 4, (num_boxes,), generator=generator)
    result.gt_instances_3d = InstanceData(bboxes_3d=LiDARInstance3DBoxes(boxes, box_dim=9), labels_3d=labels)
    return result


def batch(num_samples: int = 2, boxes: tuple[int, ...] = (5, 2), size: tuple[int, int] = (HEIGHT, WIDTH)) -> dict:
    """What a data loader gives to the data preprocessor."""
    generator = torch.Generator().manual_seed(1)
    images = [
        torch.randint(0, 255, (CAMERAS, 3, *size), generator=generator, dtype=torch.uint8) for _ in range(num_samples)
    ]
    samples = [sample(boxes[i % len(boxes)], seed=i, size=size) for i in range(num_samples)]
    return {'inputs': {'img': images}, 'data_samples': samples}


def features(num_samples: int = 2) -> torch.Tensor:
    return torch.randn(num_samples, CAMERAS, 24, 2, 4, generator=torch.Generator().manual_seed(2))
