"""A tiny detector that fuses two or three sensors, with data, for mmengine's Runner; and its config."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, METRICS, MODELS
from torch import Tensor, nn
from torch.utils.data import Dataset

GROUPS = dict(camera=['img_backbone'], lidar=['pts_middle_encoder'], fusion=['fusion_layer', 'bbox_head'])
INTERFACES = dict(camera='extract_img_feat', lidar='pts_middle_encoder')
RADAR_GROUPS = dict(GROUPS, radar=['radar_encoder'])
RADAR_INTERFACES = dict(INTERFACES, radar='radar_encoder')
SAMPLES = 8
NUMBER = count()  # mmengine wants a name per run


@MODELS.register_module()
class SmallFusion(BaseModel):
    """Streams of images, of LiDAR maps and, if wanted, of radar maps, then one convolution and a linear head."""

    def __init__(
        self, radar: bool = False, norm: bool = True, dropout: float = 0.0, mean: bool = False, **unused: None
    ) -> None:  # init_model gives train_cfg
        super().__init__(data_preprocessor=None)
        self.mean = mean
        self.img_backbone = stream(3, norm, dropout)
        self.pts_middle_encoder = stream(2, norm, dropout)
        if radar:
            self.radar_encoder = stream(1, norm, dropout)
        width = 4 if mean else 4 * (2 + radar)
        self.fusion_layer = nn.Sequential(
            nn.Conv2d(width, 6, 3, padding=1, bias=not norm), norm_layer(6, norm), nn.ReLU()
        )
        self.bbox_head = nn.Linear(6, 2)

    def extract_img_feat(self, inputs: dict[str, Tensor]) -> Tensor:
        return self.img_backbone(inputs['img'])

    def combine(self, maps: list[Tensor]) -> Tensor:
        return sum(maps) / len(maps) if self.mean else torch.cat(maps, 1)

    def fused(self, inputs: dict[str, Any]) -> Tensor:
        inputs = {name: torch.stack(list(maps)) for name, maps in inputs.items()}
        maps = [self.extract_img_feat(inputs), self.pts_middle_encoder(inputs['pts'])]
        if hasattr(self, 'radar_encoder'):
            maps.append(self.radar_encoder(inputs['radar']))
        return self.combine(maps)

    def forward(self, inputs: dict, data_samples: list | None = None, mode: str = 'tensor') -> Any:
        outputs = self.bbox_head(self.fusion_layer(self.fused(inputs)).mean((2, 3)))
        if mode == 'loss':
            return dict(loss_bbox=(outputs - torch.stack(list(data_samples))).square().mean())
        return list(outputs) if mode == 'predict' else outputs


def stream(channels: int, norm: bool, dropout: float) -> nn.Sequential:
    last = nn.Dropout(dropout) if dropout else nn.Identity()
    inner = nn.Conv2d(channels, 5, 3, padding=1, bias=not norm)
    return nn.Sequential(inner, norm_layer(5, norm), nn.ReLU(), nn.Conv2d(5, 4, 3, padding=1), nn.ReLU(), last)


def norm_layer(channels: int, norm: bool) -> nn.Module:
    return nn.BatchNorm2d(channels) if norm else nn.Identity()


@DATASETS.register_module()
class SmallFusionDataset(Dataset):
    """What is seen by all sensors is the sum of a few numbers, noisy in each."""

    metainfo = dict(classes=('car',))

    def __init__(self, num: int = SAMPLES, lazy_init: bool = False) -> None:
        self.num = num

    def __len__(self) -> int:
        return self.num

    def __getitem__(self, index: int) -> dict:
        generator = torch.Generator().manual_seed(index)
        truth = torch.randn(2, generator=generator)
        maps = {
            name: truth.mean() + torch.randn(channels, 6, 6, generator=generator)
            for name, channels in (('img', 3), ('pts', 2), ('radar', 1))
        }
        return dict(inputs=maps, data_samples=truth)


@METRICS.register_module()
class SmallFusionMetric(BaseMetric):
    def process(self, data_batch: Any, data_samples: list) -> None:
        self.results += [float(sample.sum()) for sample in data_samples]

    def compute_metrics(self, results: list) -> dict:
        return dict(mean=sum(results) / len(results))


def batches(number: int, size: int = 2) -> list[dict]:
    """Batches as a loader with ``pseudo_collate`` gives them."""
    data = SmallFusionDataset(number * size)
    samples = [[data[which * size + i] for i in range(size)] for which in range(number)]
    return [
        dict(
            inputs={name: [sample['inputs'][name] for sample in group] for name in ('img', 'pts', 'radar')},
            data_samples=[sample['data_samples'] for sample in group],
        )
        for group in samples
    ]


def fusion_config(work_dir: Path, **changes: Any) -> Config:
    """Two samples per iteration, four iterations per epoch, three epochs; a checkpoint after each."""
    loader = dict(
        batch_size=2,
        num_workers=0,
        sampler=dict(type='DefaultSampler', shuffle=True),
        dataset=dict(type='SmallFusionDataset'),
        collate_fn=dict(type='pseudo_collate'),
    )
    settings = dict(
        default_scope='mmdet3d',
        experiment_name=f'small-fusion-{next(NUMBER)}',
        work_dir=str(work_dir),
        model=dict(type='SmallFusion'),
        train_dataloader=loader,
        val_dataloader=loader,
        test_dataloader=loader,
        train_cfg=dict(type='EpochBasedTrainLoop', max_epochs=3, val_interval=9),
        val_cfg=dict(),
        test_cfg=dict(),
        val_evaluator=dict(type='SmallFusionMetric'),
        test_evaluator=dict(type='SmallFusionMetric'),
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=1e-2, weight_decay=0.1)),
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=1)),
        custom_hooks=[dict(type='IterationSeedHook')],
        randomness=dict(seed=0),
        log_level='ERROR',
    )
    return Config({**settings, **changes})


def write_config(path: Path, work_dir: Path, **changes: Any) -> Path:
    """The config of `fusion_config` as a file that tools read."""
    settings = fusion_config(work_dir, **changes).to_dict()
    modules = ['mmprune3d', 'tests.test_engine.small_fusion']
    settings['custom_imports'] = dict(imports=modules, allow_failed_imports=False)
    path.parent.mkdir(exist_ok=True)
    path.write_text(''.join(f'{key} = {value!r}\n' for key, value in settings.items()))
    return path
