from __future__ import annotations

import pickle
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmdet3d.registry import MODELS
from mmdet3d.structures import LiDARInstance3DBoxes
from mmengine.config import Config
from mmengine.structures import InstanceData

from experiments.tggbc.single_frame import SingleFrame, found_cars, frame_dataset
from mmprune3d import adapters
from mmprune3d.ops.cameras import lidar2img_of
from mmprune3d.pruning.tggbc import TgGBCPlan
from tests.real_data import each_frame, frame_folder

CONFIG = Path(__file__).parents[2] / 'configs' / 'petr' / 'petr_tiny.py'


def prediction(centers: list[tuple[float, float]], scores: list[float], labels: list[int]) -> SimpleNamespace:
    boxes = torch.zeros(len(centers), 9)
    boxes[:, :2] = torch.tensor(centers)
    found = InstanceData(
        bboxes_3d=LiDARInstance3DBoxes(boxes, box_dim=9),
        scores_3d=torch.tensor(scores),
        labels_3d=torch.tensor(labels),
    )
    return SimpleNamespace(pred_instances_3d=found)


def test_each_prediction_finds_one_car() -> None:
    cars = torch.tensor([[0.0, 0.0], [1.0, 0.0], [30.0, 0.0]])
    assert found_cars(prediction([(0.5, 0.0)], [0.9], [0]), cars) == 1
    assert found_cars(prediction([(0.5, 0.0), (0.6, 0.0)], [0.9, 0.9], [0, 0]), cars) == 2


def test_only_confident_near_cars_count() -> None:
    cars = torch.tensor([[0.0, 0.0]])
    for center, score, label in (((0, 2.1), 0.9, 0), ((0, 0), 0.2, 0), ((0, 0), 0.9, 1)):
        assert found_cars(prediction([center], [score], [label]), cars) == 0


@pytest.fixture(scope='module')
def config() -> Config:
    return Config.fromfile(CONFIG)


@pytest.fixture(scope='module')
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return frame_folder(request.param, tmp_path_factory.mktemp(request.param))


def annotated(folder: Path, label: int | None = None) -> int:
    """How many objects of the frame have LiDAR points and lie in petr_tiny's range, of one class or of all."""
    (info,) = pickle.loads((folder / 'infos.pkl').read_bytes())['data_list']
    near = [each for each in info['instances'] if max(abs(value) for value in each['bbox_3d'][:2]) < 51.2]
    known = [each['bbox_label_3d'] for each in near if each['num_lidar_pts'] > 0 and each['bbox_label_3d'] >= 0]
    return len(known) if label is None else known.count(label)


@pytest.mark.parametrize('folder', each_frame(), indirect=True)
@pytest.mark.parametrize('augment', [False, True])
def test_real_boxes_project_into_the_images_that_show_them(config: Config, folder: Path, augment: bool) -> None:
    """A real calibration, resized and augmented: every annotated car that a camera could see projects into one."""
    np.random.seed(1)
    sample = frame_dataset(config, folder, augment)[0]
    truth = sample['data_samples'].gt_instances_3d
    assert len(truth) == annotated(folder) > 30
    centers = torch.cat([truth.bboxes_3d.gravity_center, torch.ones(len(truth), 1)], 1).double().numpy()
    projected = np.einsum('cij,nj->cni', lidar2img_of(sample['data_samples'].metainfo), centers)
    height, width = sample['inputs']['img'].shape[-2:]
    pixel = projected[..., :2] / projected[..., 2:3]
    seen = (projected[..., 2] > 0) & (pixel > 0).all(-1) & (pixel[..., 0] < width) & (pixel[..., 1] < height * 1.5)
    assert seen.any(0).mean() > 0.9


@pytest.mark.parametrize('folder', each_frame(), indirect=True)
def test_real_boxes_hold_the_points_that_were_counted_in_them(folder: Path) -> None:
    """Places, sizes and angles of the annotations, in the frame of the sweep."""
    (info,) = pickle.loads((folder / 'infos.pkl').read_bytes())['data_list']
    sweep = np.fromfile(folder / info['lidar_points']['lidar_path'], np.float32).reshape(-1, 5)
    counted = [each['num_lidar_pts'] for each in info['instances']]
    inside = []
    for each in info['instances']:
        yaw, sides = each['bbox_3d'][6], np.array(each['bbox_3d'][3:6])
        turn = np.array([[np.cos(yaw), -np.sin(yaw), 0], [np.sin(yaw), np.cos(yaw), 0], [0, 0, 1]])
        local = (sweep[:, :3] - each['bbox_3d'][:3]) @ turn
        inside.append(int((abs(local) <= sides / 2).all(1).sum()))
    assert sum(inside) == pytest.approx(sum(counted), rel=0.1)
    assert np.corrcoef(inside, counted)[0, 1] > 0.99


@pytest.mark.parametrize('folder', each_frame(), indirect=True)
def test_real_frame_from_file_to_pruned_boxes(config: Config, folder: Path) -> None:
    torch.manual_seed(0)
    dataset = frame_dataset(config, folder)
    model = MODELS.build(config.model)
    model.init_weights()
    frame = SingleFrame(model, dataset)
    assert len(frame.cars) == annotated(folder, label=0) > 0
    adapters.attach(model, TgGBCPlan(r=740, n=2, k=175))
    found = frame.predict().pred_instances_3d
    assert adapters.keys_per_layer(model, frame.predict) == [1056, 686, 316, 316, 316, 316]
    assert 0 < len(found) <= 300 and torch.isfinite(found.bboxes_3d.tensor).all()
    losses: list[float] = []
    adapters.detach(model)
    frame.overfit(2, 1e-4, lambda step, loss, found: losses.append(loss))
    assert np.isfinite(losses).all() and losses
