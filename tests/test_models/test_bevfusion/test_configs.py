"""The shipped full-size configs build, have the recorded parameters, and their streams fit together."""

from __future__ import annotations

import copy
import json
import math
from functools import cache
from pathlib import Path

import pytest
import torch
import yaml
from mmdet3d.registry import MODELS, TRANSFORMS
from mmdet3d.structures import Det3DDataSample, LiDARInstance3DBoxes
from mmengine.config import Config
from mmengine.registry import OPTIM_WRAPPERS, PARAM_SCHEDULERS, init_default_scope
from mmengine.structures import InstanceData
from torch import nn

import mmprune3d
from mmprune3d.checkpoint.convert import CLASSES
from tests.reference import reference_files

FOLDER = Path(mmprune3d.__file__).parents[1] / 'configs' / 'bevfusion'
CONFIGS = sorted(path for path in FOLDER.glob('bevfusion_*.py') if 'tiny' not in path.stem)
RECORDED = {'lidar': 'bevfusion_lidar_voxel0075', 'lidar_cam': 'bevfusion_lidar-cam_swint_voxel0075'}


def load(name: str) -> Config:
    init_default_scope('mmdet3d')
    return Config.fromfile(FOLDER / f'{name}.py')


@cache
def model_of(name: str) -> nn.Module:
    return MODELS.build(load(name).model)


@pytest.mark.parametrize('path', reference_files('bevfusion', 'keys_*.json'))
def test_state_dicts_are_the_official_ones(path: Path) -> None:
    kind = path.stem.removeprefix('keys_')
    expected = json.loads(path.read_text())
    model = model_of(RECORDED[kind])
    assert {key: list(value.shape) for key, value in model.state_dict().items()} == expected
    order = list(dict.fromkeys(key.split('.')[0] for key in model.state_dict()))
    assert order == list(dict.fromkeys(key.split('.')[0] for key in expected))
    groups = json.loads(path.with_name('groups.json').read_text())['models'][kind]['groups']
    children = {name: facts for group in groups.values() for name, facts in group['children'].items()}
    assert set(children) >= {name for name, child in model.named_children() if any(True for _ in child.parameters())}
    for name, facts in children.items():
        parameters = list(getattr(model, name).parameters())
        assert sum(p.numel() for p in parameters if p.requires_grad) == facts['trainable_parameters'], name
        assert sum(p.numel() for p in parameters if not p.requires_grad) == facts['non_trainable_parameters'], name


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_config_fits_together(path: Path) -> None:
    config = load(path.stem)
    model, lidar_only = config.model, 'img_backbone' not in config.model
    train = config.train_dataloader.dataset
    assert (train.type == 'CBGSDataset') == lidar_only
    train = train.dataset if lidar_only else train
    for dataset in (train, config.val_dataloader.dataset, config.test_dataloader.dataset):
        steps = [step for step in dataset.pipeline if step.type != 'ObjectSample']  # it reads a file of nuScenes
        assert all(TRANSFORMS.build(step) is not None for step in steps)
        assert dataset.metainfo.classes == list(CLASSES) and dataset.modality.use_camera != lidar_only
        sizes = [step.image_size for step in steps if step.type == 'MultiViewImageAug']
        assert [list(size) for size in sizes] == ([] if lidar_only else [list(model.view_transform.image_size)])
    head, voxels = model.bbox_head, model.data_preprocessor.voxelize_cfg
    for settings in (head.train_cfg, head.test_cfg, head.bbox_coder):
        assert settings.voxel_size[:2] == voxels.voxel_size[:2]
        assert settings.out_size_factor == head.train_cfg.out_size_factor
    low, high = voxels.point_cloud_range[:3], voxels.point_cloud_range[3:]
    cells = [round((b - a) / size) for a, b, size in zip(low, high, voxels.voxel_size)]
    assert head.train_cfg.grid_size[:2] == head.test_cfg.grid_size[:2] == cells[:2]
    assert head.train_cfg.point_cloud_range == voxels.point_cloud_range == config.point_cloud_range
    assert config.val_evaluator.ann_file == config.val_dataloader.dataset.data_root + 'nuscenes_infos_val.pkl'
    assert 'init_cfg' not in json.dumps(model.to_dict())  # nothing is downloaded


def test_a_config_can_be_built_again() -> None:
    config = load('bevfusion_lidar_voxel0075')
    before = copy.deepcopy(config.model.to_dict())
    first, second = (MODELS.build(config.model) for _ in range(2))
    assert config.model.to_dict() == before and first.pts_voxel_layer.grid == second.pts_voxel_layer.grid == [
        1440,
        1440,
        40,
    ]


def test_metafile_and_readme_list_every_config() -> None:
    models = {model['Name']: model for model in yaml.safe_load((FOLDER / 'metafile.yml').read_text())['Models']}
    readme = (FOLDER / 'README.md').read_text()
    assert {path.stem for path in CONFIGS} <= set(models)
    for path in CONFIGS:
        assert models[path.stem]['Config'] == f'configs/bevfusion/{path.name}'
        parameters = sum(p.numel() for p in model_of(path.stem).parameters())
        assert models[path.stem]['Metadata']['Parameters'] == parameters
        row = next(line for line in readme.splitlines() if f'({path.name})' in line)
        assert f'| {parameters / 1e6:.1f} M |' in row
        for metric in models[path.stem].get('Results', [{'Metrics': {}}])[0]['Metrics'].values():
            assert f'| {metric} |' in row


@pytest.mark.filterwarnings('ignore:Detected call of `scheduler.step')
@pytest.mark.parametrize(
    ('name', 'points'),
    [
        ('bevfusion_lidar_voxel0075', {0: (1e-4, 0.9), 8: (1e-3, 0.85 / 0.95), 20: (1e-8, 1.0)}),
        (
            'bevfusion_lidar-cam_swint_voxel0075',
            {0: (2e-4 / 3, 0.9), 2.4: (1.31e-4, 0.85 / 0.95), 6: (2e-8, 1.0)},
        ),
    ],
)
def test_one_cycle(name: str, points: dict[float, tuple[float, float]]) -> None:
    """Learning rate and momentum at the begin, the turn and the end of the schedule (epoch -> both)."""
    length = 1000 if 2.4 in points else 100  # the warm-up of the second takes 500 steps
    config = load(name)
    wrapper = dict(config.optim_wrapper)
    assert wrapper['clip_grad'] == {'max_norm': 35, 'norm_type': 2}
    optimizer = torch.optim.AdamW([nn.Parameter(torch.ones(1))], lr=wrapper['optimizer']['lr'], betas=(0.9, 0.99))
    assert OPTIM_WRAPPERS.get(wrapper['type']) is not None
    schedulers = []
    for settings in config.param_scheduler:
        settings = dict(settings)
        kind = PARAM_SCHEDULERS.get(settings.pop('type'))
        by_epoch = settings.pop('convert_to_iter_based', False)
        make = kind.build_iter_from_epoch if by_epoch else kind
        schedulers.append(make(optimizer=optimizer, **settings, **({'epoch_length': length} if by_epoch else {})))
    for step in range(int(max(points) * length) + 1):
        if step / length in points:
            rate, momentum = points[step / length]
            group = optimizer.param_groups[0]
            assert math.isclose(group['lr'], rate, rel_tol=0.01, abs_tol=1e-8), step
            assert math.isclose(group['betas'][0], momentum, rel_tol=0.01), step
        for scheduler in schedulers:
            scheduler.step()


def small_pillars() -> Config:
    """The PointPillars config on 64 x 64 pillars, with two small cameras and narrow layers."""
    config = load('bevfusion_lidar-cam_r101_pointpillars')
    model, area = config.model, [-9.6, -9.6, -5.0, 9.6, 9.6, 3.0]
    model.data_preprocessor.voxelize_cfg.update(point_cloud_range=area)
    model.img_backbone.update(depth=18, base_channels=8)
    model.img_neck.update(in_channels=[16, 32, 64], out_channels=16)
    bounds = {'xbound': [-9.6, 9.6, 0.3], 'ybound': [-9.6, 9.6, 0.3], 'dbound': [1.0, 10.0, 1.0]}
    model.view_transform.update(in_channels=16, out_channels=8, image_size=[64, 96], feature_size=[8, 12], **bounds)
    model.pts_voxel_encoder.update(feat_channels=[12], point_cloud_range=area)
    model.pts_middle_encoder.update(in_channels=12, output_shape=[64, 64])
    model.fusion_layer.update(in_channels=[8, 12], out_channels=16)
    model.pts_backbone.update(in_channels=16, out_channels=[16, 16], layer_nums=[1, 1])
    model.pts_neck.update(in_channels=[16, 16], out_channels=[16, 16])
    head = model.bbox_head
    head.update(in_channels=32, num_proposals=20)
    head.train_cfg.update(grid_size=[64, 64, 1], point_cloud_range=area)
    head.test_cfg.update(grid_size=[64, 64, 1], pc_range=area[:2])
    head.bbox_coder.update(pc_range=area[:2])
    return config


def small_batch() -> dict:
    generator = torch.Generator().manual_seed(0)
    camera = torch.tensor([[60.0, 0, 48, 0], [0, 60, 32, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    pose = torch.tensor([[0.0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1]])  # looks along x
    turned = pose @ torch.diag(torch.tensor([-1.0, -1, 1, 1]))
    lidar2cam = torch.stack((pose, turned))
    metas = {
        'cam2img': camera.expand(2, 4, 4).numpy(),
        'cam2lidar': lidar2cam.inverse().numpy(),
        'lidar2img': (camera @ lidar2cam).numpy(),
        'img_aug_matrix': torch.eye(4).expand(2, 4, 4).numpy(),
        'lidar_aug_matrix': torch.eye(4).numpy(),
        'box_type_3d': LiDARInstance3DBoxes,
    }
    samples, clouds = [], []
    for _ in range(2):
        boxes = torch.tensor([[4.0, -2, -1, 4, 2, 1.5, 0.3, 1, 0], [-5, 5, -1, 1, 1, 2, 0, 0, 0]])
        objects = InstanceData(bboxes_3d=LiDARInstance3DBoxes(boxes, box_dim=9), labels_3d=torch.tensor([0, 8]))
        sample = Det3DDataSample(metainfo=metas)
        sample.gt_instances_3d = objects
        samples.append(sample)
        spread = torch.rand(500, 5, generator=generator) - 0.5
        clouds.append(spread * torch.tensor([18.0, 18, 4, 1, 1]))
    images = [torch.randint(0, 255, (2, 3, 64, 96), dtype=torch.uint8, generator=generator) for _ in range(2)]
    return {'inputs': {'img': images, 'points': clouds}, 'data_samples': samples}


def test_pillars_train_and_predict() -> None:
    torch.manual_seed(0)
    model = MODELS.build(small_pillars().model).train()
    total, _ = model.parse_losses(model(**model.data_preprocessor(small_batch(), training=True), mode='loss'))
    total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    with torch.no_grad():
        found = model.eval()(**model.data_preprocessor(small_batch(), training=False), mode='predict')
    assert all(len(sample.pred_instances_3d) > 0 for sample in found)


def test_pillars_and_cameras_see_an_object_at_the_same_place() -> None:
    """Points at x = 6, y = -3 are in the pillar map at [x, y], as everything of the camera stream is."""
    torch.manual_seed(0)
    model = MODELS.build(small_pillars().model).eval()
    points = torch.tensor([[6.05, -3.05, 0.0, 1.0, 0.0]]).expand(5, 5)
    with torch.no_grad():
        bev = model.extract_pts_feat({'points': [points]}, [])
    assert bev.shape == (1, 12, 64, 64)
    (cell,) = bev[0].abs().sum(dim=0).nonzero().tolist()
    assert cell == [int((6.05 + 9.6) / 0.3), int((-3.05 + 9.6) / 0.3)]
