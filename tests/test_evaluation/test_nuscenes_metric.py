"""Boxes without velocities on nuScenes: what mmdet3d's metric does, and what ours does."""

from __future__ import annotations

import copy

import pytest
import torch
from mmdet3d.evaluation.metrics import NuScenesMetric
from mmdet3d.registry import METRICS
from mmdet3d.structures import CameraInstance3DBoxes, LiDARInstance3DBoxes
from mmengine.fileio import load
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData

from mmprune3d.evaluation.nuscenes_metric import NuScenesMetricWithoutVelocity, standing


def metric(kind: str, tiny) -> NuScenesMetric:
    init_default_scope('mmdet3d')
    info = tiny.root / 'nuscenes_infos_val.pkl'
    made = METRICS.build(dict(type=kind, data_root=f'{tiny.root}/', ann_file=str(info), metric='bbox'))
    meta = load(info)['metainfo']
    names = [name for name, _ in sorted(meta['categories'].items(), key=lambda item: item[1])]
    made.dataset_meta = dict(classes=names, version='v1.0-trainval')
    return made


def detections(tiny, columns: int) -> list[dict]:
    """The annotated boxes, as detections of a perfect detector."""
    samples = []
    for info in load(tiny.root / 'nuscenes_infos_val.pkl')['data_list']:
        rows = [[*item['bbox_3d'], *item['velocity']] for item in info['instances']]
        boxes = LiDARInstance3DBoxes(torch.tensor(rows)[:, :columns], box_dim=columns, origin=(0.5, 0.5, 0.5))
        labels = torch.tensor([item['bbox_label_3d'] for item in info['instances']])
        found = InstanceData(bboxes_3d=boxes, labels_3d=labels, scores_3d=torch.full((len(rows),), 0.9))
        samples.append(dict(pred_instances_3d=found.to_dict(), pred_instances={}, sample_idx=info['sample_idx']))
    return samples


def evaluated(kind: str, tiny, columns: int) -> dict[str, float]:
    made, samples = metric(kind, tiny), detections(tiny, columns)
    for sample in samples:
        made.process({}, [copy.deepcopy(sample)])
    found = made.compute_metrics(made.results)
    return {key.rsplit('/', 1)[-1]: value for key, value in found.items()}


def test_mmdet3d_stops_at_the_end(tiny):
    """The reason for ours: a message about matrices when all is computed."""
    made = metric('NuScenesMetric', tiny)
    with pytest.raises(ValueError, match='not aligned'):
        made.compute_metrics(detections(tiny, 7))


def test_and_now_at_the_first_batch_with_a_message(tiny):
    made, (first, *_) = metric('NuScenesMetric', tiny), detections(tiny, 7)
    with pytest.raises(ValueError, match=r'7 numbers and no velocities.*MMPrune3DNuScenesMetric'):
        made.process({}, [first])
    nothing = {**first, 'pred_instances_3d': {key: value[:0] for key, value in first['pred_instances_3d'].items()}}
    made.process({}, [nothing])
    assert len(made.results) == 1


def test_ours_finds_the_boxes_and_counts_their_speed(tiny):
    with_speed, without = (evaluated('MMPrune3DNuScenesMetric', tiny, columns) for columns in (9, 7))
    assert without['mAP'] == pytest.approx(with_speed['mAP']) and without['mAP'] > 0
    assert without['mATE'] == pytest.approx(with_speed['mATE'])
    assert without['mAVE'] > with_speed['mAVE'] + 0.05  # something moves
    assert without['NDS'] < with_speed['NDS']


def test_boxes_with_velocities_are_evaluated_as_by_mmdet3d(tiny):
    expected = evaluated('NuScenesMetric', tiny, 9)
    assert evaluated('MMPrune3DNuScenesMetric', tiny, 9) == pytest.approx(expected, abs=0, nan_ok=True)


@pytest.mark.parametrize('kind', [LiDARInstance3DBoxes, CameraInstance3DBoxes])
@pytest.mark.parametrize('count', [0, 3])
def test_standing_boxes_are_in_the_same_place(kind, count):
    boxes = kind(torch.rand(count, 7) + 0.5)
    found = standing(boxes)
    assert type(found) is kind and found.box_dim == 9
    assert torch.equal(found.tensor[:, :7], boxes.tensor) and not found.tensor[:, 7:].any()
    assert standing(found) is found


def test_it_is_said_once(tiny, monkeypatch):
    said = []
    monkeypatch.setattr('mmprune3d.evaluation.nuscenes_metric.print_log', lambda text, **_: said.append(text))
    made = metric('MMPrune3DNuScenesMetric', tiny)
    assert isinstance(made, NuScenesMetricWithoutVelocity)
    for sample in detections(tiny, 7):
        made.process({}, [sample])
    assert len(said) == 1 and 'no velocities' in said[0]
