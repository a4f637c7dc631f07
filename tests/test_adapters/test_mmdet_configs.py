"""The configs for mmdet's detectors load, build, and their plans fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from mmdet.apis import DetInferencer
from mmdet.registry import HOOKS, MODELS
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.registry import DefaultScope

import mmprune3d
from mmprune3d import adapters
from mmprune3d.engine import prune_as_configured

FOLDER = Path(mmprune3d.__file__).parents[1] / 'configs' / 'tggbc'
CONFIGS = sorted(FOLDER.glob('*detr_r50.py'))


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_the_plan_fits_the_model(path: Path) -> None:
    register_all_modules(init_default_scope=False)
    config = Config.fromfile(path)
    with DefaultScope.overwrite_default_scope('mmdet'), torch.device('meta'):
        model = MODELS.build(config.model)
        (hook,) = (HOOKS.build(settings) for settings in config.custom_hooks)
    assert config.custom_imports.imports == ['mmprune3d']
    adapters.attach(model, hook.plan)
    assert adapters.is_attached(model)
    assert hook.plan.keys_per_layer(1000, model.decoder.num_layers) == (1000, 750, 500, 500, 500, 500)
    assert hook.plan.keys_per_layer(500, model.decoder.num_layers) == (500,) * 6


def test_readme_and_metafile_list_them() -> None:
    models = {model['Name']: model for model in yaml.safe_load((FOLDER / 'metafile.yml').read_text())['Models']}
    assert len(CONFIGS) == 2
    for path in CONFIGS:
        assert models[path.stem]['Config'] == f'configs/tggbc/{path.name}'
        assert f'({path.name})' in (FOLDER / 'README.md').read_text()
        assert models[path.stem]['Metadata']['Baseline'] in path.read_text()


def test_an_inferencer_prunes_as_its_config_says() -> None:
    config = Config.fromfile(FOLDER / 'tggbc-r50pct-n2_detr_r50.py')
    config.custom_hooks[0].t = 0
    config.model.backbone.update(depth=18, init_cfg=None)
    config.model.neck.in_channels = [512]
    config.test_dataloader.dataset.pipeline[1].scale = (160, 128)
    inferencer = DetInferencer(config, None, device='cpu', show_progress=False)
    prune_as_configured(inferencer.model)
    image = np.random.default_rng(0).integers(0, 255, (128, 160, 3), np.uint8)
    assert adapters.keys_per_layer(inferencer.model, lambda: inferencer(image)) == [20, 16, 10, 10, 10, 10]
