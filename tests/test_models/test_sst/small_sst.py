"""Small scenes of tokens, small transformers and detectors, and settings in which tokens halt."""

from __future__ import annotations

import math
from typing import Any

import torch
from mmdet3d.registry import MODELS
from mmdet3d.structures import Det3DDataSample, LiDARInstance3DBoxes
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData
from torch import Tensor, nn

from mmprune3d.models.sst.backbone import SSTBackbone
from mmprune3d.models.sst.halting_backbone import HaltingSST
from mmprune3d.models.sst.input_layer import SSTInputLayer, WindowedTokens

from .test_center_head import GRID as HEAD_GRID
from .test_center_head import PLAIN, RANGE, VOXEL
from .test_center_head import config as head_config

GRID, WINDOW, WIDTH = (18, 20), (6, 6, 1), 16
"""Cells along x, y; cells of a window; features of a token."""

UNET = dict(type='HaltingUNet', in_channels=8, widths=(6, 8), norm_cfg=dict(type='GN', num_groups=2))
MLP = dict(type='HaltingMLP', in_channels=8)
GATES = (
    dict(block=0, module=UNET, threshold=0.5, bounds=(0.3, 0.6)),
    dict(block=1, module=MLP, threshold=0.5, bounds=(0.5, 0.9)),
)

THREE = (
    dict(block=0, module=UNET, threshold=0.5, bounds=(0.2, 0.5)),
    dict(block=1, module=dict(MLP, in_channels=WIDTH), threshold=0.5, bounds=(0.3, 0.7)),
    dict(block=2, module=MLP, threshold=0.5, bounds=(0.5, 0.9)),
)
LAYERS = [
    dict(),
    dict(post_norm=False),
    dict(cosine=True, non_shared_tau=True),
    dict(backend='explicit'),
    dict(backend='explicit', post_norm=False, cosine=True),
    dict(head_dims=5),
]
SETTINGS: dict[str, dict[str, Any]] = {
    'the paper': dict(),
    'recycle off': dict(recycle=False),
    'scores for a block': dict(score_scope='block'),
    'scores for a layer': dict(score_scope='layer'),
    'three gates': dict(gates=THREE),
    'halt++': dict(unet_to_bev=True),
    'no fusion': dict(gates=(dict(GATES[0], fuse=False), GATES[1])),
    'shares of the rest': dict(gates=(GATES[0], dict(GATES[1], relative=True))),
    'U-Net behind a gate': dict(gates=(dict(GATES[0], module=MLP), dict(GATES[1], module=UNET))),
    'late gates': dict(gates=(dict(GATES[0], block=1), dict(GATES[1], block=2)), score_scope='layer'),
    'one gate': dict(gates=GATES[:1], checkpoint_blocks=(0, 1)),
    'nothing halts': dict(gates=tuple(dict(gate, bounds=(0, 0)) for gate in GATES)),
    'all halt at once': dict(gates=tuple(dict(gate, bounds=(1, 1)) for gate in GATES)),
    'all halt in the end': dict(gates=(GATES[0], dict(GATES[1], bounds=(1, 1)))),
    'tokens': dict(to_bev=False),
}


@ROOT_MODELS.register_module()
class TableScorer(nn.Module):
    """Says for each cell what it was told; so a test chooses what halts."""

    token_wise, latent_channels = True, 0

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.ones(shape))

    def forward(self, feats: Tensor, coords: Tensor, batch_size: int, bev_shape: Any) -> tuple[Tensor, None, None]:
        return self.table[coords[:, 0], coords[:, 2], coords[:, 3]], None, None


def coords_of(sizes: tuple[int, ...], seed: int = 0, grid: tuple[int, int] = GRID) -> Tensor:
    """[N, 4]: so many tokens in each sample, sorted by (b, y, x); half of them close together."""
    generator, rows = torch.Generator().manual_seed(seed), []
    for sample, size in enumerate(sizes):
        near = torch.rand(grid[1], grid[0], generator=generator)
        near[: grid[1] // 3, : grid[0] // 2] -= 0.3
        cells = near.flatten().argsort()[:size].sort().values
        zeros = torch.zeros_like(cells)
        rows.append(torch.stack((zeros + sample, zeros, cells // grid[0], cells % grid[0]), 1))
    return torch.cat(rows)


def scene(
    sizes: tuple[int, ...],
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    grid: tuple[int, int] = GRID,
    window: tuple[int, ...] = WINDOW,
    width: int = WIDTH,
) -> WindowedTokens:
    """Tokens as the input layer gives them; random features."""
    coords = coords_of(sizes, seed, grid)
    feats = torch.randn(len(coords), width, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)
    return SSTInputLayer(window, (*grid, 1))(feats.to(dtype), coords, len(sizes))


def stir(module: nn.Module, seed: int = 0) -> nn.Module:
    """Every parameter and statistic gets a value without meaning, as after training."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in [*module.named_parameters(), *module.named_buffers()]:
            if name.endswith(('running_var', 'tau')):
                value.copy_(0.5 + torch.rand(value.shape, generator=generator))
            elif value.is_floating_point() and not name.endswith('scorer.table'):
                spread = 0.7 / math.sqrt(value[0].numel()) if value.dim() > 1 else 0.2
                centre = 1.0 if 'norm' in name and name.endswith('weight') else 0.0
                value.copy_(centre + spread * torch.randn(value.shape, generator=generator))
                if name.endswith('score.weight'):  # scores far enough apart for a decision
                    value *= 5
    return module


def backbone(kind: type[SSTBackbone] = SSTBackbone, dtype: torch.dtype = torch.float64, **changes: Any) -> nn.Module:
    init_default_scope('mmdet3d')
    blocks = changes.pop('num_blocks', 3)
    settings = dict(
        d_model=[WIDTH] * blocks,
        nhead=[2] * blocks,
        num_blocks=blocks,
        dim_feedforward=[24] * blocks,
        output_shape=[GRID[1], GRID[0]],
        num_attached_conv=1,
        conv_in_channel=WIDTH,
        conv_out_channel=WIDTH,
    )
    return stir(kind(**{**settings, **changes})).to(dtype).eval()


def halting_sst(gates: tuple[dict, ...] = GATES, dtype: torch.dtype = torch.float64, **changes: Any) -> HaltingSST:
    """With the gradient of the equations; see `halted_gradient` for the other one."""
    changes['layer_cfg'] = dict(halted_gradient='derivative') | dict(changes.get('layer_cfg', {}))
    return backbone(HaltingSST, dtype, halting=gates, **changes)


def table_gates(batch_size: int, *settings: dict, grid: tuple[int, int] = GRID) -> tuple[dict, ...]:
    """Gates before the first blocks whose scores are tables of ones."""
    module = dict(type='TableScorer', shape=(batch_size, grid[1], grid[0]))
    return tuple(dict(block=block, module=module, threshold=0.5, **each) for block, each in enumerate(settings))


def built(config: dict) -> nn.Module:
    init_default_scope('mmdet3d')
    return MODELS.build(config)


def detector_config(kind: str = 'HaltingSSTDetector', **changes: Any) -> dict:
    """A detector on the grid of the tests' head. Changes are those of the backbone, or of the detector's parts.

    No norm depends on other samples, so that processes, batch sizes and modes can be compared.
    """
    norm, columns, rows = dict(type='GN', num_groups=2), *HEAD_GRID[:2]
    place = dict(voxel_size=VOXEL, point_cloud_range=RANGE)
    head = head_config(velocity=False, separate_head=dict(PLAIN, norm_cfg=norm))
    parts = dict(
        data_preprocessor=dict(
            type='Det3DDataPreprocessor',
            voxel=True,
            voxel_type='dynamic',
            voxel_layer=dict(max_num_points=-1, max_voxels=(-1, -1), **place),
        ),
        voxel_encoder=dict(
            type='SSTDynamicVFE',
            in_channels=4,
            feat_channels=[8, 8],
            with_cluster_center=True,
            with_voxel_center=True,
            norm_cfg=dict(type='LN'),
            **place,
        ),
        middle_encoder=dict(type='SSTInputLayer', window_shape=(8, 6, 1), sparse_shape=HEAD_GRID),
        train_cfg=head.pop('train_cfg'),
        test_cfg=head.pop('test_cfg'),
        bbox_head=dict(type='SSTCenterHead', norm_cfg=norm, **head),
    )
    if kind == 'HaltingSSTDetector':
        parts['sparsity_loss'] = None
    transformer = dict(
        type='HaltingSST' if kind == 'HaltingSSTDetector' else 'SSTBackbone',
        d_model=[8, 8],
        nhead=[2, 2],
        num_blocks=2,
        dim_feedforward=[16, 16],
        output_shape=[rows, columns],
        num_attached_conv=1,
        conv_in_channel=8,
        conv_out_channel=6,
        norm_cfg=norm,
    )
    if kind == 'HaltingSSTDetector':
        transformer['halting'] = GATES
    own = {key: changes.pop(key) for key in list(changes) if key in parts}
    return dict(type=kind, backbone={**transformer, **changes}, **{**parts, **own})


def cloud(seed: int, objects: int = 2, cells: int = 300) -> dict:
    """One sample: as many boxes, and two points each in as many pillars, all of them, and no others."""
    generator = torch.Generator().manual_seed(seed)
    place = torch.randperm(HEAD_GRID[0] * HEAD_GRID[1], generator=generator)[:cells].repeat(2)
    cell = torch.stack((place % HEAD_GRID[0], place // HEAD_GRID[0]), 1)
    low, size = torch.tensor(RANGE[:2]), torch.tensor(VOXEL[:2])
    xy = low + (cell + 0.1 + 0.8 * torch.rand(2 * cells, 2, generator=generator)) * size
    points = torch.cat((xy, torch.rand(2 * cells, 2, generator=generator)), 1)
    spread = torch.rand(objects, 7, generator=generator) * torch.tensor([10.0, 8, 1, 2, 1, 1, 3])
    boxes = spread + torch.tensor([-5.0, -4, -1, 3, 2, 1, 0])
    sample = Det3DDataSample(metainfo=dict(box_type_3d=LiDARInstance3DBoxes, sample_idx=seed))
    labels = torch.randint(0, 3, (objects,), generator=generator)
    sample.gt_instances_3d = InstanceData(bboxes_3d=LiDARInstance3DBoxes(boxes), labels_3d=labels)
    return dict(inputs=dict(points=points), data_samples=sample)
