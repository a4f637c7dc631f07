"""The whole detector through mmdet3d's data structures, with both sensors and with either alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from mmdet3d.registry import MODELS, TRANSFORMS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch import nn

import mmprune3d
import mmprune3d.datasets.transforms
import mmprune3d.models
from mmprune3d import adapters
from mmprune3d.adapters.learned_queries import find_queries, make_prunable
from mmprune3d.pruning.tggbc import TgGBCPlan
from tests.reference import reference_files
from tests.test_models.test_petr.small import CAMERAS, HEIGHT, WIDTH, sample

CONFIGS = Path(mmprune3d.__file__).parents[1] / 'configs' / 'cmt'
NAMES = {
    'cmt_fusion_voxel0100_r50_full.json': 'cmt_lidar-cam_r50_voxel0100_800x320.py',
    'cmt_fusion_voxel0075_vov_full.json': 'cmt_lidar-cam_vov_voxel0075_1600x640.py',
    'cmt_lidar_voxel0075_full.json': 'cmt_lidar_voxel0075.py',
}
RANGE = [-16.0, -16.0, -5.0, 16.0, 16.0, 3.0]
PILLAR = [0.5, 0.5, 8.0]
HEADS = ('CMT3DHead', 'CMT3DImageHead', 'CMT3DLidarHead')


def small_config(head: str, **changes: object) -> dict[str, Any]:
    points = {
        'pts_voxel_encoder': {'type': 'HardSimpleVFE', 'num_features': 4},
        'pts_middle_encoder': {'type': 'PointPillarsScatter', 'in_channels': 4, 'output_shape': [64, 64]},
        'pts_backbone': {
            'type': 'SECOND',
            'in_channels': 4,
            'out_channels': [8],
            'layer_nums': [1],
            'layer_strides': [8],
        },
    }
    images = {
        'img_backbone': {'type': 'mmdet.ResNet', 'depth': 18, 'base_channels': 8, 'out_indices': (2, 3)},
        'img_neck': {'type': 'PETR3DFPN', 'in_channels': [32, 64], 'out_channels': 32, 'num_outs': 2},
    }
    return {
        'type': 'CMT3D',
        'data_preprocessor': {
            'type': 'Det3DDataPreprocessor',
            'mean': [100.0] * 3,
            'std': [50.0] * 3,
            'pad_size_divisor': 32,
            'voxel': True,
            'voxel_layer': {
                'max_num_points': 5,
                'point_cloud_range': RANGE,
                'voxel_size': PILLAR,
                'max_voxels': (500, 500),
            },
        },
        **({} if head == 'CMT3DImageHead' else points),
        **({} if head == 'CMT3DLidarHead' else images),
        'pts_bbox_head': {
            'type': head,
            'tasks': [{'num_class': 1}, {'num_class': 3}],
            'bbox_coder': {'type': 'CMT3DBBoxCoder', 'pc_range': RANGE, 'num_classes': 4, 'max_num': 300},
            'grid_size': [64, 64, 1],
            'in_channels': 8,
            'num_query': 12,
            'hidden_dim': 32,
            'depth_num': 8,
            'transformer': {'num_layers': 3, 'num_heads': 4, 'feedforward_channels': 48},
            'denoising': {'groups': 3},
            **changes,
        },
    }


def build(head: str) -> nn.Module:
    init_default_scope('mmdet3d')
    torch.manual_seed(0)
    model = MODELS.build(small_config(head))
    model.init_weights()
    return model.eval()


def batch() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    points = [torch.rand(200, 4, generator=generator) * 20 - 10 for _ in range(2)]
    images = [torch.randint(0, 255, (CAMERAS, 3, HEIGHT, WIDTH), generator=generator).byte() for _ in range(2)]
    samples = [sample(num_boxes=count, seed=count) for count in (4, 2)]
    return {'inputs': {'points': points, 'img': images}, 'data_samples': samples}


@pytest.mark.parametrize('head', HEADS)
def test_predict(head: str) -> None:
    found = build(head).test_step(batch())
    assert len(found) == 2
    for each in found:
        boxes = each.pred_instances_3d
        assert len(boxes.scores_3d) == 12 * 4  # max_num is more than there are: all pairs
        assert boxes.bboxes_3d.tensor.shape == (12 * 4, 9)
        assert set(boxes.labels_3d.tolist()) == {0, 1, 2, 3}


@pytest.mark.parametrize('head', HEADS)
def test_loss(head: str) -> None:
    model = build(head).train()
    data = model.data_preprocessor(batch(), True)
    losses = model(**data, mode='loss')
    assert {'loss_cls', 'loss_bbox', 'd0.loss_cls', 'd1.dn_loss_bbox', 'dn_loss_cls'} <= set(losses)
    sum(losses.values()).backward()
    missing = [name for name, parameter in model.pts_bbox_head.named_parameters() if parameter.grad is None]
    assert missing == []


@pytest.mark.parametrize('head', HEADS)
def test_keys_are_pruned_and_none_is_the_identity(head: str) -> None:
    model = build(head)
    before = [each.pred_instances_3d.scores_3d for each in model.test_step(batch())]
    adapters.attach(model, TgGBCPlan(r=0))
    after = [each.pred_instances_3d.scores_3d for each in model.test_step(batch())]
    assert all(map(torch.equal, before, after))
    plan = TgGBCPlan(r=10, n=2)
    mmprune3d.prune(model, plan)
    counts = adapters.keys_per_layer(model, lambda: model.test_step(batch()))
    total = {'CMT3DHead': 64 + CAMERAS * 8, 'CMT3DImageHead': CAMERAS * 8, 'CMT3DLidarHead': 64}[head]
    first, second, _ = plan.removals(3, total)
    assert counts == [total, total - first, total - 10]
    assert first + second == 10


@pytest.mark.parametrize('counts', [(0, 0), (0, 3)])
def test_samples_without_objects(counts: tuple[int, int]) -> None:
    model, data = build('CMT3DHead').train(), batch()
    data['data_samples'] = [sample(num_boxes=count, seed=count) for count in counts]
    losses = model(**model.data_preprocessor(data, True), mode='loss')
    total = sum(losses.values())
    total.backward()
    assert torch.isfinite(total)
    assert all(parameter.grad is not None for parameter in model.pts_bbox_head.parameters())


def test_sparse_encoder_drops_voxels_outside_of_its_grid() -> None:
    pytest.importorskip('spconv')
    config = small_config('CMT3DHead', grid_size=[64, 48, 40])
    config['data_preprocessor']['voxel_layer']['voxel_size'] = [0.5, 0.5, 0.2]
    config['pts_middle_encoder'] = {
        'type': 'SparseEncoder',
        'in_channels': 4,
        'sparse_shape': [41, 48, 64],  # the points fill 64 rows
        'output_channels': 16,
        'encoder_channels': ((16, 16, 32), (32, 32, 64), (64, 64, 128), (128, 128)),
        'encoder_paddings': ((0, 0, 1), (0, 0, 1), (0, 0, [0, 1, 1]), (0, 0)),
        'block_type': 'basicblock',
    }
    config['pts_backbone'] |= {'in_channels': 32, 'layer_strides': [1]}
    init_default_scope('mmdet3d')
    torch.manual_seed(0)
    model = MODELS.build(config).train()
    seen = []
    model.pts_voxel_encoder.register_forward_pre_hook(lambda module, args: seen.append(args[2]))
    data = model.data_preprocessor(batch(), True)
    assert data['inputs']['voxels']['coors'][:, 2].max() >= 48
    sum(model(**data, mode='loss').values()).backward()
    assert seen[0][:, 2].max() < 48
    assert all(parameter.grad is not None for parameter in model.pts_middle_encoder.parameters())


@torch.no_grad()
@pytest.mark.parametrize('head', HEADS)
def test_a_head_with_fewer_queries_is_one_that_was_built_with_these(head: str) -> None:
    model, gone = build(head), torch.tensor([7, 2, 3])
    weights = model.state_dict()
    weights['pts_bbox_head.reference_points.weight'] = torch.cat(
        [row[None] for i, row in enumerate(weights['pts_bbox_head.reference_points.weight']) if i not in gone]
    )
    small = MODELS.build(small_config(head, num_query=9)).eval()
    small.load_state_dict(weights)
    expected = small.test_step(batch())
    queries = make_prunable(model)
    queries.embedding.remove(gone)
    queries.announce()
    for found, each in zip(model.test_step(batch()), expected, strict=True):
        assert len(found.pred_instances_3d) == 9 * 4
        assert torch.equal(found.pred_instances_3d.scores_3d, each.pred_instances_3d.scores_3d)
        assert torch.equal(found.pred_instances_3d.bboxes_3d.tensor, each.pred_instances_3d.bboxes_3d.tensor)


def test_queries_are_scored_by_the_classes_of_all_tasks() -> None:
    model = build('CMT3DHead')
    queries = find_queries(model)
    data = model.data_preprocessor(batch(), False)
    tasks = model(**data, mode='tensor')
    logits = torch.cat([task['cls_logits'][-1] for task in tasks], dim=-1)
    assert logits.shape == (2, 12, 4)
    assert torch.equal(queries.learned_logits(tasks), logits)
    assert queries.activation == 'sigmoid'


def test_streams_and_head_must_agree() -> None:
    config = small_config('CMT3DHead')
    config['pts_bbox_head']['type'] = 'CMT3DLidarHead'
    with pytest.raises(ValueError, match='CMT3DLidarHead does not use img_backbone'):
        MODELS.build(config)
    config = small_config('CMT3DLidarHead')
    config['pts_bbox_head']['type'] = 'CMT3DHead'
    with pytest.raises(ValueError, match='CMT3DHead needs img_backbone'):
        MODELS.build(config)


@pytest.mark.parametrize('path', reference_files('query_detectors', 'keys/cmt_[!c]*_full.json'))
def test_full_size_keys(path: Path) -> None:
    pytest.importorskip('spconv')
    init_default_scope('mmdet3d')
    config = Config.fromfile(CONFIGS / NAMES[path.name]).model
    if config.img_backbone is not None:
        config.img_backbone.init_cfg = None
    model = MODELS.build(config)
    found = {key: list(value.shape) for key, value in model.state_dict().items()}
    assert found == json.loads(path.read_text())


@pytest.mark.parametrize('name', sorted(NAMES.values()))
def test_transforms_of_the_configs_exist(name: str) -> None:
    init_default_scope('mmdet3d')
    config = Config.fromfile(CONFIGS / name)
    for loader in (config.train_dataloader, config.test_dataloader):
        steps = [TRANSFORMS.build(step) for step in loader.dataset.pipeline]
        assert steps[-1].__class__.__name__ == 'Pack3DDetInputs'
        sizes = [tuple(step.image_size) for step in steps if hasattr(step, 'image_size')]
        assert sizes == ([] if config.model.img_backbone is None else [config.image_size])
