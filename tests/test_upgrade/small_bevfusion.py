"""A BEVFusion3D that predicts in a fraction of a second, with a config for the tiny data set."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from torch import nn

from tests.test_coupling.channel_nets import ROOT, bevfusion_config

IMAGE_SIZE = (32, 96)
RESIZED = 0.6
"""The recorded images have 64 x 160 pixels."""


def small_config(root: Path, work_dir: Path) -> Config:
    """Three samples to train on, in one epoch; three to test on."""
    config = Config.fromfile(ROOT / 'configs/bevfusion/bevfusion_tiny.py')
    model = copy.deepcopy(bevfusion_config())
    model.img_backbone.update(depth=18, base_channels=8)
    model.img_neck.in_channels = [16, 32, 64]
    model.view_transform.update(image_size=IMAGE_SIZE, feature_size=(4, 12))
    config.model = model
    for name in ('train', 'val', 'test'):
        loader = config[f'{name}_dataloader']
        loader.batch_size = 1
        loader.dataset.data_root = f'{root}/'
        for step in loader.dataset.pipeline:
            _shrink(step, model)
    for name in ('val', 'test'):
        config[f'{name}_evaluator'].update(data_root=f'{root}/', ann_file=f'{root}/nuscenes_infos_val.pkl')
    config.optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-3))
    config.param_scheduler = []
    config.train_cfg = dict(by_epoch=True, max_epochs=1, val_interval=9)
    config.default_hooks.update(checkpoint=dict(type='CheckpointHook', interval=1))
    config.work_dir, config.load_from, config.log_level = str(work_dir), None, 'ERROR'
    return config


def _shrink(step: dict[str, Any], model: Config) -> None:
    if step['type'] == 'MultiViewImageAug':
        step.image_size = IMAGE_SIZE
        step.update({'test_resize': RESIZED} if 'test_resize' in step else {'resize_range': (RESIZED, 0.65)})
    if 'point_cloud_range' in step:
        step.point_cloud_range = model.data_preprocessor.voxelize_cfg.point_cloud_range


def save_random(config: Config, path: Path) -> nn.Module:
    """Writes a checkpoint of random weights, and returns the model."""
    from mmdet3d.registry import MODELS
    from mmengine.registry import init_default_scope

    import mmprune3d  # noqa: F401

    init_default_scope('mmdet3d')
    torch.manual_seed(0)
    model = MODELS.build(copy.deepcopy(config.model))
    model.init_weights()
    torch.save({'state_dict': model.state_dict(), 'meta': {}}, path)
    return model
