"""CMT heads with the sizes and weights of the reference files."""

from __future__ import annotations

from typing import Any

from mmdet3d.registry import MODELS
from mmengine.registry import init_default_scope
from torch import nn

from tests.reference import as_float32


def head_of(data: dict[str, Any], **changes: object) -> nn.Module:
    official = data['meta']['config']
    decoder = official['transformer']['decoder']
    layer = decoder['transformerlayers']
    init_default_scope('mmdet3d')
    same = ('type', 'tasks', 'bbox_coder', 'in_channels', 'num_query', 'hidden_dim', 'depth_num', 'downsample_scale')
    config = {name: official[name] for name in same}
    config['type'] = config['type'].replace('Cmt', 'CMT3D')
    config['bbox_coder'] = {**config['bbox_coder'], 'type': 'CMT3DBBoxCoder'}
    config |= {
        'common_heads': official['common_heads'],
        'separate_head': {k: v for k, v in official['separate_head'].items() if k != 'type'},
        'grid_size': official['test_cfg']['grid_size'],
        'code_weights': official['train_cfg']['code_weights'],
        'transformer': {
            'num_layers': decoder['num_layers'],
            'num_heads': layer['attn_cfgs'][0]['num_heads'],
            'feedforward_channels': layer['feedforward_channels'],
        },
        'denoising': {'groups': official['scalar']},
    }
    head = MODELS.build({**config, **changes}).eval()
    head.load_state_dict(as_float32(data['state_dict']))
    return head


def metas_of(inputs: dict[str, Any]) -> list[dict[str, Any]]:
    if 'lidar2img' not in inputs:
        return [{}] * len(inputs['pts_feats'])
    canvas = tuple(inputs['pad_shape'].tolist())
    return [{'lidar2img': matrices.numpy(), 'pad_shape': canvas} for matrices in inputs['lidar2img']]


def run(head: nn.Module, inputs: dict[str, Any]) -> list[dict[str, Any]]:
    return head(inputs.get('pts_feats'), inputs.get('img_feats'), metas_of(inputs))
