"""Settings and data that do not fit: one message in the config's words, before anything is computed."""

from __future__ import annotations

import pytest
import torch

from .small import PC_RANGE, batch, build, detector_config, head_config
from .test_detector import run

AUX = {'type': 'PETR3DDenseAuxHead', 'num_classes': 4, 'in_channels': 24, 'feat_channels': 16}


def coder(**changes: object) -> dict:
    return {'bbox_coder': head_config()['bbox_coder'] | changes}


@pytest.mark.parametrize(
    ('head', 'message'),
    [
        # a coder of 10 classes, the default, gave labels 0 to 9 of queries that are not theirs
        (coder(num_classes=10), 'bbox_coder.num_classes is 10, but pts_bbox_head.num_classes is 4'),
        (coder(num_classes=2), 'bbox_coder.num_classes is 2'),
        (coder(pc_range=PC_RANGE[:4]), 'pc_range=.*: must be six numbers'),
        (coder(pc_range=PC_RANGE[3:] + PC_RANGE[:3]), 'lower x, y, z and upper x, y, z'),
        (coder(post_center_range=[0, 0, 1]), 'post_center_range'),
        (coder(max_num=0), 'max_num=0: must be a whole number, at least 1'),
        ({'position_range': [1, 2, 3]}, 'position_range'),
        ({'position_range': [0, 0, 0, 1, 0, 1]}, 'position_range'),
        ({'depth_start': 61.2}, 'depth_start=61.2 must be from 0 to below'),
        ({'depth_start': -1.0}, 'depth_start=-1 must be'),
        ({'depth_num': 0}, 'depth_num=0'),
        ({'num_query': 0}, 'num_query=0'),
        ({'num_query': 2.5}, 'num_query=2.5'),
        ({'num_classes': 0, **coder(num_classes=1)}, 'num_classes=0'),
        ({'transformer': {'num_heads': 5}}, 'embed_dims=32 must be a multiple of 4 and of num_heads=5'),
        ({'transformer': {'embed_dims': 30, 'num_heads': 3}}, 'embed_dims=30 must be a multiple of 4'),
        ({'transformer': {'num_layers': 0}}, 'num_layers=0'),
        ({'loss_cls': {'type': 'mmdet.CrossEntropyLoss', 'use_sigmoid': False}}, 'use_sigmoid=True'),
    ],
    ids=str,
)
def test_settings_of_the_head(head: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(head_config(**head))


def test_one_query_and_one_layer_are_enough() -> None:
    model = build(detector_config(head={'num_query': 1, 'transformer': {'num_layers': 1}, **coder(max_num=1)}))
    assert all(torch.isfinite(value).all() for value in run(model, batch(), 'loss').values())
    assert len(run(model, batch(), 'predict')[0].pred_instances_3d) == 1


def test_an_auxiliary_head_of_other_classes() -> None:
    with pytest.raises(ValueError, match=r'aux_head\.num_classes is 3, but pts_bbox_head\.num_classes is 4'):
        build(detector_config(aux_head=AUX | {'num_classes': 3}))


@pytest.mark.parametrize(('label', 'listed'), [(4, '[4]'), (7, '[7]'), (-1, '[-1]')])
def test_labels_that_the_head_does_not_know(label: int, listed: str) -> None:
    """A label equal to num_classes would be background."""
    data = batch()
    data['data_samples'][1].gt_instances_3d.labels_3d[0] = label
    with pytest.raises(ValueError, match='num_classes of pts_bbox_head') as error:
        run(build(detector_config()), data, 'loss')
    assert f'the data have labels {listed}, but num_classes=4 allows 0 to 3' in str(error.value)


@pytest.mark.parametrize('missing', ['gt_instances_3d', 'bboxes_3d', 'labels_3d'])
def test_training_data_without_annotations(missing: str) -> None:
    data = batch()
    for sample in data['data_samples']:
        holder = sample if missing == 'gt_instances_3d' else sample.gt_instances_3d
        delattr(holder, missing)
    with pytest.raises(ValueError, match='no boxes or no labels: the training pipeline needs LoadAnnotations3D'):
        run(build(detector_config()), data, 'loss')


@pytest.mark.parametrize('mode', ['loss', 'predict'])
def test_images_without_cameras(mode: str) -> None:
    data = batch()
    for sample in data['data_samples']:
        sample.set_metainfo({'cam2img': sample.cam2img[:2], 'lidar2cam': sample.lidar2cam[:2]})
    with pytest.raises(ValueError, match='3 images per sample, but matrices of 2 cameras'):
        run(build(detector_config()), data, mode)
