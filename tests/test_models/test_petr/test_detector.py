from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from mmdet3d.registry import MODELS, TASK_UTILS, TRANSFORMS
from mmdet3d.structures import LiDARInstance3DBoxes

import mmprune3d.datasets.transforms
import mmprune3d.models.petr.dense_aux_head
import mmprune3d.models.petr.losses
from mmprune3d.layers.key_pruning import Kept
from mmprune3d.models.petr.geometry import canvas_of, image_shapes_of, img2lidar_of

from .small import CAMERAS, HEIGHT, WIDTH, batch, build, detector_config, features, head_config, sample

# What mmdet3d's projects/PETR, projects/DETR3D and projects/BEVFusion, and StreamPETR register.
TAKEN = [
    'PETR',
    'PETRHead',
    'PETRDNTransformer',
    'PETRTransformer',
    'PETRTransformerDecoder',
    'PETRTransformerDecoderLayer',
    'Petr3D',
    'PETRTransformerEncoder',
    'PETRMultiheadAttention',
    'CPFPN',
    'VoVNet',
    'VoVNetCP',
    'GridMask',
    'HungarianAssigner3D',
    'BBox3DL1Cost',
    'IoUCost',
    'FocalLossCost',
    'ClassificationCost',
    'BBoxL1Cost',
    'NMSFreeCoder',
    'NMSFreeClsCoder',
    'SinePositionalEncoding3D',
    'LearnedPositionalEncoding3D',
    'ResizeCropFlipImage',
    'GlobalRotScaleTransImage',
    'DETR3D',
    'DETR3DHead',
    'Detr3DTransformer',
    'Detr3DTransformerDecoder',
    'Detr3DCrossAtten',
    'StreamPETRHead',
    'PETRHeadDN',
    'PETRv2Head',
    'PETRv2DNHead',
    'FocalHead',
    'PETRTemporalTransformer',
    'PETRTemporalDecoderLayer',
    'PETRMultiheadFlashAttention',
    'Petr3D_seg',
    'RandomFlip3D',
    'ImageAug3D',
    'PhotoMetricDistortionMultiViewImage',
    'NormalizeMultiviewImage',
    'PadMultiViewImage',
]


def total(losses: dict[str, torch.Tensor]) -> torch.Tensor:
    return sum(value.sum() for value in losses.values())


def run(model: torch.nn.Module, data: dict, mode: str) -> object:
    return model(**model.data_preprocessor(copy.deepcopy(data), training=mode == 'loss'), mode=mode)


def test_names_are_our_own() -> None:
    ours = {*mmprune3d.models.petr.__all__, *mmprune3d.datasets.transforms.__all__}
    assert not ours & set(TAKEN)
    registered = {name for registry in (MODELS, TASK_UTILS, TRANSFORMS) for name in registry.module_dict} & ours
    assert {'PETR3D', 'PETR3DHead', 'PETR3DTransformer', 'PETR3DBoxCoder', 'PETR3DAssigner'} <= registered


@pytest.mark.parametrize('num_samples', [1, 2])
def test_predictions_are_instances(num_samples: int) -> None:
    model = build(detector_config())
    with torch.no_grad():
        samples = run(model, batch(num_samples), 'predict')
    assert len(samples) == num_samples
    for result in samples:
        found = result.pred_instances_3d
        assert isinstance(found.bboxes_3d, LiDARInstance3DBoxes)
        assert len(found) == len(found.bboxes_3d) == len(found.scores_3d) == len(found.labels_3d) == 20
        assert found.bboxes_3d.tensor.shape == (20, 9)
        assert (found.scores_3d.diff() <= 0).all()
        assert set(found.labels_3d.tolist()) <= set(range(4))


def test_a_batch_can_be_used_again() -> None:
    model = build(detector_config())
    data = model.data_preprocessor(batch(1), training=False)
    images = data['inputs']['imgs'].clone()
    with torch.no_grad():
        first, second = (model(**data, mode='predict')[0].pred_instances_3d for _ in range(2))
    assert torch.equal(data['inputs']['imgs'], images)
    assert torch.equal(first.bboxes_3d.tensor, second.bboxes_3d.tensor)
    assert torch.equal(first.scores_3d, second.scores_3d)


def test_samples_of_a_batch_do_not_influence_each_other() -> None:
    model, both = build(detector_config()), batch(2)
    alone = {'inputs': {'img': both['inputs']['img'][1:]}, 'data_samples': both['data_samples'][1:]}
    with torch.no_grad():
        together, single = run(model, both, 'tensor'), run(model, alone, 'tensor')
    torch.testing.assert_close(together['all_cls_scores'][:, 1:], single['all_cls_scores'], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(together['all_bbox_preds'][:, 1:], single['all_bbox_preds'], atol=1e-4, rtol=1e-5)


def test_padded_cells_do_not_count() -> None:
    """An image that does not fill the canvas: the padding's content changes nothing."""
    head = build(head_config())
    metas = [sample(size=(32, 64)).metainfo | {'img_shape': (32, 48)}]
    feats = features(1)
    changed = feats.clone()
    changed[..., 3] = 100.0
    with torch.no_grad():
        before, after = head(feats, metas), head(changed, metas)
    assert torch.equal(before['all_cls_scores'], after['all_cls_scores'])


def test_prediction_uses_the_last_layer_only() -> None:
    calls = []
    for flag, expected in ((False, [2]), (True, [0, 1, 2])):
        head = build(head_config(all_layers_at_test=flag, share_branches=False))
        for layer, branch in enumerate(head.cls_branches):
            branch.register_forward_hook(lambda *_, layer=layer: calls.append(layer))
        with torch.no_grad():
            results = head.predict([features(1)], [sample()])
        assert calls == expected
        calls.clear()
        assert len(results[0]) == 20


@pytest.mark.parametrize('with_cp', [False, True])
@pytest.mark.parametrize('denoising', [None, {'groups': 3}])
def test_losses_are_finite_and_train_everything(with_cp: bool, denoising: dict | None) -> None:
    head = {'transformer': {'with_cp': with_cp}, 'denoising': denoising}
    model = build(detector_config(head, use_grid_mask=True)).train()
    losses = run(model, batch(), 'loss')
    kinds = ['loss_cls', 'loss_bbox'] + (['dn_loss_cls', 'dn_loss_bbox'] if denoising else [])
    assert set(losses) == {f'{layer}{kind}' for layer in ('d0.', 'd1.', '') for kind in kinds}
    total(losses).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_a_batch_without_objects_has_losses() -> None:
    model = build(detector_config({'denoising': {'groups': 3}})).train()
    losses = run(model, batch(boxes=(0,)), 'loss')
    for name, loss in losses.items():
        assert (loss == 0) if name.endswith('bbox') else (loss > 0), name
    total(losses).backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_all_ranks_reduce_equally_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rank without objects must not skip a reduction that the others wait in."""
    aux_head = {'type': 'PETR3DDenseAuxHead', 'num_classes': 4, 'in_channels': 24}
    model = build(detector_config({'denoising': {'groups': 3}}, aux_head=aux_head)).train()
    calls = []
    for module in (mmprune3d.models.petr.losses, mmprune3d.models.petr.dense_aux_head):
        monkeypatch.setattr(module, 'reduce_mean', lambda value: calls.append(value.shape) or value)
    names = []
    for boxes in ((5, 2), (0,)):
        names.append(set(run(model, batch(boxes=boxes), 'loss')))
        calls.append('next rank')
    assert names[0] == names[1]
    middle = calls.index('next rank')
    assert middle > 0 and calls[:middle] == calls[middle + 1 : -1]


def test_gradient_checkpointing_changes_nothing() -> None:
    gradients = []
    for with_cp in (False, True):
        head = build(head_config(transformer={'with_cp': with_cp, 'dropout': 0.0})).train()
        outputs = head(features(), [sample().metainfo] * 2)
        outputs['all_cls_scores'].square().mean().backward()
        gradients.append([p.grad for p in head.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(gradients[1]) > 0
    for plain, recomputed in zip(*gradients):
        torch.testing.assert_close(plain, recomputed)


def test_gradient_checkpointing_with_dropout_is_the_same_dropout() -> None:
    losses = []
    for with_cp in (False, True):
        head = build(head_config(transformer={'with_cp': with_cp})).train()
        torch.manual_seed(5)
        outputs = head(features(), [sample().metainfo] * 2)
        loss = outputs['all_cls_scores'].square().mean()
        loss.backward()
        losses.append((loss.detach(), head.input_proj.weight.grad))
    torch.testing.assert_close(losses[0], losses[1])


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_autocast(dtype: torch.dtype) -> None:
    model = build(detector_config()).eval()
    data = model.data_preprocessor(batch(), training=False)
    with torch.no_grad():
        plain = model(**data, mode='tensor')
        with torch.autocast('cpu', dtype):
            mixed = model(**data, mode='tensor')
    assert mixed['all_bbox_preds'].dtype == mixed['all_cls_scores'].dtype == torch.float32
    torch.testing.assert_close(mixed['all_cls_scores'], plain['all_cls_scores'], atol=0.1, rtol=0.1)
    centres = [outputs['all_bbox_preds'][..., [0, 1, 4]] for outputs in (mixed, plain)]
    torch.testing.assert_close(*centres, atol=1.0, rtol=0)


def test_training_under_autocast() -> None:
    model = build(detector_config({'denoising': {'groups': 2}})).train()
    data = model.data_preprocessor(batch(), training=True)
    with torch.autocast('cpu', torch.bfloat16):
        losses = model(**data, mode='loss')
    assert all(value.dtype == torch.float32 and value.isfinite() for value in losses.values())
    total(losses).backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_a_pruner_that_removes_nothing_changes_nothing() -> None:
    head = build(head_config())
    metas = [sample().metainfo] * 2
    asked = []

    def keep_all(layer, query, keys, record, score_fn):
        asked.append((layer, query.shape[1]))
        return Kept(keys)

    with torch.no_grad():
        plain = head(features(), metas)
        head.transformer.decoder.key_pruner = keep_all
        pruned = head(features(), metas)
        last = head(features(), metas, all_layers=False)
    assert torch.equal(plain['all_cls_scores'], pruned['all_cls_scores'])
    assert torch.equal(plain['all_bbox_preds'], pruned['all_bbox_preds'])
    assert torch.equal(plain['all_cls_scores'][-1:], last['all_cls_scores'])
    assert asked == [(0, 12), (1, 12)] * 2


@pytest.mark.parametrize('with_cp', [False, True])
def test_a_pruner_never_sees_denoising_queries(with_cp: bool) -> None:
    head = build(head_config(denoising={'groups': 3}, transformer={'with_cp': with_cp, 'dropout': 0.0})).train()
    seen = []

    def prune(layer, query, keys, record, score_fn):
        rows = record.rows(torch.arange(query.shape[1]).expand(len(query), -1))
        seen.append((layer, query.shape[1], rows.shape[-1], score_fn(layer, query).shape))
        return Kept(keys.map(lambda tokens: tokens[:, ::2]))

    head.transformer.decoder.key_pruner = prune
    total(head.loss([features()], [sample(3), sample(2)])).backward()
    keys = CAMERAS * 2 * 4
    assert seen == [(0, 12, keys, (2, 12, 4)), (1, 12, keys // 2, (2, 12, 4))]


@pytest.mark.parametrize('share', [True, False])
def test_branches(share: bool) -> None:
    head = build(head_config(share_branches=share))
    assert len(head.cls_branches) == len(head.reg_branches) == 3
    assert (head.cls_branches[0] is head.cls_branches[2]) == share
    keys = [key for key in head.state_dict() if key.startswith('cls_branches.')]
    assert len(keys) == 3 * 10


def test_state_dict_has_no_training_only_parts() -> None:
    plain = build(detector_config()).state_dict()
    aux_head = {'type': 'PETR3DDenseAuxHead', 'num_classes': 4, 'in_channels': 24}
    config = detector_config({'denoising': {'groups': 2}}, use_grid_mask=True, aux_head=aux_head)
    full = build(config).state_dict()
    assert {key for key in full if key not in plain} == {key for key in full if key.startswith('aux_head.')}
    assert set(plain) <= set(full)


def test_geometry_from_meta() -> None:
    meta = sample().metainfo
    projection = np.stack([np.eye(4)] * CAMERAS)
    expected = img2lidar_of([meta], torch.device('cpu'))
    assert torch.equal(img2lidar_of([meta | {'lidar2img': projection}], torch.device('cpu')), expected)
    only = {'lidar2img': 2 * projection}
    torch.testing.assert_close(img2lidar_of([only], torch.device('cpu'))[0], torch.eye(4).expand(CAMERAS, 4, 4) / 2)
    with pytest.raises(KeyError, match='cam2img'):
        img2lidar_of([{'img_shape': (3, 4)}], torch.device('cpu'))
    with pytest.raises(KeyError, match='pad_shape'):
        canvas_of({'img_shape': (3, 4)})
    assert canvas_of({'pad_shape': (3, 4), 'batch_input_shape': (5, 6)}) == (5, 6)
    assert image_shapes_of({'img_shape': (3, 4, 3), 'pad_shape': (5, 6)}, 2) == [(3, 4), (3, 4)]
    assert image_shapes_of({'img_shape': [(3, 4), (2, 1)], 'pad_shape': (5, 6)}, 2) == [(3, 4), (2, 1)]
    assert image_shapes_of({'pad_shape': (5, 6)}, 2) == [(5, 6), (5, 6)]


class TensorsOnly(torch.nn.Module):
    """What an exported model sees: image features and matrices."""

    def __init__(self, head: torch.nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, feats: torch.Tensor, img2lidar: torch.Tensor) -> dict[str, torch.Tensor]:
        return self.head.forward_tensors(feats, img2lidar, None, (HEIGHT, WIDTH), all_layers=False)


def test_the_head_can_be_exported() -> None:
    wrapped = TensorsOnly(build(head_config()))
    inputs = features(1), img2lidar_of([sample().metainfo], torch.device('cpu'))
    exported = torch.export.export(wrapped, inputs).module()(*inputs)
    with torch.no_grad():
        for name, value in wrapped(*inputs).items():
            torch.testing.assert_close(exported[name], value)


def test_frozen_images_leave_nothing_to_an_auxiliary_head() -> None:
    with pytest.raises(ValueError, match='set aux_head=None'):
        build(detector_config(freeze_images=True, aux_head={'type': 'PETR3DDenseAuxHead'}))
