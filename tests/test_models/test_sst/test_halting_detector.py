"""The detectors: from points to losses and boxes, on the differentiable and on the sparse path."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from mmdet3d.structures import Det3DDataSample, LiDARInstance3DBoxes
from mmengine.structures import InstanceData
from torch import Tensor, nn

from mmprune3d.models.sst.halting_detector import HaltingSSTDetector
from mmprune3d.pruning.halting import HaltingRecord
from mmprune3d.pruning.halting_loss import token_heatmap

from .small_sst import GATES, UNET, built, cloud, detector_config, stir

HEAD_LOSSES = {'task0.loss_heatmap', 'task0.loss_bbox', 'task1.loss_heatmap', 'task1.loss_bbox'}


def detector(**changes: Any) -> HaltingSSTDetector:
    model = stir(built(detector_config(**changes))).eval()
    with torch.no_grad():
        for name, value in model.backbone.halting.named_parameters():
            if name.endswith('score.weight'):
                value *= 0.2  # no score is 1, whose logarithms the loss cuts off
    return model


def batch(model: nn.Module, *samples: dict) -> tuple[dict, list[Det3DDataSample]]:
    """What `loss` and `predict` take."""
    samples = copy.deepcopy(samples or (cloud(0), cloud(1)))
    data = dict(inputs=dict(points=[each['inputs']['points'] for each in samples]))
    data = model.data_preprocessor({**data, 'data_samples': [each['data_samples'] for each in samples]})
    return data['inputs'], data['data_samples']


def without_points(sample: dict) -> dict:
    return {**sample, 'inputs': dict(points=sample['inputs']['points'][:0])}


def close(found: Any, expected: Any, atol: float = 1e-5) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=atol)


def same_boxes(one: Det3DDataSample, other: Det3DDataSample) -> None:
    """In whatever order: scores may be equal but for rounding."""
    tables = []
    for sample in (one, other):
        found = sample.pred_instances_3d
        rows = torch.cat((found.labels_3d[:, None], found.bboxes_3d.tensor, found.scores_3d[:, None]), 1)
        tables.append(rows[torch.tensor(sorted(range(len(rows)), key=lambda row: rows[row, :3].tolist()))])
    assert len(tables[0]) == len(tables[1]) > 0
    close(*tables, 1e-3)


def spied(model: HaltingSSTDetector) -> list[str]:
    """The paths that the backbone is run on from now on."""
    paths, forward = [], model.backbone.forward_with_record

    def noted(tokens: Any, path: str) -> Any:
        paths.append(path)
        return forward(tokens, path)

    model.backbone.forward_with_record = noted
    return paths


def test_losses_are_those_of_the_head_and_one_more() -> None:
    model = detector()
    inputs, samples = batch(model)
    losses = model.loss(inputs, samples)
    maps, record = model.extract_feat_with_record(inputs, 'edf')
    expected = model.bbox_head.loss(maps, samples)
    assert set(losses) == HEAD_LOSSES | {'loss_halting'} and set(expected) == HEAD_LOSSES
    close({key: losses[key] for key in expected}, expected)
    assert [len(step.rows) for step in record.steps] == [600, int(record.steps[0].keep.sum())]


@pytest.mark.parametrize(
    'settings',
    [dict(), dict(weight=2.0, alpha=1.5, gamma=3.0), dict(positives='nearest_token', overlap=0.3, min_radius=1)],
)
def test_sparsity_loss_is_equation_19_summed_over_gates(settings: dict) -> None:
    model = detector(sparsity_loss=settings or None)
    inputs, samples = batch(model)
    _, record = model.extract_feat_with_record(inputs, 'edf')
    boxes = [sample.gt_instances_3d.bboxes_3d.tensor for sample in samples]
    encoder = model.voxel_encoder
    drawing = {key: settings[key] for key in ('positives', 'overlap', 'min_radius') if key in settings}
    heatmap = token_heatmap(record.coords, boxes, encoder.voxel_size, encoder.point_cloud_range, **drawing)
    assert (heatmap > 0).sum() > 30 and (heatmap >= 1 - 1e-4).any()
    alpha, gamma, total = settings.get('alpha', 2), settings.get('gamma', 4), 0
    for step in record.steps:
        each = []
        for score, m in zip(step.scores, heatmap[step.rows]):
            negative = (1 - m) ** gamma * score**alpha * (1 - score).log()
            each.append((1 - score) ** alpha * score.log() if m >= 1 - 1e-4 else negative)
        total = total - sum(each) / len(each)
    close(model.loss(inputs, samples)['loss_halting'], settings.get('weight', 0.5) * total)


def test_uniform_loss_is_the_mean_score() -> None:
    model = detector(sparsity_loss=dict(kind='uniform', weight=0.3))
    inputs, samples = batch(model)
    _, record = model.extract_feat_with_record(inputs, 'edf')
    expected = 0.3 * sum(step.scores.mean() for step in record.steps)
    close(model.loss(inputs, samples)['loss_halting'], expected)


@pytest.mark.parametrize('training', [False, True])
def test_losses_are_differentiable_and_predictions_sparse_in_any_mode(training: bool) -> None:
    model = detector().train(training)
    inputs, samples = batch(model)
    paths = spied(model)
    model.loss(inputs, samples)
    assert paths == ['edf']
    with torch.no_grad():
        model.predict(inputs, samples)
        model.extract_feat(inputs)
        model(inputs, samples, mode='tensor')
        model(inputs, samples, mode='predict')
    assert paths == ['edf'] + ['sparse'] * 4


def test_predictions_are_those_of_the_maps_that_are_trained() -> None:
    model = detector()
    inputs, samples = batch(model)
    with torch.no_grad():
        (edf,), record = model.extract_feat_with_record(inputs, 'edf')
        (sparse,), of_sparse = model.extract_feat_with_record(inputs, 'sparse')
        assert 0.3 <= float(record.sparsity()[0]) < float(record.sparsity()[2]) < 1
        assert torch.equal(record.halted_at(), of_sparse.halted_at())
        assert (edf - sparse).abs().max() <= 1e-5 * edf.abs().max()
        assert torch.equal(model.extract_feat(inputs)[0], sparse)
        expected = model.add_pred_to_datasample(copy.deepcopy(samples), model.bbox_head.predict([edf], samples))
        found = model.predict(inputs, samples)
    for one, other in zip(found, expected, strict=True):
        same_boxes(one, other)


def test_a_neck_comes_in_between() -> None:
    neck = dict(type='SECONDFPN', in_channels=[6], upsample_strides=[1], out_channels=[6])
    config = detector_config()
    model = stir(built({**config, 'neck': neck})).eval()
    inputs, samples = batch(model)
    (found,), _ = model.extract_feat_with_record(inputs, 'sparse')
    close(found, model.neck(model.backbone(model.tokens(inputs)))[0])
    assert set(model.loss(inputs, samples)) == HEAD_LOSSES | {'loss_halting'}


def test_training_reaches_every_parameter_and_lowers_the_losses() -> None:
    model = built(detector_config()).train()
    torch.manual_seed(0)
    model.init_weights()
    inputs, samples = batch(model)
    optimizer, totals, trained = torch.optim.Adam(model.parameters(), lr=5e-3), [], set()
    for _ in range(6):
        total, _ = model.parse_losses(model.loss(inputs, samples))
        optimizer.zero_grad()
        total.backward()
        assert all(value.grad is not None and value.grad.isfinite().all() for value in model.parameters())
        trained |= {key for key, value in model.named_parameters() if value.grad.any()}
        optimizer.step()
        totals.append(float(total.detach()))
    assert totals[-1] < 0.9 * totals[0]
    assert trained == set(dict(model.named_parameters()))


@pytest.mark.parametrize('kind', ['nonuniform', 'uniform'])
def test_frames_without_objects_and_without_points(kind: str) -> None:
    model = detector(sparsity_loss=dict(kind=kind))
    for samples in (
        (cloud(0, objects=0),),
        (cloud(0), cloud(1, objects=0)),
        (cloud(0), without_points(cloud(1))),  # the last sample is not forgotten
        (without_points(cloud(1)), cloud(0)),
        (without_points(cloud(0)), without_points(cloud(1))),
    ):
        inputs, given = batch(model, *samples)
        total, _ = model.parse_losses(model.loss(inputs, given))
        total.backward()
        assert total.isfinite() and all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
        with torch.no_grad():
            (out,), record = model.extract_feat_with_record(inputs, 'sparse')
            assert len(out) == record.batch_size == len(samples) == len(model.predict(inputs, given))
    assert float(model.loss(*batch(model, without_points(cloud(0))))['loss_halting'].detach()) == 0


def test_without_objects_all_scores_are_pushed_down() -> None:
    model = detector()
    inputs, samples = batch(model, cloud(0, objects=0))
    _, record = model.extract_feat_with_record(inputs, 'edf')
    expected = sum(-(step.scores**2 * (1 - step.scores).log()).mean() for step in record.steps) / 2
    close(model.loss(inputs, samples)['loss_halting'], expected)


@pytest.mark.parametrize('kind', ['HaltingSSTDetector', 'SSTDetector'])
def test_samples_do_not_see_each_other(kind: str) -> None:
    model = stir(built(detector_config(kind))).eval()
    samples = (cloud(0), without_points(cloud(1)), cloud(2, cells=50))
    with torch.no_grad():
        maps = model.extract_feat(batch(model, *samples)[0])[0]
        for sample, expected in zip(samples, maps, strict=True):
            close(model.extract_feat(batch(model, sample)[0])[0][0], expected)
        together = model.predict(*batch(model, *samples))
        for number in (0, 2):  # the empty one has the same scores almost everywhere: any box may come first
            (alone,) = model.predict(*batch(model, samples[number]))
            same_boxes(together[number], alone)


def test_listeners_hear_of_every_loss_and_prediction() -> None:
    model, heard = detector(), []
    model.record_listeners.append(lambda record, boxes: heard.append((record, boxes)))
    inputs, samples = batch(model)
    unknown, nameless = copy.deepcopy(samples), copy.deepcopy(samples)
    del unknown[1].gt_instances_3d
    nameless[0].gt_instances_3d = InstanceData(labels_3d=torch.tensor([0, 1]))
    model.loss(inputs, samples)
    for given in (samples, unknown, nameless):
        model.predict(inputs, given)
    assert len(heard) == 4 and [boxes is None for _, boxes in heard] == [False, False, True, True]
    expected = [sample.gt_instances_3d.bboxes_3d.tensor for sample in samples]
    for _, boxes in heard[:2]:
        assert all(torch.equal(one, other) for one, other in zip(boxes, expected, strict=True))
    for record, _ in heard:
        assert isinstance(record, HaltingRecord) and record.batch_size == 2
        assert not any(step.scores.requires_grad for step in record.steps)
        assert torch.equal(record.halted_at(), heard[0][0].halted_at())
    model.extract_feat(inputs)
    assert len(heard) == 4


def test_listeners_change_nothing() -> None:
    inputs, samples = batch(detector())
    alone, overheard = detector(), detector()
    overheard.record_listeners += [lambda record, boxes: None] * 2
    for one, other in zip(*(model.loss(inputs, samples).values() for model in (alone, overheard)), strict=True):
        assert torch.equal(one, other)
    assert overheard.state_dict().keys() == alone.state_dict().keys()


def test_plain_detector_of_the_same_weights() -> None:
    """Without halting and with scores of one both detectors are the same."""
    table = dict(type='TableScorer', shape=(2, 48, 40))
    halting = detector(halting=[dict(block=0, module=table, bounds=(0, 0))])
    plain = built(detector_config('SSTDetector')).eval()
    plain.load_state_dict({key: value for key, value in halting.state_dict().items() if 'halting' not in key})
    inputs, samples = batch(plain)
    expected = plain.loss(inputs, samples)
    found = halting.loss(inputs, samples)
    close({key: found[key] for key in expected}, expected)
    with torch.no_grad():
        for one, other in zip(plain.predict(inputs, samples), halting.predict(*batch(halting)), strict=True):
            same_boxes(one, other)


def test_boxes_with_more_columns_and_points_outside() -> None:
    """Velocities do not matter to the sparsity loss, and points outside of the range to nothing."""
    model = detector()
    inputs, samples = batch(model)
    expected = model.loss(inputs, samples)
    outside = torch.tensor([[100.0, 0, 0, 0], [0, -100, 0, 0], [0, 0, 50, 0]])
    spread = [cloud(0), cloud(1)]
    for sample in spread:
        sample['inputs']['points'] = torch.cat((outside, sample['inputs']['points']))
        truth = sample['data_samples'].gt_instances_3d
        boxes = torch.cat((truth.bboxes_3d.tensor, torch.randn(2, 2)), 1)
        truth.bboxes_3d = LiDARInstance3DBoxes(boxes, box_dim=9)
    close(model.loss(*batch(model, *spread)), expected)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(sparsity_loss=dict(kind='both')), "kind='both'; valid are nonuniform, uniform"),
        (dict(sparsity_loss=dict(wight=1)), 'sparsity_loss: unknown setting wight; valid are kind, weight, alpha'),
        (
            dict(backbone=dict(type='SSTBackbone', num_attached_conv=0)),
            'SSTBackbone has no tokens that halt; use HaltingSST',
        ),
        (
            dict(halting=[dict(GATES[0], module={**UNET, 'in_channels': 9})]),
            'in_channels=9, but tokens have 8 features',
        ),
    ],
    ids=str,
)
def test_errors_name_what_is_wrong(changes: dict, message: str) -> None:
    config = detector_config(**{key: value for key, value in changes.items() if key != 'backbone'})
    config['backbone'] = changes.get('backbone', config['backbone'])
    with pytest.raises(ValueError, match=message):
        built(config)


def test_a_token_wise_module_that_reads_more_than_there_is() -> None:
    with pytest.raises(ValueError, match='in_channels=9, but tokens have 8 features; valid: 1 to 8'):
        detector(halting=[dict(block=0, module=dict(type='HaltingMLP', in_channels=9))])


def gradient_of(model: HaltingSSTDetector, name: str) -> Tensor:
    losses = model.loss(*batch(model))
    values = dict(model.named_parameters())
    return torch.autograd.grad(losses[name], [values[key] for key in sorted(values) if 'scorer' in key])[0]


def test_scores_are_trained_by_the_detection_too() -> None:
    """Through the decision and the attention, apart from the sparsity loss."""
    model = detector()
    assert gradient_of(model, 'task0.loss_heatmap').any() and gradient_of(model, 'loss_halting').any()
