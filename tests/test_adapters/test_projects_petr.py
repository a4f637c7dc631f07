"""PETR of mmdet3d's projects/PETR, pruned by the adapter and by hand, where a checkout of mmdet3d is at hand.

The project is no part of the wheel: it is imported if it is importable, or from the checkout that $MMDET3D_ROOT names.
"""

from __future__ import annotations

import copy
import importlib
import os

import numpy as np
import pytest
import torch
from mmdet3d.registry import MODELS
from mmengine.registry import DefaultScope
from torch import Tensor, nn

from mmprune3d import adapters
from mmprune3d.pruning.tggbc import TgGBCPlan

from .by_hand import ByHand, assert_equal, full_map, prune_by_hand

VARIABLE = 'MMDET3D_ROOT'
LAYERS, CAMERAS, CELLS, CANVAS = 3, 2, (3, 4), (48, 64)
RANGE = [-61.2, -61.2, -10.0, 61.2, 61.2, 10.0]


def attention(name: str) -> dict:
    return dict(
        type=name, embed_dims=256, num_heads=8, attn_drop=0.1, dropout_layer=dict(type='Dropout', drop_prob=0.1)
    )


def config() -> dict:
    """The head of the project's config, with fewer layers and queries."""
    layer = dict(
        type='PETRTransformerDecoderLayer',
        attn_cfgs=[attention('MultiheadAttention'), attention('PETRMultiheadAttention')],
        feedforward_channels=64,
        ffn_dropout=0.1,
        operation_order=('self_attn', 'norm', 'cross_attn', 'norm', 'ffn', 'norm'),
    )
    decoder = dict(type='PETRTransformerDecoder', return_intermediate=True, num_layers=LAYERS, transformerlayers=layer)
    return dict(
        type='PETRHead',
        num_classes=10,
        in_channels=16,
        num_query=12,
        LID=True,
        with_position=True,
        with_multiview=True,
        position_range=RANGE,
        transformer=dict(type='PETRTransformer', decoder=decoder),
        bbox_coder=dict(type='NMSFreeCoder', post_center_range=RANGE, pc_range=RANGE, max_num=10, num_classes=10),
        positional_encoding=dict(type='SinePositionalEncoding3D', num_feats=128, normalize=True),
        loss_cls=dict(type='mmdet.FocalLoss', use_sigmoid=True, loss_weight=2.0),
        loss_bbox=dict(type='mmdet.L1Loss', loss_weight=0.25),
        loss_iou=dict(type='mmdet.GIoULoss', loss_weight=0.0),
        train_cfg=None,
    )


@pytest.fixture(scope='module')
def project() -> nn.Module:
    with pytest.MonkeyPatch.context() as patch:
        if os.environ.get(VARIABLE):
            patch.syspath_prepend(os.environ[VARIABLE])
        try:
            importlib.import_module('projects.PETR.petr')
        except ModuleNotFoundError as error:
            pytest.skip(f'projects/PETR of mmdet3d cannot be imported ({error}); ${VARIABLE} may name a checkout')
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmdet3d'):
        head = MODELS.build(config())
    for parameter in head.transformer.parameters():
        spread = 3 * parameter.shape[-1] ** -0.5 if parameter.dim() == 2 else 0.2
        parameter.data.add_(torch.randn(parameter.shape) * spread)
    torch.nn.init.uniform_(head.reference_points.weight)
    return head.eval()


@pytest.fixture
def head(project: nn.Module) -> nn.Module:
    return copy.deepcopy(project)


def inputs(size: int, padded: bool) -> tuple[list[Tensor], list[dict]]:
    feats = torch.randn(size, CAMERAS, 16, *CELLS, generator=torch.Generator().manual_seed(1))
    lidar2img = np.array([[40.0, 5, 32, 0], [3, 45, 24, 0], [0.1, 0, 1, 0.5], [0, 0, 0, 1]])
    shapes = [[CANVAS, CANVAS], [(48, 48), (32, 64)]] if padded else [[CANVAS] * 2] * 2
    metas = [dict(pad_shape=CANVAS, img_shape=shape, lidar2img=[lidar2img, lidar2img.T + 1]) for shape in shapes]
    return [feats], metas[:size]


@torch.no_grad()
def outputs(head: nn.Module, data: tuple) -> tuple[Tensor, Tensor]:
    found = head(*data)
    return found['all_cls_scores'], found['all_bbox_preds']


def by_hand(head: nn.Module, data: tuple, plan: TgGBCPlan) -> list[ByHand]:
    decoder, seen = head.transformer.decoder, []
    handle = decoder.register_forward_pre_hook(lambda _, args, kwargs: seen.append(kwargs), with_kwargs=True)
    outputs(head, data)
    handle.remove()
    (given,), results = seen, []
    for i, padding in enumerate(given['key_padding_mask']):
        sample = {name: given[name][:, i : i + 1] for name in ('query', 'key', 'key_pos', 'query_pos')}

        def run(index: int, query: Tensor, ids: Tensor, sample: dict = sample) -> tuple[Tensor, Tensor]:
            layer = decoder.layers[index]
            key, key_pos = sample['key'][ids], sample['key_pos'][ids]
            with full_map(layer.attentions[1].attn) as maps:
                query = layer(query, key=key, value=key, key_pos=key_pos, query_pos=sample['query_pos'])
            return query, maps[0][0]

        def logits_of(index: int, query: Tensor) -> Tensor:
            return head.cls_branches[index](decoder.post_norm(query))[:, 0]

        results.append(prune_by_hand(run, logits_of, sample['query'], padding, plan, LAYERS))
    return results


@pytest.mark.parametrize(('size', 'padded'), [(1, False), (2, False), (2, True)])
@pytest.mark.parametrize('settings', [dict(r=16, n=2, k=4), dict(r=0.6, n=1, k=3)], ids=str)
def test_equals_pruning_by_hand(head: nn.Module, size: int, padded: bool, settings: dict) -> None:
    plan, data = TgGBCPlan(**settings), inputs(size, padded)
    expected = by_hand(head, data, plan)
    adapters.attach(head, plan)
    assert_equal(outputs(head, data)[0], adapters.kept_keys(head, lambda: outputs(head, data)), expected)


def test_branches_that_differ_score_their_own_layers(head: nn.Module) -> None:
    head.cls_branches = nn.ModuleList(copy.deepcopy(branch) for branch in head.cls_branches)
    for branch in head.cls_branches:
        torch.nn.init.normal_(branch[-1].weight, std=0.05)
    test_equals_pruning_by_hand(head, 2, True, dict(r=16, n=2, k=2))


def test_removing_nothing_and_detaching_are_bit_identical(head: nn.Module) -> None:
    data = inputs(2, True)
    before, names = outputs(head, data), list(head.state_dict())
    for r, identical in ((0, True), (16, False)):
        adapters.attach(head, TgGBCPlan(r=r, n=1, k=4))
        assert list(head.state_dict()) == names
        assert all(torch.equal(*pair) for pair in zip(outputs(head, data), before)) is identical
    adapters.detach(head)
    assert all(torch.equal(*pair) for pair in zip(outputs(head, data), before))


def test_without_intermediate_outputs_keys_come_by_position(head: nn.Module) -> None:
    data = inputs(2, True)
    adapters.attach(head, TgGBCPlan(r=16, n=2, k=4))
    expected = outputs(head, data)[0][-1]
    head.transformer.decoder.return_intermediate = False
    head.cls_branches[0] = head.cls_branches[-1]
    torch.testing.assert_close(outputs(head, data)[0][0], expected)


def test_masks_of_the_cross_attention_in_either_form(head: nn.Module) -> None:
    decoder, generator = head.transformer.decoder, torch.Generator().manual_seed(2)
    query, key = (torch.randn(count, 2, 256, generator=generator) for count in (6, 12))
    mask = torch.arange(12) % 6 != torch.arange(6)[:, None]
    given = dict(query=query, key=key, value=key, key_pos=key + 1, query_pos=query)
    adapters.attach(head, TgGBCPlan(r=11, n=1, k=2))
    with torch.no_grad():
        call = lambda: decoder(**given, attn_masks=[None, mask])  # noqa: E731
        assert adapters.keys_per_layer(head, call) == [12, 6, 6]
        assert call().isfinite().all()
        square = dict(given, key=query, value=query, key_pos=query)
        adapters.attach(head, TgGBCPlan(r=3, n=1, k=2))
        same = torch.eye(6, dtype=torch.bool)
        torch.testing.assert_close(decoder(**square, attn_masks=same), decoder(**square, attn_masks=[same, same]))


def test_trains_with_gradient_checkpointing(head: nn.Module) -> None:
    """The recomputation of a layer in the backward pass sees the keys of its forward pass."""
    adapters.attach(head.train(), TgGBCPlan(r=16, n=2, k=4))
    for module in head.modules():
        if isinstance(module, (nn.Dropout, nn.MultiheadAttention)):
            module.p = module.dropout = 0.0
    gradients = []
    for recompute in (False, True):
        head.zero_grad()
        for layer in head.transformer.decoder.layers:
            layer.use_checkpoint = recompute
        head(*inputs(2, True))['all_cls_scores'].square().mean().backward()
        gradients.append(head.transformer.decoder.layers[-1].attentions[1].attn.in_proj_weight.grad.clone())
        assert all(stand_in._seen is None for stand_in in head.transformer.decoder.mmprune3d_hooks.stand_ins[:-1])
    torch.testing.assert_close(*gradients)
    assert gradients[0].abs().sum() > 0


def test_it_is_found_inside_a_detector(head: nn.Module) -> None:
    detector = nn.Module()
    detector.img_backbone, detector.pts_bbox_head = nn.Identity(), head
    assert adapters.stages(detector) == {'backbone': detector.img_backbone, 'decoder': head.transformer.decoder}
