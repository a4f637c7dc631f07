"""Equality with the official implementations, on whatever reference files there are."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from mmdet3d.registry import MODELS, TASK_UTILS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch import nn

import mmprune3d.models
from mmprune3d.layers.key_pruning import Kept
from mmprune3d.models.petr.box_coder import decode_boxes, encode_boxes, wrap_angle
from mmprune3d.models.petr.geometry import img2lidar_of
from mmprune3d.models.petr.position import embed_points, padded_cells
from tests.reference import as_float32, load, reference_files

CONFIGS = Path(mmprune3d.__file__).parents[1] / 'configs' / 'petr'
FILES = reference_files('petr_family', 'petr[._]*pt')
CODERS = reference_files('petr_family', 'nms_free_coder*.pt')
LOGIT_TOLERANCE, BOX_TOLERANCE = 2e-4, 1e-3


def head_of(data: dict) -> nn.Module:
    """Our head with the sizes and weights of a reference file."""
    official = data['meta']['config']
    layer = official['transformer']['decoder']['transformerlayers']
    num_layers = official['transformer']['decoder']['num_layers']
    init_default_scope('mmdet3d')
    head = MODELS.build(
        {
            'type': 'PETR3DHead',
            'num_classes': official['num_classes'],
            'in_channels': official['in_channels'],
            'num_query': official['num_query'],
            'depth_num': official['depth_num'],
            'depth_start': official['depth_start'],
            'lid': official['LID'],
            'position_range': official['position_range'],
            'transformer': {
                'type': 'PETR3DTransformer',
                'num_layers': num_layers,
                'embed_dims': layer['attn_cfgs'][0]['embed_dims'],
                'num_heads': layer['attn_cfgs'][0]['num_heads'],
                'feedforward_channels': layer['feedforward_channels'],
            },
            'bbox_coder': {
                'type': 'PETR3DBoxCoder',
                'pc_range': data['meta']['pc_range'],
                'convention': 'projects_petr',
            },
        }
    ).eval()
    superfluous = tuple(f'{kind}_branches.{i}.' for kind in ('cls', 'reg') for i in range(num_layers, 6))
    head.load_state_dict({k: v for k, v in as_float32(data['state_dict']).items() if not k.startswith(superfluous)})
    return head


def metas_of(inputs: dict) -> list[dict]:
    canvas = tuple(inputs['pad_shape'].tolist())
    return [
        {'lidar2img': matrices.numpy(), 'img_shape': shapes.tolist(), 'pad_shape': canvas}
        for matrices, shapes in zip(inputs['lidar2img'], inputs['img_shape'])
    ]


def cases_of(data: dict) -> list[dict]:
    return [data, *data['cases'].values()]


def close(actual: torch.Tensor, expected: torch.Tensor, atol: float) -> None:
    torch.testing.assert_close(actual, expected, atol=atol, rtol=0)


@pytest.mark.parametrize('path', FILES)
def test_outputs(path: Path) -> None:
    data = load(path)
    head = head_of(data)
    for case in cases_of(data):
        with torch.no_grad():
            outputs = head(case['inputs']['img_feats'], metas_of(case['inputs']))
        close(outputs['all_cls_scores'], case['outputs']['all_cls_scores'], LOGIT_TOLERANCE)
        close(outputs['all_bbox_preds'], case['outputs']['all_bbox_preds'], BOX_TOLERANCE)


@pytest.mark.parametrize('path', FILES)
def test_only_the_last_layer(path: Path) -> None:
    data = load(path)
    with torch.no_grad():
        outputs = head_of(data)(data['inputs']['img_feats'], metas_of(data['inputs']), all_layers=False)
    assert outputs['all_cls_scores'].shape[0] == 1
    close(outputs['all_cls_scores'][-1], data['outputs']['all_cls_scores'][-1], LOGIT_TOLERANCE)
    close(outputs['all_bbox_preds'][-1], data['outputs']['all_bbox_preds'][-1], BOX_TOLERANCE)


class Spy:
    """A pruner that removes nothing and remembers what it saw."""

    def __init__(self) -> None:
        self.seen = []

    def __call__(self, layer, query, keys, record, score_fn):
        index = torch.arange(query.shape[1]).expand(len(query), -1)
        self.seen.append((query, keys, record.rows(index), score_fn(layer, query)))
        return Kept(keys)


@pytest.mark.parametrize('path', FILES)
def test_intermediates(path: Path) -> None:
    data = load(path)
    head = head_of(data)
    for case in cases_of(data):
        inputs, expected = case['inputs'], case['intermediates']
        layer_outputs = []
        first = head.transformer.decoder.layers[0]
        handle = first.register_forward_hook(lambda *a, seen=layer_outputs: seen.append(a[2][0]))
        spy = head.transformer.decoder.key_pruner = Spy()
        with torch.no_grad():
            head(inputs['img_feats'], metas_of(inputs))
        handle.remove()
        query, keys, rows, logits = spy.seen[0]
        flat = lambda maps: maps.permute(0, 1, 3, 4, 2).flatten(1, 3)  # noqa: E731
        if 'memory' in expected:
            close(keys.value, flat(expected['memory']), LOGIT_TOLERANCE)
        close(keys.key - keys.value, flat(expected['key_pos']), LOGIT_TOLERANCE)
        if keys.padding_mask is None:
            assert not expected['key_padding_mask'].any()
        else:
            assert torch.equal(keys.padding_mask, expected['key_padding_mask'])
        close(rows, expected['cross_attn_layer0'], LOGIT_TOLERANCE)
        close(layer_outputs[0], expected['decoder_layer0'], LOGIT_TOLERANCE)
        if 'decoder_out' in expected:
            close(query, expected['decoder_out'][0], LOGIT_TOLERANCE)
        close(logits, case['outputs']['all_cls_scores'][0], LOGIT_TOLERANCE)


@pytest.mark.parametrize('path', FILES)
def test_embeddings(path: Path) -> None:
    data = load(path)
    head, expected = head_of(data), data['intermediates']
    with torch.no_grad():
        query_pos = head.query_embedding(embed_points(head.learned_points(), head.embed_dims // 2))
        canvas = tuple(data['inputs']['pad_shape'].tolist())
        cells = data['inputs']['img_feats'].shape[-2:]
        key_pos = head.key_positions(img2lidar_of(metas_of(data['inputs']), torch.device('cpu')), None, canvas, cells)
    close(query_pos, expected['query_pos'], LOGIT_TOLERANCE)
    close(key_pos, expected['key_pos'], LOGIT_TOLERANCE)
    assert torch.equal(head.learned_points().expand_as(expected['reference_points']), expected['reference_points'])


@pytest.mark.parametrize('path', FILES)
def test_padding_mask(path: Path) -> None:
    for case in cases_of(load(path)):
        inputs = case['inputs']
        cells = tuple(inputs['img_feats'].shape[-2:])
        mask = padded_cells(inputs['img_shape'].tolist(), tuple(inputs['pad_shape'].tolist()), cells)
        expected = case['intermediates']['key_padding_mask']
        assert not expected.any() if mask is None else torch.equal(mask.flatten(1), expected)


KEY_LISTS = {
    'petr.json': 'petr_vov-gridmask_p4_800x320.py',
    'petr_official_full.json': 'petr_vov-gridmask_p4_1600x640.py',
    'petr_official_r50dcn_p4_full.json': 'petr_r50dcn-gridmask_p4_1408x512.py',
    'petr_official.json': 'petr_vov-gridmask_p4_800x320.py',
}


@pytest.mark.parametrize('path', reference_files('petr_family', 'keys/petr[._]*json'))
def test_keys_and_shapes(path: Path) -> None:
    expected = json.loads(path.read_text())
    config = Config.fromfile(CONFIGS / KEY_LISTS[path.name])
    init_default_scope('mmdet3d')
    with torch.device('meta'):
        model = MODELS.build(config.model)
    shapes = {key: list(value.shape) for key, value in model.state_dict().items()}
    if not any(key.startswith('img_backbone') for key in expected):
        shapes = {key: shape for key, shape in shapes.items() if key.startswith('pts_bbox_head')}
    assert shapes == expected


def modern(boxes: torch.Tensor) -> torch.Tensor:
    """Boxes of mmdet3d 0.17 (w, l, yaw of the old kind) as boxes of mmdet3d 1.x."""
    boxes = boxes[..., [0, 1, 2, 4, 3, *range(5, boxes.shape[-1])]].clone()
    boxes[..., 6] = -boxes[..., 6] - math.pi / 2
    return boxes


def close_boxes(actual: torch.Tensor, expected: torch.Tensor) -> None:
    keep = [i for i in range(expected.shape[-1]) if i != 6]
    torch.testing.assert_close(actual[..., keep], expected[..., keep], rtol=1e-5, atol=1e-5)
    assert wrap_angle(actual[..., 6] - expected[..., 6]).abs().max() < 1e-5


GROUPS = ['projects_petr', 'petr', 'streampetr']


@pytest.mark.parametrize('convention', GROUPS)
@pytest.mark.parametrize('path', CODERS)
def test_box_coder(path: Path, convention: str) -> None:
    data = load(path)
    group, meta = data[convention], data['meta']
    change = modern if convention == 'petr' else lambda boxes: boxes
    for case in group['cases']:
        settings = {key: case[key] for key in ('max_num', 'score_threshold', 'post_center_range')}
        base = {'type': 'PETR3DBoxCoder', 'pc_range': meta['pc_range'], 'num_classes': meta['num_classes']}
        coder = TASK_UTILS.build({**base, **settings, 'convention': convention})
        for i, expected in enumerate(case['results']):
            boxes, scores, labels = coder.decode(group['all_cls_scores'][-1, i], group['all_bbox_preds'][-1, i])
            assert torch.equal(labels, expected['labels']), case['name']
            close(scores, expected['scores'], 1e-6)
            close_boxes(boxes, change(expected['bboxes']))


@pytest.mark.parametrize('convention', GROUPS)
@pytest.mark.parametrize('path', CODERS)
def test_encoding(path: Path, convention: str) -> None:
    data = load(path)[convention]['normalize']
    change = modern if convention == 'petr' else lambda boxes: boxes
    for boxes, codes in (('9', '10'), ('7', '8')):
        original, normalised = change(data[f'boxes{boxes}']), data[f'normalized{codes}']
        close(encode_boxes(original, convention), normalised, 1e-5)
        close_boxes(decode_boxes(normalised, convention), change(data[f'denormalized{boxes}']))
    raw = data['denormalize_of_raw']
    close_boxes(decode_boxes(raw['raw'], convention), change(raw['boxes']))
