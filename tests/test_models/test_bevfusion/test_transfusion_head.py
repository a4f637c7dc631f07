"""The TransFusion head by itself: what no recorded output of the official one shows."""

from __future__ import annotations

import json

import pytest
import torch
from mmdet3d.registry import MODELS
from mmdet3d.structures import Det3DDataSample
from mmengine.structures import InstanceData

from mmprune3d.models.bevfusion.transfusion_losses import layer_losses

from .small_head import CHANNELS, GRID, PROPOSALS, RANGE, STRIDE, coder, metas, small, small_batch, small_config, total
from .upstream import as_ours


@pytest.mark.parametrize('counts', [(3, 0), (0, 2), (0, 0), (0,), (1, 9)])
def test_samples_with_no_or_too_many_objects(counts: tuple[int, ...]) -> None:
    head = small()
    feats, truth = small_batch(counts)
    samples = [Det3DDataSample(metainfo=metas(1)[0], gt_instances_3d=item) for item in truth]
    outputs = head(feats)
    targets = head.get_targets(outputs, truth)
    assert targets.num_pos == sum(min(count, PROPOSALS) for count in counts)
    for i, count in enumerate(counts):
        assert (targets.labels[i] < 3).sum() == min(count, PROPOSALS)
        assert (targets.bbox_weights[i].amax(1) == 1).sum() == min(count, PROPOSALS)
        assert (targets.heatmap[i].amax() == 1) == (count > 0)
    losses = head.loss(feats, samples)
    total(losses).backward()
    assert all(value.isfinite() for value in losses.values())
    assert (losses['layer_-1_loss_bbox'] > 0) == (sum(counts) > 0)
    assert all(parameter.grad.isfinite().all() for parameter in head.parameters() if parameter.grad is not None)


def test_targets_of_a_batch_are_those_of_its_samples() -> None:
    head = small().eval()
    feats, truth = small_batch((3, 0, 5))
    batch = head.get_targets(head(feats), truth)
    single = [head.get_targets(head(feats[i : i + 1]), truth[i : i + 1]) for i in range(3)]
    for name in ('labels', 'label_weights', 'bbox_targets', 'bbox_weights', 'ious', 'heatmap'):
        parts = torch.cat([getattr(item, name) for item in single])
        torch.testing.assert_close(getattr(batch, name), parts, rtol=1e-5, atol=1e-5, msg=name)
    assert batch.num_pos == sum(item.num_pos for item in single) == 8
    torch.testing.assert_close(batch.matched_ious, sum(item.matched_ious for item in single) / 3)


def test_objects_with_a_negative_label_are_ignored() -> None:
    head = small().eval()
    feats, truth = small_batch((4,))
    outputs = head(feats)
    without = head.get_targets(outputs, [truth[0][1:]])
    truth[0].labels_3d[0] = -1
    ignored = head.get_targets(outputs, truth)
    assert ignored.num_pos == 3
    assert torch.equal(ignored.heatmap, without.heatmap)
    assert torch.equal(ignored.labels, without.labels)


@pytest.mark.parametrize('num_layers', [1, 2, 3])
def test_every_layer_is_supervised(num_layers: int) -> None:
    head = small(num_decoder_layers=num_layers)
    feats, truth = small_batch((3, 4))
    outputs = head(feats)
    losses = head.loss_by_feat(outputs, truth)
    names = [*range(num_layers - 1), -1]
    expected = [f'layer_{name}_loss_{kind}' for name in names for kind in ('cls', 'bbox')]
    assert list(losses) == ['loss_heatmap', *expected, 'matched_ious']
    for i, name in enumerate(names):
        of = slice(i * PROPOSALS, (i + 1) * PROPOSALS)
        per_layer = ('center', 'height', 'dim', 'rot', 'vel', 'heatmap')
        alone = {key: value[..., of] if key in per_layer else value for key, value in outputs[0][0].items()}
        targets = head.target_maker(
            alone, 1, [item.bboxes_3d.tensor for item in truth], [item.labels_3d for item in truth]
        )
        by_itself = layer_losses(alone, targets, 1, head.loss_cls, head.loss_bbox, None)
        for kind in ('cls', 'bbox'):
            found = losses[f'layer_{name}_loss_{kind}'] * num_layers
            torch.testing.assert_close(found, by_itself[f'layer_-1_loss_{kind}'])
    total(losses).backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in head.prediction_heads.parameters())


@pytest.mark.parametrize('num_layers', [1, 2])
def test_without_auxiliary_losses_the_last_layer_remains(num_layers: int) -> None:
    full, last = small(num_decoder_layers=num_layers), small(num_decoder_layers=num_layers, auxiliary=False)
    feats, truth = small_batch((3, 4))
    outputs, outputs_last = full.eval()(feats), last.eval()(feats)
    torch.testing.assert_close(outputs_last[0][0]['center'], outputs[0][0]['center'][..., -PROPOSALS:])
    losses = last.loss_by_feat(outputs_last, truth)
    assert list(losses) == ['loss_heatmap', 'layer_-1_loss_cls', 'layer_-1_loss_bbox', 'matched_ious']
    expected = full.loss_by_feat(outputs, truth)['layer_-1_loss_bbox'] * num_layers
    torch.testing.assert_close(losses['layer_-1_loss_bbox'], expected)
    for one, other in zip(full.predict(feats, metas(2)), last.predict(feats, metas(2)), strict=True):
        assert torch.equal(one.bboxes_3d.tensor, other.bboxes_3d.tensor)


def test_a_query_starts_where_the_heatmap_peaks() -> None:
    """On a grid that is no square: the first axis is x."""
    head = small().eval()
    for block in (head.heatmap_head, head.prediction_heads[0].center):
        torch.nn.init.zeros_(block[-1].weight)
        torch.nn.init.zeros_(block[-1].bias)
    head.heatmap_head.register_forward_hook(lambda _, __, out: out + peak)
    peak = torch.full((1, 3, *GRID), -9.0)
    peak[0, 2, 3, 15] = 4.0
    outputs = head(torch.randn(1, CHANNELS, *GRID, generator=torch.Generator().manual_seed(0)))[0][0]
    assert outputs['query_labels'][0, 0] == 2
    torch.testing.assert_close(outputs['center'][0, :, 0], torch.tensor([3.5, 15.5]))
    box = head.predict_by_feat(([outputs],), metas(1))[0].bboxes_3d.tensor[0]
    torch.testing.assert_close(box[:2], torch.tensor([RANGE[0] + 3.5 * STRIDE, RANGE[1] + 15.5 * STRIDE]))


def test_of_equal_cells_the_first_become_queries() -> None:
    head = small().eval()
    torch.nn.init.zeros_(head.heatmap_head[-1].weight)
    torch.nn.init.zeros_(head.heatmap_head[-1].bias)
    head.nms_kernel_size = 1
    outputs = head(torch.randn(2, CHANNELS, *GRID, generator=torch.Generator().manual_seed(0)))[0][0]
    assert (outputs['query_labels'] == 0).all()
    index, labels, _ = head._propose(torch.zeros(2, 3, *GRID))
    assert index.tolist() == [list(range(PROPOSALS))] * 2 and (labels == 0).all()


def test_predictions_come_back_as_targets() -> None:
    """Objects that equal the detections are matched with the proposals they came from, overlap 1, regression loss 0."""
    head = small().eval()
    feats, _ = small_batch((2, 2))
    outputs = head(feats)
    outputs[0][0]['rot'] = torch.nn.functional.normalize(outputs[0][0]['rot'], dim=1)
    found = head.predict_by_feat(outputs, metas(2))
    truth = [InstanceData(bboxes_3d=item.bboxes_3d, labels_3d=item.labels_3d) for item in found]
    targets = head.get_targets(outputs, truth)
    torch.testing.assert_close(targets.ious, torch.ones(2, PROPOSALS), rtol=0, atol=1e-5)
    assert torch.equal(targets.labels, outputs[0][0]['query_labels'])
    assert head.loss_by_feat(outputs, truth)['layer_-1_loss_bbox'] < 1e-5


def test_code_weights_and_pos_weight() -> None:
    feats, truth = small_batch((3, 4))
    train_cfg = small_config()['train_cfg']
    plain = small()
    plain_losses = plain.loss_by_feat(plain.eval()(feats), truth)
    weighted = small(train_cfg={**train_cfg, 'code_weights': [2.0] * 10, 'pos_weight': 3.0})
    outputs = weighted.eval()(feats)
    losses, targets = weighted.loss_by_feat(outputs, truth), weighted.get_targets(outputs, truth)
    torch.testing.assert_close(losses['layer_-1_loss_bbox'], 2 * plain_losses['layer_-1_loss_bbox'])
    assert torch.equal(targets.label_weights, torch.where(targets.labels < 3, 3.0, 1.0))


def test_one_sample_at_a_time_gives_the_same() -> None:
    head = small(num_decoder_layers=2).eval()
    feats, _ = small_batch((1, 1, 1))
    together, alone = head(feats)[0][0], [head(feats[i : i + 1])[0][0] for i in range(3)]
    for name, value in together.items():
        torch.testing.assert_close(value, torch.cat([item[name] for item in alone]), rtol=1e-4, atol=1e-5, msg=name)


def test_mixed_precision() -> None:
    head = small(num_decoder_layers=2)
    feats, truth = small_batch((2, 3))
    with torch.autocast('cpu', torch.bfloat16):
        outputs = head(feats)
        losses = head.loss_by_feat(outputs, truth)
    assert outputs[0][0]['heatmap'].dtype == torch.bfloat16
    assert outputs[0][0]['center'].dtype == torch.float32
    assert all(value.dtype == torch.float32 and value.isfinite() for value in losses.values())
    total(losses).backward()
    assert head.predict_by_feat(outputs, metas(2))[0].bboxes_3d.tensor.dtype == torch.float32


@pytest.mark.parametrize('settings', [{'train_cfg': None}, {'train_cfg': None, 'test_cfg': None}])
def test_without_settings_it_predicts_but_does_not_train(settings: dict) -> None:
    head = small(**settings).eval()
    feats, truth = small_batch((2, 1))
    assert [len(item) for item in head.predict(feats, metas(2))] == [PROPOSALS] * 2
    with pytest.raises(ValueError, match='without train_cfg'):
        head.loss_by_feat(head(feats), truth)


def test_filters_of_the_coder_apply() -> None:
    feats, _ = small_batch((1, 1))
    everything = small().eval().predict(feats, metas(2))
    middle = torch.cat([item.scores_3d for item in everything]).median().item()
    some = small(bbox_coder=coder(score_threshold=middle)).eval().predict(feats, metas(2))
    for full, part in zip(everything, some, strict=True):
        torch.testing.assert_close(part.scores_3d, full.scores_3d[full.scores_3d > middle])
    assert 0 < sum(map(len, some)) < sum(map(len, everything))


def test_velocity_is_optional() -> None:
    heads = {'center': (2, 2), 'height': (1, 2), 'dim': (3, 2), 'rot': (2, 2)}
    head = small(common_heads=heads, bbox_coder=coder(code_size=8))
    feats, truth = small_batch((2, 3))
    total(head.loss_by_feat(head(feats), truth)).backward()
    assert head.predict(feats, metas(2))[0].bboxes_3d.tensor.shape[1] == 7


def test_initial_bias_of_the_class_outputs() -> None:
    head = small(heatmap_bias=-2.19, num_decoder_layers=2)
    biases = [head.heatmap_head[-1].bias, *(outputs.heatmap[-1].bias for outputs in head.prediction_heads)]
    assert all((bias == -2.19).all() for bias in biases)
    assert not (small().heatmap_head[-1].bias == -2.19).any()


def test_building_leaves_the_settings_as_they_are() -> None:
    config = as_ours({'type': 'TransFusionHead', **small_config()})
    before = json.dumps(config)
    MODELS.build(config)
    assert json.dumps(config) == before


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'nms_kernel_size': 2}, 'odd'),
        ({'test_cfg': {'nms_type': 'soft'}}, 'None, circle, rotate'),
        ({'test_cfg': {'dataset': 'KITTI'}}, 'None, nuScenes, Waymo'),
        ({'test_cfg': {'dataset': 'nuScenes'}}, 'need class 9, but there are 3'),
        ({'loss_cls': {'type': 'mmdet.FocalLoss', 'use_sigmoid': False}}, 'use_sigmoid=True'),
        ({'common_heads': {'center': (2, 2)}}, 'center, height, dim, rot, vel'),
        ({'bbox_coder': coder(code_size=9)}, '8, or 10'),
        ({'bbox_coder': coder(post_center_range=[0, 0, 0])}, 'lower x, y, z'),
        ({'bbox_coder': coder(code_size=8)}, 'code_size'),
    ],
)
def test_settings_that_make_no_sense(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**changes)


def test_maps_of_another_size_are_refused() -> None:
    head = small()
    with pytest.raises(ValueError, match=r'test_cfg has \[12, 20\] cells along x and y, but the map has \[20, 12\]'):
        head(torch.zeros(1, CHANNELS, *GRID[::-1]))
    with pytest.raises(ValueError, match='takes one map, got 2'):
        head([torch.zeros(1, CHANNELS, *GRID)] * 2)
