"""`KittiMetricCPU` in place of mmdet3d's `KittiMetric`."""

from __future__ import annotations

import copy
import gc
import pickle
from pathlib import Path
from typing import Any

import mmdet3d.evaluation.metrics.kitti_metric as theirs
import numpy as np
import pytest
import torch
from mmdet3d.evaluation.metrics import KittiMetric
from mmdet3d.registry import METRICS
from mmdet3d.structures import Box3DMode, CameraInstance3DBoxes, LiDARInstance3DBoxes, points_cam2img
from mmengine.logging import MMLogger
from torch import Tensor

import mmprune3d  # noqa: F401
from mmprune3d.evaluation import NaNPredictionError, kitti_average_precision
from tests.real_data import needs, real_data_root

from .test_kitti_ap import counted, real_labels

CLASSES = ['Pedestrian', 'Cyclist', 'Car']
LIDAR2CAM = np.array([[0, -1, 0, 0.1], [0, 0, -1, -0.2], [1, 0, 0, -0.3], [0, 0, 0, 1.0]])
CAM2IMG = np.array([[700.0, 0, 600, 0], [0, 700, 180, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
IMAGE = {'CAM2': {'lidar2cam': LIDAR2CAM.tolist(), 'cam2img': CAM2IMG.tolist(), 'height': 375, 'width': 1242}}


@pytest.fixture(autouse=True)
def _no_collections(monkeypatch: pytest.MonkeyPatch) -> None:
    """mmdet3d has the garbage collected after each table, which takes longer than these tables."""
    monkeypatch.setattr(gc, 'collect', lambda: 0)


def scene(number: int, seed: int) -> tuple[Tensor, Tensor]:
    """Boxes [N, 7] in the LiDAR's frame, apart from each other and in view, and labels [N]."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 3, (number,), generator=generator)
    boxes = torch.rand(number, 7, generator=generator) * torch.tensor([1.0, 1, 0.3, 0, 0, 0, 6]) - 0.5
    boxes[:, 0] += 10 + 5.0 * torch.arange(number)
    boxes[:, 2] -= 1.2
    boxes[:, 3:6] = torch.tensor([[0.8, 0.6, 1.7], [1.8, 0.6, 1.7], [4.0, 1.7, 1.5]])[labels]
    return boxes, labels


def instance(box: Tensor, label: int, image_box: Tensor) -> dict[str, Any]:
    x, _, z, _, _, _, yaw = box.tolist()
    known = {'truncated': 0.0, 'occluded': 0, 'score': 0.0, 'alpha': yaw - float(np.arctan2(x, z))}
    return {'bbox': image_box.tolist(), 'bbox_3d': box.tolist(), 'bbox_label': label, **known}


def info(index: int, boxes: Tensor, labels: Tensor) -> dict[str, Any]:
    camera = LiDARInstance3DBoxes(boxes).convert_to(Box3DMode.CAM, LIDAR2CAM.astype(np.float32))
    corners = points_cam2img(camera.corners, torch.from_numpy(CAM2IMG).float())
    flat = torch.cat((corners.amin(1), corners.amax(1)), dim=1).clamp(min=0)
    flat = flat.minimum(torch.tensor([1242.0, 375, 1242, 375]))
    instances = [instance(*each) for each in zip(camera.tensor, labels.tolist(), flat)]
    return {'sample_idx': index, 'images': IMAGE, 'instances': instances}


@pytest.fixture
def truth(tmp_path: Path) -> tuple[Path, list[tuple[Tensor, Tensor]]]:
    scenes = [scene(number, seed) for seed, number in enumerate((0, 5, 6, 0, 4))]
    categories = {name: label for label, name in enumerate(CLASSES)}
    infos = [info(index, *each) for index, each in enumerate(scenes)]
    path = tmp_path / 'infos.pkl'
    path.write_bytes(pickle.dumps({'metainfo': {'categories': categories}, 'data_list': infos}))
    return path, scenes


def samples(scenes: list[tuple[Tensor, Tensor]], scores: list[Tensor], columns: int = 7) -> list[dict]:
    return [
        {
            'sample_idx': index,
            'pred_instances': {},
            'pred_instances_3d': {
                'bboxes_3d': LiDARInstance3DBoxes(torch.nn.functional.pad(boxes, (0, columns - 7)), box_dim=columns),
                'labels_3d': labels,
                'scores_3d': score,
            },
        }
        for index, ((boxes, labels), score) in enumerate(zip(scenes, scores))
    ]


def evaluated(kind: str, path: Path, predictions: list[dict], **settings: Any) -> dict[str, float]:
    metric = METRICS.build({'type': kind, 'ann_file': str(path), 'metric': 'bbox', **settings})
    assert isinstance(metric, KittiMetric)
    metric.dataset_meta = {'classes': CLASSES}
    metric.process({}, copy.deepcopy(predictions))
    return metric.evaluate(len(predictions))


def test_predicting_the_truth(truth: tuple) -> None:
    path, scenes = truth
    scores = [torch.linspace(0.3, 0.9, len(labels)) for _, labels in scenes]
    found = evaluated('MMPrune3DKittiMetric', path, samples(scenes, scores))
    kinds = {'2D', 'BEV', '3D'}
    for label, name in enumerate(CLASSES):
        number = sum(int((labels == label).sum()) for _, labels in scenes)
        for kind in kinds:
            key = f'Kitti metric/pred_instances_3d/KITTI/{name}_{kind}_AP40_hard_strict'
            assert found[key] == pytest.approx(100 * (number - 1) / 40) and number > 2
    overall = {key for key in found if 'Overall' in key}
    assert len(overall) == 3 * 2 * 3 and len(found) == len(overall) + 3 * 3 * 2 * 3 * 2
    assert found == evaluated('MMPrune3DKittiMetric', path, samples(scenes, scores, columns=9))


@pytest.mark.parametrize('metric', ['bbox', 'img_bbox', ['bbox']])
def test_the_same_numbers_as_mmdet3d(metric: str | list, truth: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oracle is mmdet3d's metric, with the evaluation (tested beside this) put in that runs on a CPU."""
    path, scenes = truth
    generator = torch.Generator().manual_seed(0)
    moved, scores = [], []
    for boxes, labels in scenes:
        noise = torch.randn(boxes.shape, generator=generator) * torch.tensor([0.2, 0.1, 0.05, 0.1, 0.05, 0.05, 0.05])
        boxes = torch.cat((boxes + noise, boxes[:2] + 0.05, boxes[:1] + torch.tensor([0, 6.0, 0, 0, 0, 0, 0])))
        moved.append((boxes, torch.cat((labels, labels[:2], labels[:1]))))
        scores.append(torch.rand(len(boxes), generator=generator))
    found = evaluated('MMPrune3DKittiMetric', path, samples(moved, scores), metric=metric)
    monkeypatch.setattr(theirs, 'kitti_eval', kitti_average_precision)
    expected = evaluated('KittiMetric', path, samples(moved, scores), metric=metric)
    assert found == expected and len(set(found.values())) > 5


def test_nothing_found_is_0(truth: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    path, scenes = truth
    told: list[str] = []
    monkeypatch.setattr(MMLogger.get_current_instance(), 'warning', told.append)
    nothing = [(boxes[:0], labels[:0]) for boxes, labels in scenes]
    found = evaluated('MMPrune3DKittiMetric', path, samples(nothing, [torch.zeros(0)] * len(scenes)))
    whole = evaluated('MMPrune3DKittiMetric', path, samples(scenes, [torch.ones(len(each[1])) for each in scenes]))
    assert {value for name, value in found.items()} == {0.0} and max(whole.values()) > 0
    assert set(found) <= set(whole)
    assert told == [f'The detector found nothing in any of {len(scenes)} samples: its average precision is 0']


def test_nan_is_refused(truth: tuple) -> None:
    path, scenes = truth
    scores = [torch.full((len(labels),), float('nan')) for _, labels in scenes]
    with pytest.raises(NaNPredictionError, match='5 of 5 scores of sample 1'):
        evaluated('MMPrune3DKittiMetric', path, samples(scenes, scores))


def test_no_ground_truth_is_an_error(truth: tuple) -> None:
    path, scenes = truth
    stored = pickle.loads(path.read_bytes())
    stored['data_list'] = [{**stored['data_list'][0], 'sample_idx': 0}]
    path.write_bytes(pickle.dumps(stored))
    with pytest.raises(ValueError, match='none of the 1 frames'):
        evaluated('MMPrune3DKittiMetric', path, samples(scenes[:1], [torch.zeros(0)]))


@needs('kitti_frames')
@pytest.mark.real_data
def test_a_real_frame(tmp_path: Path) -> None:
    """Six cars of frame 000008: one counts as easy, four as moderate or hard; two are mostly outside of the image."""
    stored = pickle.loads((real_data_root() / 'kitti_frames' / '000008.pkl').read_bytes())
    names = {'Pedestrian': 0, 'Cyclist': 1, 'Car': 2, 'DontCare': -1}
    frame = {**stored['data_list'][0], 'sample_idx': 0}
    path = tmp_path / 'infos.pkl'
    path.write_bytes(pickle.dumps({'metainfo': {'categories': names}, 'data_list': [frame]}))
    cars = [each for each in frame['instances'] if each['bbox_label'] == 2]
    camera = CameraInstance3DBoxes(torch.tensor([each['bbox_3d'] for each in cars]))
    cam2lidar = np.linalg.inv(np.array(frame['images']['CAM2']['lidar2cam'])).astype(np.float32)
    boxes = camera.convert_to(Box3DMode.LIDAR, cam2lidar).tensor
    labels = torch.full((len(cars),), 2)
    predictions = samples([(boxes, labels)], [torch.linspace(0.3, 0.9, len(cars))])
    found = evaluated('MMPrune3DKittiMetric', path, predictions, pcd_limit_range=[0, -40, -3, 70.4, 40, 1])
    for kind in ('BEV', '3D'):
        key = f'Kitti metric/pred_instances_3d/KITTI/Car_{kind}_AP40_'
        assert [found[f'{key}{level}_strict'] for level in ('easy', 'moderate', 'hard')] == [0.0, 7.5, 7.5]
        key = key.replace('AP40', 'AP11')
        assert [found[f'{key}{level}_strict'] for level in ('easy', 'moderate', 'hard')] == [9.0909] * 3


def square(matrix: np.ndarray) -> np.ndarray:
    """[4, 4], with the rest of the identity."""
    whole = np.eye(4)
    whole[: matrix.shape[0], : matrix.shape[1]] = matrix
    return whole


@needs('kitti_sequence')
@pytest.mark.real_data
def test_all_boxes_of_a_real_sequence(tmp_path: Path) -> None:
    """711 labelled boxes as predictions in the LiDAR's frame, vans as cars, and 378 regions that nobody labelled."""
    root, categories = real_data_root() / 'kitti_sequence', {'Pedestrian': 0, 'Cyclist': 1, 'Car': 2, 'Van': 3}
    lines = [line.partition(':') for line in (root / 'calib.txt').read_text().splitlines() if line.strip()]
    calibration = {name: square(np.array(values.split(), float).reshape(3, -1)) for name, _, values in lines}
    lidar2cam = calibration['R0_rect'] @ calibration['Tr_velo_to_cam']
    camera = {'cam2img': calibration['P2'].tolist(), 'lidar2cam': lidar2cam.tolist(), 'height': 375, 'width': 1242}
    gt, infos, scenes, scores = real_labels('kitti_sequence'), [], [], []
    for index, each in enumerate(gt):
        boxes = np.concatenate((each['location'], each['dimensions'], each['rotation_y'][:, None]), axis=1)
        labels = [categories.get(name, -1) for name in each['name']]
        known = [
            {key: each[key][i].tolist() for key in ('bbox', 'truncated', 'alpha', 'score')} for i in range(len(boxes))
        ]
        instances = [
            {**known[i], 'occluded': int(each['occluded'][i]), 'bbox_3d': boxes[i].tolist(), 'bbox_label': labels[i]}
            for i in range(len(boxes))
        ]
        infos.append({'sample_idx': index, 'images': {'CAM2': camera}, 'instances': instances})
        real = torch.tensor(boxes[each['name'] != 'DontCare']).float()
        inverse = np.linalg.inv(lidar2cam).astype(np.float32)
        moved = CameraInstance3DBoxes(real).convert_to(Box3DMode.LIDAR, inverse).tensor
        scenes.append((moved, torch.tensor([min(label, 2) for label in labels if label >= 0])))
        scores.append(torch.linspace(0.3, 0.9, len(real)) - 1e-4 * index)
    assert sum(len(labels) for _, labels in scenes) == 711
    path = tmp_path / 'infos.pkl'
    path.write_bytes(pickle.dumps({'metainfo': {'categories': {**categories, 'DontCare': -1}}, 'data_list': infos}))
    found = evaluated('MMPrune3DKittiMetric', path, samples(scenes, scores), pcd_limit_range=[0, -80, -10, 200, 80, 10])
    for level, difficulty in enumerate(('easy', 'moderate', 'hard')):
        for kind in ('BEV', '3D'):
            prefix, expected = 'Kitti metric/pred_instances_3d/KITTI/', []
            for name in CLASSES:
                expected.append(2.5 * min(max(counted(gt, name, level) - 1, 0), 40))
                assert found[f'{prefix}{name}_{kind}_AP40_{difficulty}_strict'] == pytest.approx(expected[-1])
            assert found[f'{prefix}Overall_{kind}_AP40_{difficulty}'] == pytest.approx(np.mean(expected), abs=1e-3)
