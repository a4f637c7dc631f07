"""What many tests share: a tiny generated data set, and petr_tiny on it with random weights that find something."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from mmprune3d.datasets.synthetic.config import GeneratorConfig
from mmprune3d.datasets.synthetic.generate import GenerationReport, generate

CONFIG = Path(__file__).parents[1] / 'configs' / 'petr' / 'petr_tiny.py'


@dataclass(frozen=True)
class TinyDataset:
    """Two scenes of three samples with a LiDAR sweep in between."""

    config: GeneratorConfig
    report: GenerationReport

    @property
    def root(self) -> Path:
        return self.config.out


@pytest.fixture(scope='session')
def tiny(tmp_path_factory) -> TinyDataset:
    out = tmp_path_factory.mktemp('synthetic') / 'nuscenes'
    config = GeneratorConfig(out, train_scenes=1, val_scenes=1, samples_per_scene=3, image_size=(160, 64), sweeps=1)
    return TinyDataset(config, generate(config, progress=False))


@pytest.fixture(scope='session')
def nusc(tiny):
    from nuscenes.nuscenes import NuScenes

    return NuScenes('v1.0-trainval', str(tiny.root), verbose=False)


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
