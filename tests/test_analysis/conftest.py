"""petr_tiny on the tiny data set, with random weights that find something."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

CONFIG = Path(__file__).parents[2] / 'configs' / 'petr' / 'petr_tiny.py'


@pytest.fixture(scope='session')
def overrides(tiny) -> dict[str, Any]:
    root = f'{tiny.root}/'
    return {
        'image_size': (64, 160),
        'test_dataloader.dataset.data_root': root,
        'test_dataloader.dataset.pipeline.1.image_size': (64, 160),
        'test_dataloader.num_workers': 0,
        'test_dataloader.persistent_workers': False,
        'test_evaluator.data_root': root,
        'test_evaluator.ann_file': f'{root}nuscenes_infos_val.pkl',
    }


@pytest.fixture(scope='session')
def petr_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from mmdet3d.registry import MODELS
    from mmengine.config import Config
    from mmengine.registry import DefaultScope

    import mmprune3d  # noqa: F401

    path = tmp_path_factory.mktemp('checkpoint') / 'petr.pth'
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmdet3d'):
        model = MODELS.build(Config.fromfile(CONFIG).model)
        model.init_weights()
    torch.nn.init.normal_(model.pts_bbox_head.cls_branches[0][-1].weight, std=0.5)
    torch.save({'state_dict': model.state_dict(), 'meta': {}}, path)
    return path
