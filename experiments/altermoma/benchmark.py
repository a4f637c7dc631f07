"""Time that removed channels save: camera and bird's-eye-view parts of BEVFusion at full size, dense and slim.

Weights are random, and so is the choice of channels: neither changes how long a convolution takes. The LiDAR encoder is
left out: its time depends on the points of a sample.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import partial
from statistics import median
from typing import Any

import torch
from mmengine.config import Config
from torch import Tensor, nn

from experiments.benchmark import stage_times
from experiments.models import CONFIGS, build
from experiments.tables import markdown_table
from mmprune3d.checkpoint.slim import slim_state_dict, structure_of
from mmprune3d.coupling.groups import FoundGroups, find_channel_groups
from mmprune3d.measure.layer_costs import LayerCosts, count_costs, gflops_by_part
from mmprune3d.measure.timing import StageTimer
from mmprune3d.models.slim_detector import SlimDetector
from mmprune3d.pruning.channel_selection import Costs, select_channels
from mmprune3d.pruning.channels import ChannelGroup

ROWS = {
    'r101_second': 'bevfusion/bevfusion_lidar-cam_r101_second0075.py',
    'tiny': 'bevfusion/bevfusion_tiny.py',
}
"""Row -> config."""
SHARES = (0.312, 0.567)
"""Shares of the FLOPs that are removed in Table 5 at "30 %" and "50 %"."""
ROUND_TO = {'r101_second': 32, 'tiny': 1}
"""Row -> what kept channels are a multiple of: 32 are two vector registers of float32 (AVX-512)."""
PARTS = {'camera': ('img_backbone', 'img_neck', 'view_transform'), 'bev': ('fusion_layer', 'pts_backbone', 'pts_neck')}
PROBE_CELLS = 16
"""Side of the map behind the fuser on which coupled channels are looked for."""


def probing_config(model: Config) -> Config:
    """A model's config with the same widths, small images and a small area, to find coupled channels quickly."""
    model = copy.deepcopy(model)
    voxels = model.data_preprocessor.voxelize_cfg
    factor = model.bbox_head.test_cfg.out_size_factor
    half = PROBE_CELLS * factor * voxels.voxel_size[0] / 2
    heights = voxels.point_cloud_range[2], voxels.point_cloud_range[5]
    area = [-half, -half, heights[0], half, half, heights[1]]
    shape = [PROBE_CELLS * factor, PROBE_CELLS * factor, model.pts_middle_encoder.sparse_shape[2]]
    voxels.point_cloud_range = area
    model.pts_middle_encoder.sparse_shape = shape
    model.view_transform.update(image_size=(64, 96), feature_size=(8, 12))
    for axis in ('xbound', 'ybound'):
        model.view_transform[axis] = [-half, half, model.view_transform[axis][2]]
    for settings in (model.bbox_head.train_cfg, model.bbox_head.test_cfg):
        settings.grid_size = shape
    model.bbox_head.train_cfg.point_cloud_range = area
    model.bbox_head.test_cfg.pc_range = model.bbox_head.bbox_coder.pc_range = area[:2]
    return model


def fabricated_inputs(model: nn.Module, cameras: int, seed: int = 0) -> tuple[dict[str, Any], list[dict]]:
    """Random images and points, and cameras in a circle that look outwards, for the sizes of a detector."""
    generator = torch.Generator().manual_seed(seed)
    height, width = model.view_transform.image_size
    voxels = model.pts_voxel_layer
    spans = torch.tensor(voxels.grid) * torch.tensor(voxels.voxel_size)
    points = torch.rand(20000, 5, generator=generator)
    points[:, :3] = points[:, :3] * spans + torch.tensor(voxels.lower)
    intrinsics = torch.eye(4)
    intrinsics[0, 0] = intrinsics[1, 1] = width / 2
    intrinsics[0, 2], intrinsics[1, 2] = width / 2, height / 2
    to_lidar = []
    for number in range(cameras):
        angle = torch.tensor(2 * torch.pi * number / cameras)
        pose = torch.eye(4)
        # the camera's z looks along the angle, its x to the right, its y down
        forward = torch.stack([angle.cos(), angle.sin(), torch.tensor(0.0)])
        right = torch.stack([angle.sin(), -angle.cos(), torch.tensor(0.0)])
        pose[:3, 0], pose[:3, 1], pose[:3, 2] = right, torch.tensor([0.0, 0.0, -1.0]), forward
        to_lidar.append(pose)
    cam2lidar = torch.stack(to_lidar)
    metas = {
        'cam2img': intrinsics.expand(cameras, 4, 4).numpy(),
        'cam2lidar': cam2lidar.numpy(),
        'lidar2img': (intrinsics @ cam2lidar.inverse()).numpy(),
    }
    imgs = torch.randn(1, cameras, 3, height, width, generator=generator)
    return {'imgs': imgs, 'points': [points]}, [metas]


class Parts(nn.Module):
    """The timed parts of a detector, run one after the other.

    Args:
        detector: A BEVFusion3D.
    """

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.detector = detector
        for name, children in PARTS.items():
            setattr(self, name, _Part(detector, name, children))

    def forward(self, inputs: dict[str, Any], metas: list[dict], lidar: Tensor) -> Tensor:
        """The output of the BEV neck, given the map of the LiDAR stream [1, C, x, y]."""
        return self.bev([self.camera(inputs, metas), lidar])


class _Part(nn.Module):
    """Children of the detector as one module, so that hooks can time it."""

    def __init__(self, detector: nn.Module, name: str, children: Sequence[str]) -> None:
        super().__init__()
        self.members = nn.ModuleList(getattr(detector, child) for child in children)
        self.run = detector.extract_img_feat if name == 'camera' else self._fuse

    def _fuse(self, maps: list[Tensor]) -> Tensor:
        fuser, backbone, neck = self.members
        return neck(backbone(fuser(maps)))[0]

    def forward(self, *args: Any) -> Tensor:
        return self.run(*args)


def groups_of(model: Config) -> FoundGroups:
    """Groups of coupled channels of the detector."""
    small = build(probing_config(model))
    inputs, metas = fabricated_inputs(small, cameras=1)

    def forward(detector: nn.Module) -> list[Tensor]:
        raw = detector.bbox_head(detector.extract_feat(inputs, metas), metas)[0][0]
        return [raw['dense_heatmap']]

    return find_channel_groups(small, forward)


@torch.no_grad()
def measure(
    row: str, repeats: int, shares: Sequence[float] = SHARES, cameras: int = 6, round_to: int | None = None
) -> dict[str, Any]:
    """GFLOPs and median milliseconds of the parts, dense and slim; all take turns.

    Args:
        row: Name in `ROWS`.
        repeats: Timed rounds; one more warms up.
        shares: Shares of the FLOPs of camera and BEV parts that are removed.
        cameras: Number of images of a sample.
        round_to: Kept channels are a multiple of this; None takes that of the row in `ROUND_TO`.

    Returns:
        ``row``, and ``variants``: for 'dense' and each share ``gflops``, ``ms`` (part and 'total' -> number) and for
        slim ones ``saved``: the time saved over the FLOPs saved.
    """
    config = Config.fromfile(CONFIGS / ROWS[row]).model
    model = build(config)
    inputs, metas = fabricated_inputs(model, cameras)
    lidar = torch.rand(1, *lidar_map(model, inputs, metas))
    dense = Parts(model)
    costs = count_costs(model, lambda: dense(inputs, metas, lidar))
    groups = [group for group in groups_of(config).groups if in_parts(group)]
    variants = {'dense': (dense, costs)}
    for share in shares:
        slim = slimmed(config, model, groups, costs, share, round_to or ROUND_TO[row])
        variants[f'-{100 * share:.1f} %'] = (
            slim,
            count_costs(slim.detector, lambda slim=slim: slim(inputs, metas, lidar)),
        )
    timers = {name: StageTimer({part: getattr(v[0], part) for part in PARTS}) for name, v in variants.items()}
    calls = {
        name: partial(timers[name].measure, partial(parts, inputs, metas, lidar))
        for name, (parts, _) in variants.items()
    }
    times = stage_times(calls, repeats, row)
    return {'row': row, 'variants': summarized({name: v[1] for name, v in variants.items()}, times)}


def lidar_map(model: nn.Module, inputs: dict[str, Any], metas: list[dict]) -> tuple[int, int, int]:
    """(channels, x, y) of the LiDAR map that the fuser takes."""
    camera = model.extract_img_feat(inputs, metas)
    return model.fusion_layer[0].in_channels - camera.shape[1], *camera.shape[2:]


def in_parts(group: ChannelGroup) -> bool:
    """Whether all layers that produce the channels of a group are timed."""
    timed = tuple(f'{child}.' for children in PARTS.values() for child in children)
    return all(member.tensor.startswith(timed) for member in group.members if member.role == 'out')


def slimmed(
    config: Config, model: nn.Module, groups: Sequence[ChannelGroup], costs: LayerCosts, share: float, round_to: int
) -> Parts:
    """The parts without `share` of their FLOPs, channels chosen at random."""
    generator = torch.Generator().manual_seed(0)
    scores = {group.name: torch.rand(group.size, generator=generator) for group in groups}
    flops = Costs(costs.per_element, costs.shapes, costs.fixed)
    chosen = select_channels(scores, groups, ('flops', share), flops, round_to=round_to)
    weights = slim_state_dict(model.state_dict(), groups, chosen.keep)
    slim = SlimDetector(config, structure_of(weights)).eval()
    slim.load_state_dict(weights)
    return Parts(slim)


def summarized(costs: Mapping[str, Costs], times: Mapping[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Medians and ratios."""
    made: dict[str, Any] = {}
    for name, each in costs.items():
        spent = gflops_by_part(each, PARTS)
        taken = {part: median(time[part] for time in times[name]) for part in PARTS}
        made[name] = {'gflops': {part: spent[part] for part in (*PARTS, 'total')}}
        made[name]['ms'] = taken | {'total': sum(taken.values())}
        if name != 'dense':
            saved = {kind: 1 - made[name][kind]['total'] / made['dense'][kind]['total'] for kind in ('gflops', 'ms')}
            made[name]['saved'] = saved | {'ratio': saved['ms'] / saved['gflops']}
    return made


def markdown(results: Sequence[Mapping[str, Any]]) -> str:
    """One table for all rows."""
    heads = ('detector', 'FLOPs removed', 'GFLOPs', 'camera (ms)', 'BEV (ms)', 'time saved', 'saved: time / FLOPs')
    rows = (_cells(one['row'], *variant) for one in results for variant in one['variants'].items())
    return '\n'.join(markdown_table(heads, rows, 'll'))


def _cells(row: str, name: str, figures: Mapping[str, Any]) -> list[str]:
    ms, saved = figures['ms'], figures.get('saved')
    last = ['', ''] if saved is None else [f'{100 * saved["ms"]:.1f} %', f'{saved["ratio"]:.2f}']
    return [row, name, f'{figures["gflops"]["total"]:.1f}', f'{ms["camera"]:.0f}', f'{ms["bev"]:.0f}', *last]
