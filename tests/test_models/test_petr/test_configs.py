"""The shipped configs build, fit together, and describe what their README says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import yaml
from mmdet3d.registry import MODELS, TRANSFORMS
from mmengine.config import Config
from mmengine.registry import init_default_scope

import mmprune3d
from mmprune3d.checkpoint.convert import CLASSES

from . import small

FOLDER = Path(mmprune3d.__file__).parents[1] / 'configs' / 'petr'
CONFIGS = sorted(FOLDER.glob('petr_*.py'))


def load(path: Path) -> Config:
    init_default_scope('mmdet3d')
    return Config.fromfile(path)


def image_size(pipeline: list[dict]) -> tuple[int, int]:
    return next(step['image_size'] for step in pipeline if step['type'] == 'MultiViewImageAug')


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_config_builds(path: Path) -> None:
    config = load(path)
    with torch.device('meta'):
        model = MODELS.build(config.model)
    for loader in (config.train_dataloader, config.val_dataloader, config.test_dataloader):
        for step in loader.dataset.pipeline:
            assert TRANSFORMS.build(step) is not None
        assert loader.dataset.metainfo.classes == list(CLASSES)
    assert model.pts_bbox_head.num_classes == len(CLASSES)
    assert model.pts_bbox_head.bbox_coder.convention == 'mmdet3d'
    sizes = {image_size(loader.dataset.pipeline) for loader in (config.train_dataloader, config.test_dataloader)}
    assert len(sizes) == 1
    height, width = sizes.pop()
    assert height % 32 == width % 32 == 0
    for loader, evaluator in (
        (config.val_dataloader, config.val_evaluator),
        (config.test_dataloader, config.test_evaluator),
    ):
        assert evaluator.ann_file == loader.dataset.data_root + loader.dataset.ann_file
    name = re.search(r'_(\d+)x(\d+)$', path.stem)
    assert name is None or (int(name[1]), int(name[2])) == (width, height)


def test_metafile_and_readme_list_every_config() -> None:
    models = {model['Name']: model for model in yaml.safe_load((FOLDER / 'metafile.yml').read_text())['Models']}
    readme = (FOLDER / 'README.md').read_text()
    assert set(models) == {path.stem for path in CONFIGS}
    for path in CONFIGS:
        height, width = image_size(load(path).test_dataloader.dataset.pipeline)
        keys = 6 * height * width // 256
        assert (
            models[path.stem]['Config'] == f'configs/petr/{path.name}' and models[path.stem]['Metadata']['Keys'] == keys
        )
        row = next(line for line in readme.splitlines() if f'({path.name})' in line)
        assert f'| {width} x {height} | {keys} |' in row


def test_tiny_trains_and_predicts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(small, 'CAMERAS', 6)
    config = load(FOLDER / 'petr_tiny.py')
    torch.manual_seed(0)
    model = MODELS.build(config.model).train()
    data = small.batch(1, size=image_size(config.test_dataloader.dataset.pipeline))
    losses = model(**model.data_preprocessor(data, training=True), mode='loss')
    total, _ = model.parse_losses(losses)
    total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    keys = []
    model.pts_bbox_head.transformer.decoder.layers[0].register_forward_pre_hook(
        lambda _, inputs: keys.append(inputs[1].key.shape)
    )
    with torch.no_grad():
        found = model.eval()(**model.data_preprocessor(data, training=False), mode='predict')
    assert keys == [(1, 1056, config.embed_dims)]
    assert len(model.pts_bbox_head.transformer.decoder.layers) == 6
    assert len(found[0].pred_instances_3d) > 0
