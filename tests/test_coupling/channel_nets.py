"""Small nets whose channels meet in all the ways that fusion detectors know, and a BEVFusion3D with a ResNet."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mmprune3d.coupling.groups import FoundGroups, find_channel_groups
from mmprune3d.pruning.channels import ChannelGroup

ROOT = Path(__file__).resolve().parents[2]


def as_trained_(model: nn.Module, forward: Callable[[nn.Module], object]) -> nn.Module:
    """Norm layers as after a training, so that every channel matters for the output; in eval mode."""
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias, std=0.3)
    with torch.no_grad():
        forward(model.train())
    for norm, momentum in zip(norms, momenta):
        norm.momentum = momentum
    return model.eval()


class Mixed(nn.Module):
    """Residual sum, concatenation, deconvolution, depthwise convolution, linear layers behind a flattened map."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.branch = nn.Conv2d(8, 8, 3, padding=1)
        self.lone = nn.Conv2d(3, 5, 1)
        self.up = nn.ConvTranspose2d(13, 6, 2, stride=2)
        self.depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.down = nn.Conv2d(6, 4, 3, stride=4, padding=1)
        self.hidden = nn.Linear(4 * 4, 12)
        self.tail = nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(self.stem(x)).relu()
        y = y + self.branch(y)
        y = torch.cat([y, self.lone(x)], 1)
        y = self.depthwise(self.up(y)).relu()
        y = torch.nn.functional.max_pool2d(self.down(y).relu(), 2)
        return self.tail(nn.functional.gelu(self.hidden(y.flatten(1))))

    def inputs(self) -> Tensor:
        return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


class SparseToDense(nn.Module):
    """Sparse convolutions with a residual sum, and the map with its heights folded into the channels."""

    def __init__(self, heights_last: bool = True) -> None:
        super().__init__()
        from mmprune3d.layers.sparse_conv import exact_class

        self.heights_last = heights_last
        self.conv1 = exact_class('SubMConv3d')(4, 6, 3, padding=1, bias=False, indice_key='same')
        self.bn1 = nn.BatchNorm1d(6)
        self.conv2 = exact_class('SubMConv3d')(6, 6, 3, padding=1, indice_key='same')
        self.down = exact_class('SparseConv3d')(6, 7, 3, stride=2, padding=1, bias=False)
        self.flat = nn.Conv2d(7 * 2, 5, 3)
        self.tail = nn.Conv2d(5, 2, 1)

    def forward(self, inputs: tuple[Tensor, Tensor]) -> Tensor:
        from spconv.pytorch import SparseConvTensor

        features, coords = inputs
        x = self.conv1(SparseConvTensor(features, coords, [8, 8, 4], 1))
        x = x.replace_feature(self.bn1(x.features).relu())
        y = self.conv2(x)
        x = self.down(y.replace_feature((y.features + x.features).relu()))
        dense = x.dense()  # [B, C, X, Y, Z]
        order = (0, 1, 4, 2, 3) if self.heights_last else (0, 4, 1, 2, 3)
        return self.tail(self.flat(dense.permute(*order).flatten(1, 2)).relu())

    def inputs(self) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(2)
        cells = torch.randperm(8 * 8 * 4, generator=generator)[:90]
        coords = torch.stack([cells * 0, cells // 32, cells // 4 % 8, cells % 4], 1).int()
        return torch.randn(len(coords), 4, generator=generator), coords


@cache
def bevfusion_config() -> Any:
    """The tiny config with a Bottleneck ResNet, half as many BEV cells, and small images."""
    from mmengine.config import Config

    model = Config.fromfile(ROOT / 'configs/bevfusion/bevfusion_tiny.py').model
    model.img_backbone.update(depth=50, base_channels=4)
    model.view_transform.update(image_size=(64, 96), feature_size=(8, 12))
    for axis in ('xbound', 'ybound'):
        model.view_transform[axis] = [-25.6, 25.6, 0.8]
    area = [-25.6, -25.6, -5.0, 25.6, 25.6, 3.0]
    model.data_preprocessor.voxelize_cfg.point_cloud_range = area
    model.pts_middle_encoder.sparse_shape = [128, 128, 21]
    for part in ('train_cfg', 'test_cfg'):
        model.bbox_head[part].grid_size = [128, 128, 21]
    model.bbox_head.train_cfg.point_cloud_range = area
    model.bbox_head.test_cfg.pc_range = model.bbox_head.bbox_coder.pc_range = area[:2]
    return model


def build_bevfusion() -> nn.Module:
    from mmdet3d.registry import MODELS
    from mmengine.registry import init_default_scope

    import mmprune3d.models  # noqa: F401

    init_default_scope('mmdet3d')
    torch.manual_seed(0)
    return as_trained_(MODELS.build(bevfusion_config()), bevfusion_forward)


@cache
def bevfusion_groups() -> FoundGroups:
    return find_channel_groups(build_bevfusion(), bevfusion_forward)


def half_of(groups: list[ChannelGroup], seed: int = 0) -> dict[str, Tensor]:
    """A choice that removes half of the channels of every group."""
    generator = torch.Generator().manual_seed(seed)
    return {g.name: torch.randperm(g.size, generator=generator) >= g.size // 2 for g in groups}


def bevfusion_batch() -> tuple[dict[str, Any], list[dict]]:
    """One sample: two cameras back to back, points all around."""
    generator = torch.Generator().manual_seed(3)
    intrinsics = np.eye(4)
    intrinsics[[0, 1, 0, 1], [0, 1, 2, 2]] = 60, 60, 48, 32
    ahead = np.eye(4)
    ahead[:3, :3] = [[0, 0, 1], [-1, 0, 0], [0, -1, 0]]
    cam2lidar = np.stack([ahead, np.diag([-1.0, -1, 1, 1]) @ ahead])
    cam2img = np.stack([intrinsics] * 2)
    meta = {'lidar2img': cam2img @ np.linalg.inv(cam2lidar), 'cam2img': cam2img, 'cam2lidar': cam2lidar}
    meta |= {'img_aug_matrix': np.stack([np.eye(4)] * 2), 'lidar_aug_matrix': np.eye(4)}
    points = torch.rand(1500, 5, generator=generator) * torch.tensor([50.0, 50, 7, 1, 1])
    points[:, :3] -= torch.tensor([25.0, 25, 4.5])
    return {'imgs': torch.randn(1, 2, 3, 64, 96, generator=generator), 'points': [points]}, [meta]


def bevfusion_forward(model: nn.Module) -> Tensor:
    """The heat map of the head, from which proposals are chosen: the last output that does not jump."""
    batch, metas = bevfusion_batch()
    return model.bbox_head(model.extract_feat(batch, metas), metas)[0][0]['dense_heatmap']
