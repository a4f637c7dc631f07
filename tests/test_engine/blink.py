"""A tiny PETR, data and metric that mmengine's Runner trains in a blink."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.registry import DATASETS, METRICS
from torch.utils.data import Dataset

from tests.test_models.test_petr.small import batch, detector_config


@DATASETS.register_module()
class BlinkDataset(Dataset):
    metainfo = dict(classes=('car', 'truck', 'bus', 'cone'))

    def __init__(self, num: int, lazy_init: bool = False) -> None:  # init_model asks for laziness
        self.data = batch(num, boxes=(5, 2, 3))

    def __len__(self) -> int:
        return len(self.data['data_samples'])

    def __getitem__(self, index: int) -> dict:
        images, samples = self.data['inputs']['img'], self.data['data_samples']
        return dict(inputs=dict(img=images[index]), data_samples=copy.deepcopy(samples[index]))


@METRICS.register_module()
class BlinkMetric(BaseMetric):
    def process(self, data_batch: Any, data_samples: list) -> None:
        self.results.append(len(data_samples))

    def compute_metrics(self, results: list) -> dict:
        return dict(samples=sum(results))


def training_config(work_dir: Path, iterations: int, samples: int, groups: int, **changes: Any) -> Config:
    """Two samples per iteration, in order; a checkpoint after each."""
    loader = dict(
        batch_size=2,
        num_workers=0,
        sampler=dict(type='DefaultSampler', shuffle=False),
        dataset=dict(type='BlinkDataset', num=samples),
        collate_fn=dict(type='pseudo_collate'),
    )
    settings = dict(
        default_scope='mmdet3d',
        work_dir=str(work_dir),
        model=detector_config({'denoising': {'groups': groups}}),
        train_dataloader=loader,
        val_dataloader=loader | dict(dataset=dict(type='BlinkDataset', num=2)),
        train_cfg=dict(type='IterBasedTrainLoop', max_iters=iterations, val_interval=100),
        val_cfg=dict(),
        val_evaluator=dict(type='BlinkMetric'),
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=1e-2)),
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=1, by_epoch=False)),
        randomness=dict(seed=0),
        log_level='ERROR',
    )
    return Config({**settings, **changes})
