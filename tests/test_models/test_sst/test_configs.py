"""The shipped full-size configs of SST and of halting build, have the recorded parameters, and train on small grids."""

from __future__ import annotations

import json
import math
from functools import cache
from pathlib import Path

import pytest
import torch
import yaml
from mmdet3d.registry import METRICS, MODELS, TRANSFORMS
from mmdet3d.structures import Det3DDataSample, LiDARInstance3DBoxes
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import HOOKS, PARAM_SCHEDULERS, init_default_scope
from mmengine.structures import InstanceData
from torch import nn

import mmprune3d
from tests.reference import reference_files

ROOT = Path(mmprune3d.__file__).parents[1]
CONFIGS = {
    path.stem: path
    for folder in ('sst', 'halting')
    for path in sorted((ROOT / 'configs' / folder).glob('*.py'))
    if 'tiny' not in path.stem
}
HALTING = {
    'halting_sst_waymo_s75': ('sst_waymo_paper', 0.75),
    'halting_sst_waymo_s82': ('sst_waymo_paper', 0.82),
    'halting_sst_waymo_s89': ('sst_waymo_paper', 0.89),
    'halting_sst_nuscenes': ('sst_nuscenes', 0.75),
    'halting_sst_kitti': ('sst_kitti', 0.75),
}
ONLY_OTHER_BOUNDS = ('halting_sst_waymo_s75', 'halting_sst_waymo_s82')
RECORDED = {'keys_center_waymoD5': 'sst_waymoD5_centerhead', 'keys_anchor': 'sst_waymoD5_anchorhead'}


def load(name: str) -> Config:
    init_default_scope('mmdet3d')
    return Config.fromfile(CONFIGS[name])


@cache
def model_of(name: str) -> nn.Module:
    return MODELS.build(load(name).model)


def shapes_of(name: str) -> dict[str, list[int]]:
    return {key: list(value.shape) for key, value in model_of(name).state_dict().items()}


@pytest.mark.parametrize('path', reference_files('sst', 'keys_*.json'))
def test_state_dicts_are_the_official_ones(path: Path) -> None:
    assert shapes_of(RECORDED[path.stem]) == json.loads(path.read_text())


@pytest.mark.parametrize('name', CONFIGS)
def test_config_fits_together(name: str) -> None:
    config = load(name)
    model = config.model
    voxels = model.data_preprocessor.voxel_layer
    low, high = voxels.point_cloud_range[:3], voxels.point_cloud_range[3:]
    cells = [round((b - a) / size) for a, b, size in zip(low, high, voxels.voxel_size)]
    assert all(math.isclose(a + n * size, b) for a, b, n, size in zip(low, high, cells, voxels.voxel_size))
    assert cells == list(model.middle_encoder.sparse_shape) and cells[2] == 1
    assert cells[1::-1] == list(model.backbone.output_shape)
    assert list(model.voxel_encoder.voxel_size) == list(voxels.voxel_size)
    assert list(model.voxel_encoder.point_cloud_range) == list(voxels.point_cloud_range)
    assert list(config.point_cloud_range) == list(voxels.point_cloud_range)
    if 'tasks' in model.bbox_head:
        assert list(model.train_cfg.grid_size) == cells
        assert list(model.train_cfg.point_cloud_range) == list(voxels.point_cloud_range)
        for settings in (model.train_cfg, model.test_cfg, model.bbox_head.bbox_coder):
            assert list(settings.voxel_size)[:2] == list(voxels.voxel_size)[:2] and settings.out_size_factor == 1
        for settings in (model.test_cfg, model.bbox_head.bbox_coder):
            assert list(settings.pc_range) == low[:2]
        order = [label for task in model.bbox_head.tasks for label in task.class_names]
        assert order == list(config.class_names)
    else:
        assert model.bbox_head.anchor_generator.ranges[0][:2] == low[:2]
        assert model.bbox_head.num_classes == len(config.class_names)
    train = config.train_dataloader.dataset
    assert train.type in ('RepeatDataset', 'CBGSDataset')
    for dataset in (train.dataset, config.val_dataloader.dataset, config.test_dataloader.dataset):
        steps = {step.type: step for step in dataset.pipeline}
        # it reads a file of the data set
        assert all(TRANSFORMS.build(step) is not None for kind, step in steps.items() if kind != 'ObjectSample')
        assert list(dataset.metainfo.classes) == list(config.class_names)
        loaders = [steps['LoadPointsFromFile']]
        if 'ObjectSample' in steps:
            loaders.append(steps['ObjectSample'].db_sampler.points_loader)
        for loader in loaders:
            assert loader.use_dim == model.voxel_encoder.in_channels
            tanh = 'waymo' in name and loader.use_dim == 5
            assert loader.get('norm_intensity', False) == loader.get('norm_elongation', False) == tanh
    assert METRICS.get(config.val_evaluator.type) is not None and config.val_evaluator == config.test_evaluator
    assert (config.val_evaluator.type == 'MMPrune3DKittiMetric') == ('kitti' in name)
    assert config.custom_imports.imports == ['mmprune3d']
    assert [HOOKS.build(hook) is not None for hook in config.get('custom_hooks', [])] == [True] * ('halting' in name)


@pytest.mark.filterwarnings('ignore:Detected call of `scheduler.step')
@pytest.mark.parametrize('name', [name for name in CONFIGS if name.startswith('sst') or name.endswith('s89')])
def test_one_cycle(name: str) -> None:
    """Learning rate at the begin, the turn and the end, and what weight decay leaves out."""
    config = load(name)
    model = nn.ModuleDict({'norm1': nn.LayerNorm(2), 'linear1': nn.Linear(2, 2)})
    wrapper = build_optim_wrapper(model, config.optim_wrapper)
    decays = {group['weight_decay'] for group in wrapper.optimizer.param_groups[:2]}
    assert decays == {0.0} and wrapper.optimizer.param_groups[2]['weight_decay'] == 0.05
    assert wrapper.clip_grad_kwargs == {'max_norm': 10, 'norm_type': 2}
    (settings,) = map(dict, config.param_scheduler)
    kind, epochs = PARAM_SCHEDULERS.get(settings.pop('type')), config.train_cfg.max_epochs
    assert settings.pop('convert_to_iter_based') and settings['total_steps'] == epochs
    scheduler = kind.build_iter_from_epoch(optimizer=wrapper.optimizer, epoch_length=20, **settings)
    rates = []
    for _ in range(epochs * 20):
        rates.append(wrapper.optimizer.param_groups[0]['lr'])
        scheduler.step()
    official = name.startswith('sst_waymoD5')
    assert [config.optim_wrapper.optimizer.lr, rates[0]] == pytest.approx([1e-5 if official else 4e-5] * 2)
    assert max(rates) == pytest.approx(1e-3) and rates.index(max(rates)) == pytest.approx(epochs * 2, abs=1)
    assert rates[-1] == pytest.approx(1e-8 if official else 4e-9, rel=1e-3)


@pytest.mark.parametrize(('name', 'baseline', 'target'), [(name, *facts) for name, facts in HALTING.items()])
def test_halting_adds_its_modules_and_nothing_else(name: str, baseline: str, target: float) -> None:
    ours, theirs = shapes_of(name), shapes_of(baseline)
    added = {key for key in ours if key not in theirs}
    assert all(ours[key] == shape for key, shape in theirs.items())
    assert added and all(key.startswith('backbone.halting.') for key in added)
    gates = list(model_of(name).backbone.halting)
    assert [(gate.block, gate.threshold) for gate in gates] == [(0, 0.01), (1, 0.01)]
    assert len({key.split('.')[2] for key in added}) == 2
    lower, upper = ((2 * first + 6 * second) / 8 for first, second in zip(*(gate.bounds for gate in gates)))
    assert lower <= target <= upper and target - lower == pytest.approx(0.015, abs=1e-9)


def test_halting_pp_exchanges_the_convolutions() -> None:
    ours, theirs = shapes_of('halting-pp_sst_waymo'), shapes_of('halting_sst_waymo_s89')
    kept = {key: shape for key, shape in theirs.items() if not key.startswith(('backbone.conv_layer.', 'neck.'))}
    del kept['bbox_head.shared_conv.conv.weight']
    assert all(ours[key] == shape for key, shape in kept.items())
    added = {key for key in ours if key not in theirs}
    added_to_backbone = {key for key in added if not key.startswith('neck.')}
    assert added_to_backbone == {'backbone.to_bev_map.weight', 'backbone.to_bev_map.bias'}
    blocks = model_of('halting-pp_sst_waymo').neck.second.blocks
    convolutions = [[layer for layer in block if isinstance(layer, nn.Conv2d)] for block in blocks]
    assert [[layer.stride[0] for layer in block] for block in convolutions] == [[1, 1, 1, 1], [2, 1, 1, 1]]
    assert ours['bbox_head.shared_conv.conv.weight'] == [64, 256, 3, 3]


def test_the_neck_is_its_two_parts() -> None:
    neck = model_of('halting-pp_sst_waymo').neck.eval()
    x = torch.randn(1, 128, 12, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        (found,) = neck([x])
        fine = neck.second.blocks[0](x)
        coarse = neck.second.blocks[1](fine)
        expected = torch.cat((neck.fpn.deblocks[0](fine), neck.fpn.deblocks[1](coarse)), 1)
    assert torch.equal(found, expected) and found.shape == (1, 256, 12, 8)
    with pytest.raises(ValueError, match='got 2 maps'):
        neck([x, x])


def small(name: str) -> Config:
    """The config on 12 x 14 pillars around the sensor."""
    config = load(name)
    model, (x, y, z) = config.model, config.model.data_preprocessor.voxel_layer.voxel_size
    bottom = model.data_preprocessor.voxel_layer.point_cloud_range[2]
    area = [-6 * x, -7 * y, bottom, 6 * x, 7 * y, bottom + z]
    model.data_preprocessor.voxel_layer.point_cloud_range = model.voxel_encoder.point_cloud_range = area
    model.middle_encoder.sparse_shape, model.backbone.output_shape = [12, 14, 1], [14, 12]
    if 'tasks' in model.bbox_head:
        model.train_cfg.update(grid_size=[12, 14, 1], point_cloud_range=area)
        model.test_cfg.pc_range = model.bbox_head.bbox_coder.pc_range = area[:2]
        model.bbox_head.bbox_coder.update(max_num=20, score_threshold=0.0)
        model.test_cfg.score_threshold = 0.0
    else:
        model.bbox_head.anchor_generator.ranges = [[*area[:2], 0, *area[3:5], 0]] * 3
        model.test_cfg.update(score_thr=0.0, nms_pre=20)
    return config


def small_batch(config: Config) -> dict:
    generator = torch.Generator().manual_seed(0)
    columns = 9 if 'nuscenes' in config.filename else 7
    channels = config.model.voxel_encoder.in_channels
    samples, clouds = [], []
    for _ in range(2):
        boxes = torch.tensor([[1.0, -1, -1, 2, 1, 1.5, 0.3, 1, 0], [-1, 1, -1, 1, 1, 2, 0, 0, 0]])[:, :columns]
        sample = Det3DDataSample(metainfo={'box_type_3d': LiDARInstance3DBoxes})
        sample.gt_instances_3d = InstanceData(
            bboxes_3d=LiDARInstance3DBoxes(boxes, box_dim=columns), labels_3d=torch.tensor([0, 2])
        )
        samples.append(sample)
        spread = torch.rand(100, channels, generator=generator) - 0.5
        clouds.append(spread * torch.tensor([3.8, 4.4, 2, 1, 1])[:channels])
    return {'inputs': {'points': clouds}, 'data_samples': samples}


@pytest.mark.filterwarnings('ignore::UserWarning')
@pytest.mark.parametrize('name', [name for name in CONFIGS if name not in ONLY_OTHER_BOUNDS])
def test_configs_train_and_predict(name: str) -> None:
    config = small(name)
    torch.manual_seed(0)
    model = MODELS.build(config.model).train()
    batch = model.data_preprocessor(small_batch(config), training=True)
    total, _ = model.parse_losses(model(**batch, mode='loss'))
    total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    batch = model.data_preprocessor(small_batch(config), training=False)
    with torch.no_grad():
        found = model.eval()(**batch, mode='predict')
    assert all(len(sample.pred_instances_3d) > 0 for sample in found)
    assert found[0].pred_instances_3d.bboxes_3d.tensor.shape[1] == (9 if 'nuscenes' in name else 7)


@pytest.mark.parametrize('folder', ['sst', 'halting'])
def test_metafile_and_readme_list_every_config(folder: str) -> None:
    home = ROOT / 'configs' / folder
    models = {model['Name']: model for model in yaml.safe_load((home / 'metafile.yml').read_text())['Models']}
    readme = (home / 'README.md').read_text()
    names = {name for name, path in CONFIGS.items() if path.parent == home}
    assert names and names <= set(models)
    assert {path.stem for path in home.glob('*.py')} >= {Path(model['Config']).stem for model in models.values()}
    assert f'configs/{folder}/metafile.yml' in (ROOT / 'model-index.yml').read_text()
    for name in names:
        assert models[name]['Config'] == f'configs/{folder}/{name}.py'
        parameters = sum(p.numel() for p in model_of(name).parameters())
        assert models[name]['Metadata']['Parameters'] == parameters
        row = next(line for line in readme.splitlines() if f'({name}.py)' in line)
        assert f'| {parameters / 1e6:.2f} M |' in row
        for result in models[name].get('Results', []):
            assert all(f'{metric:.1f}' in row for metric in result['Metrics'].values())
