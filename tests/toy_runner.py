"""A model, a data set and a metric small enough to be trained by mmengine's Runner in a second, and their config."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, METRICS, MODELS
from torch import nn
from torch.utils.data import Dataset


@MODELS.register_module()
class ToyModel(BaseModel):
    def __init__(self, num_classes=3, num_query=5, data_preprocessor=None):
        super().__init__(data_preprocessor=data_preprocessor)
        self.backbone = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4))
        self.query_embedding = nn.Embedding(num_query, 4)
        self.fc_cls = nn.Linear(4, num_classes)

    def forward(self, inputs, mode='tensor'):
        features = self.backbone(torch.stack(list(inputs)))
        scores = self.fc_cls(features + self.query_embedding.weight.mean(0))
        return dict(loss=scores.square().mean()) if mode == 'loss' else [scores]


@DATASETS.register_module()
class ToyDataset(Dataset):
    metainfo = dict(classes=('car',), palette=np.zeros((1, 3)))

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return dict(inputs=torch.tensor([index, 1.0]))


@METRICS.register_module()
class ToyMetric(BaseMetric):
    def process(self, data_batch, data_samples):
        self.results.append(float(data_samples[0].mean()))

    def compute_metrics(self, results):
        # Numbers as metrics give them: they go into the checkpoint.
        return dict(score=np.float32(0.5), count=np.int64(len(results)), mean=np.mean(results))


def write_config(path: Path, work_dir: Path, **changes: object) -> Path:
    """A config file that uses every part of mmengine that stores something unusual in checkpoints."""
    loader = dict(
        batch_size=2, num_workers=0, dataset=dict(type='ToyDataset'), sampler=dict(type='DefaultSampler', shuffle=False)
    )
    config = dict(
        default_scope='mmdet3d',
        custom_imports=dict(imports=['mmprune3d', 'tests.toy_runner'], allow_failed_imports=False),
        work_dir=str(work_dir),
        model=dict(type='ToyModel'),
        train_dataloader=loader,
        val_dataloader=loader,
        test_dataloader=loader,
        train_cfg=dict(by_epoch=True, max_epochs=1, val_interval=1),
        val_cfg=dict(),
        test_cfg=dict(),
        val_evaluator=dict(type='ToyMetric'),
        test_evaluator=dict(type='ToyMetric'),
        optim_wrapper=dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=0.01)),
        param_scheduler=[
            dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=3),
            dict(type='OneCycleLR', eta_max=0.1, total_steps=9, by_epoch=False),
            dict(type='CosineAnnealingMomentum', by_epoch=True, T_max=2),
        ],
        custom_hooks=[dict(type='EMAHook')],
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=1, save_best='score', rule='greater')),
        env_cfg=dict(cudnn_benchmark=False, mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0)),
        log_level='INFO',
    )
    config.update(changes)
    path.write_text(''.join(f'{key} = {value!r}\n' for key, value in config.items()))
    return path
