"""The shipped configs of GPQ build, their schedules fit their trainings, and README and metafile say what they do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.registry import HOOKS, MODELS, DefaultScope

import mmprune3d
from mmprune3d.adapters.learned_queries import learned_queries

ROOT = Path(mmprune3d.__file__).parents[1]
FOLDER = ROOT / 'configs' / 'gpq'
CONFIGS = sorted(FOLDER.glob('gpq-*.py'))
ENTRIES = {model['Name']: model for model in yaml.safe_load((FOLDER / 'metafile.yml').read_text())['Models']}


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_the_schedule_fits_model_and_training(path):
    register_all_modules(init_default_scope=False)
    config = Config.fromfile(path)
    with DefaultScope.overwrite_default_scope(config.default_scope), torch.device('meta'):
        model = MODELS.build(config.model)
        (hook,) = (HOOKS.build(settings) for settings in config.custom_hooks)
    assert config.custom_imports.imports == ['mmprune3d']
    count = learned_queries(model).embedding.num_kept
    schedule = hook.plan.schedule(count, 576)
    assert schedule.end <= hook.plan.epochs * 576 <= config.train_cfg.max_epochs * 576 / 2
    assert ENTRIES[path.stem]['Config'] == f'configs/gpq/{path.name}'
    assert ENTRIES[path.stem]['Metadata']['Queries'] == f'{count}, {hook.plan.target}'
    assert f'({path.name})' in (FOLDER / 'README.md').read_text()


def test_every_entry_has_its_config():
    assert sorted(ENTRIES) == [path.stem for path in CONFIGS]
    assert 'configs/gpq/metafile.yml' in (ROOT / 'model-index.yml').read_text()


def test_the_study_freezes_images():
    config = Config.fromfile(FOLDER / 'petr_tiny_study.py')
    with DefaultScope.overwrite_default_scope('mmdet3d'):
        model = MODELS.build(config.model).train()
    frozen = [*model.img_backbone.parameters(), *model.img_neck.parameters()]
    assert not any(parameter.requires_grad for parameter in frozen)
    assert not model.img_backbone.training and model.pts_bbox_head.training
    images = torch.rand(1, 6, 3, 64, 160)
    assert not any(level.requires_grad for level in model.extract_feat(images))
