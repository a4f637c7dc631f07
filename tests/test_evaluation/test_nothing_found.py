"""Detectors that find nothing, nothing in some samples, NaN, or too much."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmdet3d.evaluation.metrics import NuScenesMetric
from mmdet3d.structures import LiDARInstance3DBoxes
from mmengine.fileio import load
from mmengine.logging import MMLogger
from nuscenes.eval.common import loaders
from nuscenes.eval.common.data_classes import EvalBoxes

from mmprune3d.checkpoint.convert import CLASSES
from mmprune3d.evaluation import NaNPredictionError
from mmprune3d.evaluation.nothing_found import devkit_counts_nothing, install

SAMPLES = 3


@pytest.fixture(scope='module')
def truth(tiny) -> list[dict[str, Any]]:
    """What is annotated, as perfect predictions, in the three validation samples."""
    infos = load(tiny.root / 'nuscenes_infos_val.pkl')['data_list']
    assert len(infos) == SAMPLES
    made = []
    for info in infos:
        objects = [each for each in info['instances'] if each['bbox_label_3d'] >= 0 and each['bbox_3d_isvalid']]
        boxes = torch.tensor([each['bbox_3d'] + each['velocity'] for each in objects]).nan_to_num()
        made.append({'boxes': boxes, 'labels': torch.tensor([each['bbox_label_3d'] for each in objects])})
    return made


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    told: list[str] = []
    monkeypatch.setattr(MMLogger.get_current_instance(), 'warning', told.append)
    return told


def sample(index: int, boxes: torch.Tensor, labels: torch.Tensor, scores: torch.Tensor | None = None) -> dict[str, Any]:
    found = {
        'bboxes_3d': LiDARInstance3DBoxes(boxes.reshape(-1, 9), box_dim=9, origin=(0.5, 0.5, 0.5)),
        'labels_3d': labels,
        'scores_3d': torch.linspace(0.9, 0.5, len(labels)) if scores is None else scores,
    }
    return {'sample_idx': index, 'pred_instances': {}, 'pred_instances_3d': found}


def nothing(index: int) -> dict[str, Any]:
    return sample(index, torch.zeros(0, 9), torch.zeros(0, dtype=torch.long))


def evaluate(root: Path, samples: list[dict[str, Any]]) -> dict[str, float]:
    metric = NuScenesMetric(str(root), str(root / 'nuscenes_infos_val.pkl'), 'bbox')
    metric.dataset_meta = {'classes': CLASSES, 'version': 'v1.0-trainval'}
    for one in samples:  # as the evaluator does, batch by batch
        metric.process({}, [one])
    return {name.rpartition('/')[2]: value for name, value in metric.evaluate(len(samples)).items()}


def test_nothing_at_all_has_map_0_and_errors_of_1(tiny, warnings):
    figures = evaluate(tiny.root, [nothing(index) for index in range(SAMPLES)])
    assert figures['mAP'] == figures['NDS'] == 0
    assert [figures[name] for name in ('mATE', 'mASE', 'mAOE', 'mAVE', 'mAAE')] == [1] * 5
    assert {value for name, value in figures.items() if '_AP_dist_' in name} == {0.0}
    assert len(warnings) == 1 and f'nothing in any of {SAMPLES} samples' in warnings[0]


def test_it_is_what_the_devkit_gives_for_one_box_where_nothing_is(tiny, warnings):
    """The figures of nothing are those of a detector without a single true positive, apart from its class."""
    far = torch.tensor([[30.0, 30, 40, 1, 1, 1, 0, 0, 0]])
    almost = [sample(0, far, torch.tensor([CLASSES.index('barrier')])), *map(nothing, range(1, SAMPLES))]
    figures = evaluate(tiny.root, [nothing(index) for index in range(SAMPLES)])
    np.testing.assert_equal(figures, evaluate(tiny.root, almost))
    assert len(warnings) == 1


def test_samples_and_classes_without_boxes(tiny, truth, warnings):
    whole = evaluate(tiny.root, [sample(i, **one) for i, one in enumerate(truth)])
    assert whole['mAP'] > 0 and not warnings
    part = evaluate(tiny.root, [sample(0, **truth[0]), nothing(1), nothing(2)])
    assert 0 < part['mAP'] < whole['mAP']
    label = int(truth[0]['labels'].mode().values)
    without = [{name: value[one['labels'] != label] for name, value in one.items()} for one in truth]
    figures = evaluate(tiny.root, [sample(i, **one) for i, one in enumerate(without)])
    assert figures[f'{CLASSES[label]}_AP_dist_4.0'] == 0 < whole[f'{CLASSES[label]}_AP_dist_4.0']


@pytest.mark.parametrize('place', [(0, 0), (1, 3), (-1, 6)])
def test_nan_in_boxes_is_refused_with_the_sample(tiny, truth, place):
    boxes = truth[1]['boxes'].clone()
    boxes[place] = float('nan')
    with pytest.raises(NaNPredictionError, match=rf'1 of {len(boxes)} boxes of sample 1'):
        evaluate(tiny.root, [sample(0, **truth[0]), sample(1, boxes, truth[1]['labels'])])


def test_nan_in_scores_is_refused(tiny, truth):
    scores = torch.full((len(truth[0]['labels']),), float('nan'))
    with pytest.raises(NaNPredictionError, match=rf'{len(scores)} of {len(scores)} scores of sample 0'):
        evaluate(tiny.root, [sample(0, **truth[0], scores=scores)])


def test_nan_in_velocities_is_the_devkits_business(tiny, truth, warnings):
    unknown = [{**one, 'boxes': one['boxes'].clone()} for one in truth]
    for one in unknown:
        one['boxes'][:, 7:] = float('nan')
    assert evaluate(tiny.root, [sample(i, **one) for i, one in enumerate(unknown)])['mAP'] > 0


def test_more_boxes_than_the_devkit_evaluates(tiny, truth):
    many = {name: value[:1].expand(501, *value.shape[1:]) for name, value in truth[0].items()}
    with pytest.raises(ValueError, match=r'up to 500 boxes per sample.*max_num'):
        evaluate(tiny.root, [sample(0, **many), nothing(1), nothing(2)])


def test_devkit_is_as_it_was_outside():
    empty = EvalBoxes()
    empty.add_boxes('token', [])
    with devkit_counts_nothing():
        assert loaders._get_box_class_field(empty) == 'detection_name'
    with pytest.raises(Exception, match='Invalid box type: None'):
        loaders._get_box_class_field(empty)


def test_installed_once():
    before = NuScenesMetric.process, NuScenesMetric.compute_metrics, NuScenesMetric._evaluate_single
    install()
    assert before == (NuScenesMetric.process, NuScenesMetric.compute_metrics, NuScenesMetric._evaluate_single)


def coco(tmp_path: Path, found: list[tuple[int, list[float]]], **settings: Any) -> dict[str, float]:
    from mmdet.evaluation.metrics import CocoMetric

    box = {'id': 1, 'image_id': 0, 'category_id': 0, 'bbox': [1, 1, 20, 20], 'area': 400, 'iscrowd': 0}
    images = [{'id': index, 'width': 64, 'height': 64} for index in range(2)]
    data = {'images': images, 'annotations': [box], 'categories': [{'id': 0, 'name': 'car'}]}
    (tmp_path / 'truth.json').write_text(json.dumps(data))
    metric = CocoMetric(ann_file=str(tmp_path / 'truth.json'), **settings)
    metric.dataset_meta = {'classes': ('car',)}
    for index in range(2):
        boxes = torch.tensor([each for image, each in found if image == index]).reshape(-1, 4)
        ones = torch.ones(len(boxes))
        instances = {'bboxes': boxes, 'scores': ones, 'labels': ones.long() * 0}
        metric.process({}, [{'img_id': index, 'ori_shape': (64, 64), 'pred_instances': instances}])
    return metric.evaluate(2)


def test_coco_metric_gives_0(tmp_path):
    some, none = coco(tmp_path, [(0, [1.0, 1, 21, 21])]), coco(tmp_path, [])
    assert some['coco/bbox_mAP'] == 1.0
    assert set(none) == set(some) and set(none.values()) == {0.0}
    assert coco(tmp_path, [], metric_items=['mAP_50']) == {'coco/bbox_mAP_50': 0.0}
    assert coco(tmp_path, [], format_only=True, outfile_prefix=str(tmp_path / 'found')) == {}


def test_labels_without_a_class_are_refused_at_the_first_batch() -> None:
    metric = NuScenesMetric.__new__(NuScenesMetric)
    metric.dataset_meta, metric.results = dict(classes=('car', 'pedestrian')), []
    boxes = torch.zeros(2, 9)
    with pytest.raises(ValueError, match=r'predicts label 7, but the data set has 2 classes \(car, pedestrian\)'):
        metric.process({}, [nothing(0), sample(1, boxes, torch.tensor([0, 7]))])
    metric.process({}, [nothing(0), sample(1, boxes, torch.tensor([0, 1]))])
    assert len(metric.results) == 2
