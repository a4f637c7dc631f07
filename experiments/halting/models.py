"""The SST detectors that the backbone benchmark times: the same weights unhalted, halting, and official-style."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from mmdet3d.structures import Det3DDataSample, LiDARInstance3DBoxes
from mmengine.config import Config
from torch import Tensor, nn

from experiments.models import CONFIGS, build
from mmprune3d.models.sst.backbone import SSTBackbone
from mmprune3d.models.sst.input_layer import WindowedTokens
from mmprune3d.pruning.halting import HaltingRecord

from .official_sst import OfficialBackbone
from .token_layouts import NUSCENES, Grid, TokenLayout, priority, real_layout, rendered_layout

CANDIDATES = 500
"""Cells that pass the score threshold of the head, as in a trained one: with random weights half of all cells would."""


@dataclass(frozen=True)
class Row:
    """A layout of the table.

    Attributes:
        dense: Config of the detector without halting.
        halting: Config of the halting one.
        priority: Which tokens live longest, see `token_layouts.priority`.
        rendered: Tokens of a rendered scan; otherwise those of a file.
    """

    dense: str
    halting: str
    priority: str
    rendered: bool


WAYMO_CONFIGS = ('sst/sst_waymo_paper.py', 'halting/halting_sst_waymo_s89.py')
ROWS: dict[str, Row] = {
    'objects': Row(*WAYMO_CONFIGS, priority='objects', rendered=True),
    'scattered': Row(*WAYMO_CONFIGS, priority='scattered', rendered=True),
    'frame': Row('sst/sst_nuscenes.py', 'halting/halting_sst_nuscenes.py', priority='scattered', rendered=False),
}
"""Layouts by name: a rendered scan on the Waymo grid whose tokens near objects live longest, the same with random
tokens, and a real frame on the nuScenes grid, which comes without boxes."""


@dataclass(frozen=True)
class Detectors:
    """Three forms of a detector with the same weights, and a sample for them.

    Attributes:
        fast: Not halting.
        halting: With halting modules, which `steer` controls.
        official: Not halting, with the published attention scheme.
        sample: What ``test_step`` takes.
        tokens: The sample's tokens, as the backbones get them.
        area: Cells of a window.
    """

    fast: nn.Module
    halting: nn.Module
    official: nn.Module
    sample: dict[str, Any]
    tokens: WindowedTokens
    area: int


def make_layout(row: Row, tokens: int, seed: int, points: Path | None, dims: int) -> TokenLayout:
    """The tokens of a row.

    Args:
        row: The row.
        tokens: Occupied pillars that a rendered scan must have.
        seed: Of the rendered scene.
        points: File of points, for rows that are not rendered.
        dims: Numbers per point in the file.

    Raises:
        ValueError: If a file is needed and none is given.
    """
    if row.rendered:
        return rendered_layout(tokens, seed)
    if points is None:
        raise ValueError('the layout of a real frame needs a file of points')
    return real_layout(points, dims, NUSCENES)


def fitted(model: Config, grid: Grid, window: int | None) -> Config:
    """A copy of a detector's config for another grid and, unless None, another side of the windows in cells."""
    model, (nx, ny) = copy.deepcopy(model), grid.shape
    voxel = [grid.pillar, grid.pillar, grid.area[5] - grid.area[2]]
    area = list(grid.area)
    model.data_preprocessor.voxel_layer.update(point_cloud_range=area, voxel_size=voxel)
    model.voxel_encoder.update(point_cloud_range=area, voxel_size=voxel)
    model.middle_encoder.sparse_shape = [nx, ny, 1]
    if window:
        model.middle_encoder.window_shape = [window, window, 1]
    model.backbone.output_shape = [ny, nx]
    for settings in (model.bbox_head.bbox_coder, model.test_cfg):
        settings.update(voxel_size=voxel[:2], pc_range=area[:2])
    if model.get('train_cfg'):
        model.train_cfg.update(grid_size=[nx, ny, 1], voxel_size=voxel, point_cloud_range=area)
    return model


def make_detectors(row: Row, layout: TokenLayout, window: int | None, device: str = 'cpu') -> Detectors:
    """Builds the three detectors of a row with the same random weights.

    Args:
        row: The row.
        layout: Its points and grid.
        window: Cells along the side of a window; None: as in the config.
        device: 'cpu' or 'cuda'.

    Raises:
        RuntimeError: If the halting detector is not the other one with halting modules added.
    """
    models = [Config.fromfile(CONFIGS / name).model for name in (row.dense, row.halting)]
    dense, halting = (fitted(model, layout.grid, window) for model in models)
    fast, halted, official = (build(config).to(device) for config in (dense, halting, dense))
    sample = {'inputs': {'points': [layout.points]}, 'data_samples': [Det3DDataSample()]}
    sample['data_samples'][0].set_metainfo({'box_type_3d': LiDARInstance3DBoxes})
    with torch.inference_mode():
        inputs = fast.data_preprocessor(sample)['inputs']
        calibrate(fast, inputs)
        tokens = fast.tokens(inputs)
    official.load_state_dict(fast.state_dict())
    added = halted.load_state_dict(fast.state_dict(), strict=False)
    foreign = [key for key in added.missing_keys if not key.startswith('backbone.halting')] + added.unexpected_keys
    if foreign:
        raise RuntimeError(f'{row.halting} and {row.dense} differ in more than halting: {", ".join(foreign)}')
    area = dense.middle_encoder.window_shape[0] * dense.middle_encoder.window_shape[1]
    official.backbone = OfficialBackbone(official.backbone, area).eval()
    return Detectors(fast, halted, official, sample, tokens, area)


def calibrate(detector: nn.Module, inputs: Mapping[str, Any]) -> list[Tensor]:
    """Sets the biases of the heat maps so that `CANDIDATES` cells of each pass the score threshold of the head.

    Returns:
        The biases, one tensor per task.
    """
    head = detector.bbox_head
    threshold = torch.tensor(head.bbox_coder.score_threshold).logit()
    for task, (maps,) in zip(head.task_heads, head(detector.extract_feat(inputs))):
        logits = maps['heatmap'].flatten()
        passing = logits.topk(min(CANDIDATES, logits.numel())).values[-1]
        task.cls_head[-1].bias += threshold.to(passing) - passing
    return [bias.clone() for bias in heatmap_biases(detector)]


def heatmap_biases(detector: nn.Module) -> list[nn.Parameter]:
    """The biases that `calibrate` sets, one parameter per task."""
    return [task.cls_head[-1].bias for task in detector.bbox_head.task_heads]


def set_heatmap_biases(detector: nn.Module, values: Sequence[Tensor]) -> None:
    """Sets the biases of the heat maps to values that `calibrate` returned."""
    for bias, value in zip(heatmap_biases(detector), values):
        bias.copy_(value)


def halted_shares(sparsity: float, layers: int = 8) -> tuple[float, float]:
    """Shares of all tokens that have halted after the module before block 0 and after the one before block 1.

    The second module halts half of the tokens that the first one leaves, as in the paper's bounds; if the sparsity is
    too low for that, the first module halts nothing.

    Args:
        sparsity: Mean over all attention layers of the share of halted tokens.
        layers: Attention layers, two for each block.

    Raises:
        ValueError: If it cannot be reached.
    """
    if not 0 <= sparsity < 1 or layers < 4:
        raise ValueError(f'sparsity must be at least 0 and below 1, with 4 layers or more; got {sparsity}, {layers}')
    first = min(1.0, (1 - sparsity) * layers / (1 + layers / 2))
    second = ((1 - sparsity) * layers - 2 * first) / (layers - 2)
    return 1 - first, 1 - second


def steer(backbone: nn.Module, layout: TokenLayout, kind: str) -> None:
    """Makes the halting modules return the scores of `priority`; they still compute their own, which takes their time.

    Args:
        backbone: Halting, with modules before the blocks 0 and 1.
        layout: Grid and boxes.
        kind: In `token_layouts.PRIORITIES`.

    Raises:
        ValueError: If the modules are elsewhere.
    """
    blocks = [gate.block for gate in backbone.halting]
    if blocks != [0, 1]:
        raise ValueError(f'halting modules must be before the blocks 0 and 1, got {blocks}')
    scores = priority(layout, kind).to(next(backbone.parameters()).device)

    def replace_scores(module: nn.Module, args: tuple, kwargs: dict, found: tuple) -> tuple:
        coords = kwargs['coords'] if 'coords' in kwargs else args[1]
        return scores[coords[:, 2], coords[:, 3]], *found[1:]

    for gate in backbone.halting:
        gate.scorer.register_forward_hook(replace_scores, with_kwargs=True)


def set_sparsity(backbone: nn.Module, sparsity: float) -> None:
    """Sets the bounds of both halting modules so that exactly this mean share of tokens is halted."""
    for gate, share in zip(backbone.halting, halted_shares(sparsity, backbone.num_layers)):
        gate.bounds = (share, share)


def run_blocks(backbone: SSTBackbone, tokens: WindowedTokens, record: HaltingRecord | None = None) -> Tensor:
    """The attention blocks alone: planning, re-planning and picking tokens included, halting modules left out.

    Args:
        backbone: Backbone, halting or not.
        tokens: All N tokens.
        record: Says which tokens each block gets, and the weights of its keys; None: all tokens, unweighted.

    Returns:
        Features [K, C] of the tokens that are left.
    """
    steps = {step.layer // 2: step for step in record.steps} if record else {}
    feats, plans, weights = backbone.embed(tokens), None, None
    for number in range(len(backbone.block_list)):
        if number in steps:
            rows = steps[number].keep.nonzero()[:, 0]
            tokens = replace(tokens, feats=feats).select(rows)
            feats, weights, plans = tokens.feats, steps[number].scores[rows], None
        plans = plans or backbone.plan(tokens)
        feats = backbone.run_block(number, feats, tokens.positions, plans, (weights, weights))
    return feats
