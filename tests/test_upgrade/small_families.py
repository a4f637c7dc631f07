"""A tiny detector, its config, weights and data for every family that has an adapter."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from mmcv.cnn.bricks.transformer import BaseTransformerLayer, TransformerLayerSequence
from mmdet3d.registry import MODELS
from mmdet3d.structures import LiDARInstance3DBoxes
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData
from torch import Tensor, nn

from tests.test_adapters import small_detr

CLASSES = tuple(f'kind{number}' for number in range(small_detr.CLASSES))
IMAGES = ((64, 48), (48, 40), (64, 48), (56, 48))
"""Widths and heights."""


def detr_config(folder: Path, conditional: bool) -> Config:
    """The config of a small DETR of mmdet that is tested on images in `folder`."""
    detector = small_detr.config(conditional)
    detector['data_preprocessor'] = dict(type='DetDataPreprocessor', mean=[128.0] * 3, std=[60.0] * 3)
    detector['test_cfg'] = dict(max_per_img=small_detr.QUERIES)
    pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='Resize', scale=(96, 72), keep_ratio=True),
        dict(type='LoadAnnotations', with_bbox=True),
        dict(
            type='PackDetInputs',
            meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor', 'homography_matrix'),
        ),
    ]
    dataset = dict(
        type='CocoDataset',
        data_root=f'{folder}/',
        ann_file='annotations.json',
        data_prefix=dict(img='images/'),
        metainfo=dict(classes=CLASSES),
        test_mode=True,
        pipeline=pipeline,
    )
    sampler = dict(type='DefaultSampler', shuffle=False)
    return Config(
        dict(
            default_scope='mmdet',
            model=detector,
            test_dataloader=dict(batch_size=1, num_workers=0, dataset=dataset, sampler=sampler),
            test_cfg=dict(type='TestLoop'),
            test_evaluator=dict(type='CocoMetric', ann_file=f'{folder}/annotations.json', metric='bbox'),
            default_hooks=dict(logger=dict(type='LoggerHook')),
        )
    )


def write_coco(folder: Path, model: nn.Module, config: Config) -> None:
    """Images of noise, annotated with what the detector finds in them, so that it finds everything."""
    from mmdet.registry import DATASETS

    (folder / 'images').mkdir(parents=True)
    generator = np.random.default_rng(0)
    images = []
    for number, (width, height) in enumerate(IMAGES, 1):
        name = f'{number}.png'
        cv2.imwrite(str(folder / 'images' / name), generator.integers(0, 255, (height, width, 3), np.uint8))
        images.append(dict(id=number, file_name=name, width=width, height=height))
    data = dict(images=images, annotations=[], categories=[dict(id=i + 1, name=name) for i, name in enumerate(CLASSES)])
    (folder / 'annotations.json').write_text(json.dumps(data))
    with DefaultScope.overwrite_default_scope('mmdet'), torch.no_grad():
        for packed in DATASETS.build(config.test_dataloader.dataset):
            batch = {'inputs': [packed['inputs']], 'data_samples': [packed['data_samples']]}
            (sample,) = model.eval().test_step(batch)
            for box, label in zip(sample.pred_instances.bboxes.tolist(), sample.pred_instances.labels.tolist()):
                left, top, width, height = box[0], box[1], box[2] - box[0], box[3] - box[1]
                annotation = dict(id=len(data['annotations']) + 1, image_id=sample.img_id, category_id=label + 1)
                annotation.update(bbox=[left, top, width, height], area=width * height, iscrowd=0)
                data['annotations'].append(annotation)
    (folder / 'annotations.json').write_text(json.dumps(data))


def make_detr(folder: Path, conditional: bool) -> tuple[Path, Path]:
    """Config and checkpoint of a DETR that finds everything in its test set."""
    config = detr_config(folder, conditional)
    model = small_detr.build(conditional, copy.deepcopy(config.model))  # building writes into it
    write_coco(folder, model, config)
    torch.save({'state_dict': model.state_dict(), 'meta': {}}, folder / 'detr.pth')
    config.dump(folder / 'detr.py')
    return folder / 'detr.py', folder / 'detr.pth'


class PETRTransformerDecoder(TransformerLayerSequence):
    """Stands in for the decoder of mmdet3d's ``projects/PETR``: mmcv's layers, one after the other."""

    def __init__(self, width: int, layers: int) -> None:
        attention = dict(type='MultiheadAttention', embed_dims=width, num_heads=4)
        layer = dict(
            type='BaseTransformerLayer',
            attn_cfgs=[attention, attention],
            ffn_cfgs=dict(type='FFN', embed_dims=width, feedforward_channels=2 * width, num_fcs=2),
            operation_order=('self_attn', 'norm', 'cross_attn', 'norm', 'ffn', 'norm'),
        )
        nn.Module.__init__(self)
        self.layers = nn.ModuleList(
            BaseTransformerLayer(**{k: v for k, v in layer.items() if k != 'type'}) for _ in range(layers)
        )
        self.post_norm = nn.LayerNorm(width)

    def forward(self, query: Tensor, **others: Any) -> list[Tensor]:
        """Outputs [N_q, B, C] of all layers."""
        outputs = []
        for layer in self.layers:
            query = layer(query, **others)
            outputs.append(self.post_norm(query))
        return outputs


class ProjectsHead(nn.Module):
    """What the adapter wants of the head of ``projects/PETR``."""

    def __init__(self, width: int, layers: int, queries: int, classes: int) -> None:
        super().__init__()
        self.transformer = nn.Module()
        self.transformer.decoder = PETRTransformerDecoder(width, layers)
        self.cls_branches = nn.ModuleList(nn.Linear(width, classes) for _ in range(layers))
        self.reg_branch = nn.Linear(width, 9)
        self.reference_points = nn.Embedding(queries, width)
        self.loss_cls = nn.Module()
        self.loss_cls.use_sigmoid = True

    def forward(self, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B, N_q, classes] and boxes [B, N_q, 9] from keys [N_k, B, C]."""
        query = self.reference_points.weight[:, None].expand(-1, keys.shape[1], -1)
        outputs = self.transformer.decoder(query * 0, key=keys, value=keys, query_pos=query, key_pos=keys * 0)
        last = outputs[-1].transpose(0, 1)
        return self.cls_branches[-1](last), self.reg_branch(last)


@MODELS.register_module()
class ProjectsPETRStandIn(BaseModel):
    """A detector with the decoder of ``projects/PETR``."""

    def __init__(self, width: int = 32, layers: int = 3, queries: int = 20, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.img_backbone = nn.Conv2d(3, width, 16, 16)
        self.pts_bbox_head = ProjectsHead(width, layers, queries, 10)

    def extract_feat(self, imgs: Tensor) -> Tensor:
        """Keys [N_k, B, C] of all cameras."""
        return self.img_backbone(imgs.flatten(0, 1)).unflatten(0, imgs.shape[:2]).permute(1, 3, 4, 0, 2).flatten(0, 2)

    def forward(self, inputs: dict[str, Tensor], data_samples: list, mode: str = 'tensor') -> list:
        """Predictions."""
        logits, boxes = self.pts_bbox_head(self.extract_feat(inputs['imgs']))
        for sample, scores, rows in zip(data_samples, logits.sigmoid(), boxes):
            best, labels = scores.max(-1)
            rows = torch.cat([30 * rows[:, :3].tanh(), rows[:, 3:6].exp(), rows[:, 6:]], 1)
            found = dict(bboxes_3d=LiDARInstance3DBoxes(rows, 9), scores_3d=best, labels_3d=labels)
            sample.pred_instances_3d, sample.pred_instances = InstanceData(**found), InstanceData()
        return data_samples


def make_projects_petr(folder: Path, base: Path, overrides: dict[str, Any]) -> tuple[Path, Path]:
    """Config and checkpoint of the stand-in, tested on the data of another config."""
    config = Config.fromfile(base)
    config.merge_from_dict(overrides)
    preprocessor = dict(config.model.data_preprocessor)
    config.model = dict(type='ProjectsPETRStandIn', data_preprocessor=preprocessor)
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmdet3d'):
        model = MODELS.build(config.model)
    for branch in model.pts_bbox_head.cls_branches:
        nn.init.normal_(branch.weight, std=0.5)
    nn.init.normal_(model.pts_bbox_head.reference_points.weight, std=2.0)
    folder.mkdir(parents=True)
    torch.save({'state_dict': model.state_dict(), 'meta': {}}, folder / 'projects.pth')
    config.dump(folder / 'projects.py')
    return folder / 'projects.py', folder / 'projects.pth'
