"""DETR and Conditional DETR of mmdet with three narrow decoder layers, and pruning by hand to compare with."""

from __future__ import annotations

from typing import NamedTuple

import torch
from mmdet.models.layers.transformer import coordinate_to_encoding
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.utils import register_all_modules
from mmengine.registry import DefaultScope
from torch import Tensor, nn

from mmprune3d.pruning.tggbc import TgGBCPlan

from .by_hand import ByHand, full_map, prune_by_hand

LAYERS, QUERIES, CLASSES, SEED = 3, 12, 5, 0
SIZES = ((48, 64), (40, 48))
"""Heights and widths of the two images of a batch; the second one is padded."""


def attention(width: int, conditional: bool, cross: bool) -> dict:
    if conditional:
        return dict(embed_dims=width, num_heads=4, attn_drop=0.1, cross_attn=cross)
    return dict(embed_dims=width, num_heads=4, dropout=0.1, batch_first=True)


def config(conditional: bool) -> dict:
    """The detector's config."""
    width = 256 if conditional else 32  # mmdet's sine embedding of the reference points has no other width
    ffn = dict(embed_dims=width, feedforward_channels=48, num_fcs=2, ffn_drop=0.1)
    if conditional:
        head = dict(type='ConditionalDETRHead', loss_cls=dict(type='FocalLoss', use_sigmoid=True))
    else:
        head = dict(type='DETRHead', loss_cls=dict(type='CrossEntropyLoss', class_weight=1.0))
    return dict(
        type='ConditionalDETR' if conditional else 'DETR',
        num_queries=QUERIES,
        backbone=dict(
            type='ResNet', depth=18, base_channels=8, num_stages=2, strides=(1, 2), dilations=(1, 1), out_indices=(1,)
        ),
        neck=dict(type='ChannelMapper', in_channels=[16], kernel_size=1, out_channels=width, norm_cfg=None, num_outs=1),
        encoder=dict(num_layers=1, layer_cfg=dict(self_attn_cfg=attention(width, False, False), ffn_cfg=ffn)),
        decoder=dict(
            num_layers=LAYERS,
            layer_cfg=dict(
                self_attn_cfg=attention(width, conditional, False),
                cross_attn_cfg=attention(width, conditional, True),
                ffn_cfg=ffn,
            ),
            return_intermediate=True,
        ),
        positional_encoding=dict(num_feats=width // 2, normalize=True),
        bbox_head=dict(num_classes=CLASSES, embed_dims=width, **head),
    )


def build(conditional: bool, settings: dict | None = None) -> nn.Module:
    """The detector, with random weights and biases; `settings` may hold more than `config` has."""
    register_all_modules(init_default_scope=False)
    torch.manual_seed(SEED)
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(settings or config(conditional))
    for parameter in model.parameters():
        if parameter.dim() < 4:
            spread = 4 * parameter.shape[-1] ** -0.5 if parameter.dim() == 2 else 0.2
            parameter.data.add_(torch.randn(parameter.shape) * spread)
    tell_queries_apart(model.eval())
    return model


@torch.no_grad()
def tell_queries_apart(model: nn.Module) -> None:
    """Makes the head look only at what differs between queries: by random weights, they would get equal logits."""
    data, classify = batch(1), model.bbox_head.fc_cls
    hidden = model.forward_transformer(model.extract_feat(data.inputs), data.data_samples)['hidden_states']
    common = torch.linalg.qr(hidden[:, 0].mean(1).T).Q
    classify.weight.sub_(classify.weight @ common @ common.T)
    classify.weight.div_(classify(hidden).std(-2).mean())


class Batch(NamedTuple):
    inputs: Tensor
    data_samples: list[DetDataSample]


def batch(size: int) -> Batch:
    """Random images [size, 3, 48, 64], of which the second one fills a part."""
    inputs, samples = torch.zeros(size, 3, *SIZES[0]), []
    for image, (height, width) in zip(inputs, SIZES):
        image[:, :height, :width] = torch.randn(3, height, width, generator=torch.Generator().manual_seed(height))
        shape = dict(img_shape=(height, width), batch_input_shape=SIZES[0])
        samples.append(DetDataSample(metainfo=shape))
    return Batch(inputs, samples)


@torch.no_grad()
def outputs(model: nn.Module, data: Batch) -> tuple[Tensor, Tensor]:
    """Logits and boxes [layers, B, N_q, ...] of all layers."""
    return model(*data, mode='tensor')


@torch.no_grad()
def by_hand(model: nn.Module, data: Batch, plan: TgGBCPlan, background: bool = False) -> list[ByHand]:
    """Every sample alone; see `prune_by_hand`. No plan may be attached."""
    encoder_inputs, decoder_inputs = model.pre_transformer(model.extract_feat(data.inputs), data.data_samples)
    memory = model.forward_encoder(**encoder_inputs)['memory']
    start, padding = model.pre_decoder(memory)[0], decoder_inputs['memory_mask']
    padding = torch.zeros(memory.shape[:2], dtype=torch.bool) if padding is None else padding
    results = []
    for i in range(len(memory)):
        query_pos = start['query_pos'][i : i + 1]

        def run(index: int, query: Tensor, ids: Tensor, i: int = i, query_pos: Tensor = query_pos) -> tuple:
            layer = model.decoder.layers[index]
            keys = dict(key=memory[i : i + 1, ids], key_pos=decoder_inputs['memory_pos'][i : i + 1, ids])
            with full_map(getattr(layer.cross_attn, 'attn', layer.cross_attn)) as maps:
                query = layer(query, query_pos=query_pos, **keys, **special_inputs(model, index, query, query_pos))
            return query, maps[0][0]

        def logits_of(index: int, query: Tensor) -> Tensor:
            return model.bbox_head.fc_cls(model.decoder.post_norm(query))[0]

        query = start['query'][i : i + 1]
        results.append(prune_by_hand(run, logits_of, query, padding[i], plan, LAYERS, background))
    return results


def special_inputs(model: nn.Module, index: int, query: Tensor, query_pos: Tensor) -> dict:
    """What the decoder of Conditional DETR passes to its layers besides."""
    if not hasattr(model.decoder, 'query_scale'):
        return {}
    points = model.decoder.ref_point_head(query_pos).sigmoid()[..., :2]
    scale = model.decoder.query_scale(query) if index else 1
    return dict(ref_sine_embed=coordinate_to_encoding(coord_tensor=points) * scale, is_first=index == 0)
