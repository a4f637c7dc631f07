"""A tiny data set that the tests of the generator share: two scenes of three samples with a LiDAR sweep in between."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from mmprune3d.datasets.synthetic.config import GeneratorConfig
from mmprune3d.datasets.synthetic.generate import GenerationReport, generate


@dataclass(frozen=True)
class TinyDataset:
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
