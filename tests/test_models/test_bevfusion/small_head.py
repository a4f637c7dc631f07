"""A TransFusion head that is quick to build, on a grid that is no square, and batches for it."""

from __future__ import annotations

from typing import Any

import torch
from mmdet3d.registry import MODELS
from mmdet3d.structures import LiDARInstance3DBoxes
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData
from torch import Tensor

from mmprune3d.models.bevfusion import BEVFusion3DTransFusionHead

from .upstream import as_ours

CHANNELS, GRID, PROPOSALS, STRIDE = 8, (12, 20), 6, 0.8
RANGE = [-GRID[0] * STRIDE / 2, -GRID[1] * STRIDE / 2, -5.0, GRID[0] * STRIDE / 2, GRID[1] * STRIDE / 2, 3.0]


def built(config: dict) -> BEVFusion3DTransFusionHead:
    init_default_scope('mmdet3d')
    return MODELS.build(as_ours({'type': 'TransFusionHead', **config}))


def objects(boxes: list[Tensor], labels: list[Tensor]) -> list[InstanceData]:
    return [
        InstanceData(bboxes_3d=LiDARInstance3DBoxes(box, box_dim=9), labels_3d=label)
        for box, label in zip(boxes, labels, strict=True)
    ]


def metas(number: int) -> list[dict]:
    return [{'box_type_3d': LiDARInstance3DBoxes}] * number


def decoder_layer(channels: int = CHANNELS, feedforward: int = 12, heads: int = 2) -> dict:
    return {
        'type': 'TransformerDecoderLayer',
        'self_attn_cfg': {'embed_dims': channels, 'num_heads': heads, 'dropout': 0.0},
        'cross_attn_cfg': {'embed_dims': channels, 'num_heads': heads, 'dropout': 0.0},
        'ffn_cfg': {'embed_dims': channels, 'feedforward_channels': feedforward, 'num_fcs': 2, 'ffn_drop': 0.0},
        'norm_cfg': {'type': 'LN'},
        'pos_encoding_cfg': {'input_channel': 2, 'num_pos_feats': channels},
    }


def coder(**changes: Any) -> dict:
    stride = {'out_size_factor': 8, 'voxel_size': [STRIDE / 8, STRIDE / 8]}
    return {'type': 'TransFusionBBoxCoder', 'pc_range': RANGE[:2], **stride, 'code_size': 10, **changes}


def small_config(**changes: Any) -> dict:
    """A head on a grid that is no square."""
    assigner = {
        'type': 'HungarianAssigner3D',
        'cls_cost': {'type': 'mmdet.FocalLossCost', 'weight': 0.15},
        'reg_cost': {'type': 'BBoxBEVL1Cost', 'weight': 0.25},
        'iou_cost': {'type': 'IoU3DCost', 'weight': 0.25},
    }
    sizes = {'grid_size': [GRID[0] * 8, GRID[1] * 8, 40], 'out_size_factor': 8}
    train_cfg = {
        **sizes,
        'point_cloud_range': RANGE,
        'voxel_size': [STRIDE / 8, STRIDE / 8, 0.2],
        'assigner': assigner,
    }
    config = {
        'num_proposals': PROPOSALS,
        'in_channels': CHANNELS,
        'hidden_channel': CHANNELS,
        'num_classes': 3,
        'nms_kernel_size': 3,
        'num_decoder_layers': 1,
        'decoder_layer': decoder_layer(),
        'common_heads': {'center': (2, 2), 'height': (1, 2), 'dim': (3, 2), 'rot': (2, 2), 'vel': (2, 2)},
        'bbox_coder': coder(),
        'train_cfg': train_cfg,
        'test_cfg': {**sizes, 'dataset': None, 'nms_type': None},
    }
    return {**config, **changes}


def small(**changes: Any) -> BEVFusion3DTransFusionHead:
    torch.manual_seed(0)
    return built(small_config(**changes))


def small_batch(counts: tuple[int, ...]) -> tuple[Tensor, list[InstanceData]]:
    generator = torch.Generator().manual_seed(1)
    low, size = torch.tensor([-4.0, -7, -1, 1, 1, 1, -3, 0, 0]), torch.tensor([8.0, 14, 1, 3, 2, 2, 6, 2, 2])
    boxes = [torch.rand(number, 9, generator=generator) * size + low for number in counts]
    labels = [torch.randint(3, (number,), generator=generator) for number in counts]
    return torch.randn(len(counts), CHANNELS, *GRID, generator=generator), objects(boxes, labels)


def total(losses: dict[str, Tensor]) -> Tensor:
    return sum(value for name, value in losses.items() if 'loss' in name)
