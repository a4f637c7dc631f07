"""The TransFusion head against the official one."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from mmprune3d.models.bevfusion import BEVFusion3DTransFusionHead
from tests.reference import load, reference_files

from .recorded import assert_leaves_close
from .small_head import built, decoder_layer, metas, objects, small, total

FILES = reference_files('bevfusion', 'transfusion_head*.pt')
KEYS = reference_files('bevfusion', 'keys_lidar*.json')
TOLERANCE = 1e-4


def recorded_head(data: dict) -> BEVFusion3DTransFusionHead:
    head = built(data['meta']['constructor'])
    head.load_state_dict(data['state_dict'])
    return head


@pytest.mark.parametrize('path', FILES)
def test_evaluation_equals_the_official_one(path: Path) -> None:
    data = load(path)
    feats, expected = data['inputs']['feats'], data['outputs']['eval']
    head = recorded_head(data).eval()
    with torch.no_grad():
        raw, found = head(feats, metas(len(feats)))[0][0], head.predict([feats], metas(len(feats)))
    assert_leaves_close(raw, expected['raw'], TOLERANCE, 'raw')
    assert torch.equal(raw['query_labels'], expected['query_labels'])
    for sample, decoded in zip(found, expected['decoded'], strict=True):
        sample = {'boxes': sample.bboxes_3d.tensor, 'scores': sample.scores_3d, 'labels': sample.labels_3d}
        assert_leaves_close(sample, decoded, TOLERANCE, 'decoded')
        assert torch.equal(sample['labels'], decoded['labels'])


@pytest.mark.parametrize('path', FILES)
def test_training_equals_the_official_one(path: Path) -> None:
    data = load(path)
    if not data['meta']['train_part']:
        pytest.skip('the official implementation could not train this head')
    expected, head = data['outputs']['train'], recorded_head(data).train()
    feats = data['inputs']['feats'].clone().requires_grad_()
    truth = objects(data['inputs']['gt_boxes'], data['inputs']['gt_labels'])
    outputs = head(feats, metas(len(truth)))
    assert_leaves_close(outputs[0][0], expected['raw'], TOLERANCE, 'raw')
    targets = asdict(head.get_targets(outputs, truth))
    assert_leaves_close(targets, expected['targets'], TOLERANCE, 'targets')
    for name in ('labels', 'label_weights', 'num_pos'):
        assert torch.equal(torch.as_tensor(targets[name]).long(), torch.as_tensor(expected['targets'][name])), name
    losses = head.loss_by_feat(outputs, truth)
    assert list(losses) == list(expected['losses'])
    assert_leaves_close(losses, expected['losses'], TOLERANCE, 'losses')
    total(losses).backward()
    grads = {name: parameter.grad for name, parameter in head.named_parameters() if parameter.grad is not None}
    assert set(grads) == set(expected['grads'])
    assert_leaves_close(grads, expected['grads'], TOLERANCE, 'grads')
    assert_leaves_close({'feats': feats.grad}, {'feats': expected['grad_feats']}, TOLERANCE, 'grad_feats')
    assert_leaves_close(dict(head.named_buffers()), expected['buffers_after'], TOLERANCE, 'buffers')


@pytest.mark.parametrize('path', KEYS)
def test_keys_of_the_published_head(path: Path) -> None:
    prefix = 'bbox_head.'
    keys = {key: shape for key, shape in json.loads(path.read_text()).items() if key.startswith(prefix)}
    channels, in_channels = keys[f'{prefix}shared_conv.weight'][:2]
    feedforward = keys[f'{prefix}decoder.0.ffn.layers.0.0.weight'][0]
    head = small(
        in_channels=in_channels,
        hidden_channel=channels,
        num_classes=keys[f'{prefix}heatmap_head.1.bias'][0],
        num_decoder_layers=1 + max(int(key.split('.')[2]) for key in keys if key.startswith(f'{prefix}decoder')),
        decoder_layer=decoder_layer(channels, feedforward, 8),
    )
    assert {f'{prefix}{key}': list(value.shape) for key, value in head.state_dict().items()} == keys
