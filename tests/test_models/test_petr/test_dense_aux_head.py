from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from mmdet3d.registry import MODELS, TRANSFORMS
from mmdet3d.structures import LiDARInstance3DBoxes
from mmengine.structures import InstanceData

import mmprune3d.datasets.transforms  # noqa: F401
from mmprune3d.models.petr.dense_aux_head import PARTS, PETR3DDenseAuxHead, project_boxes

from .small import CAMERAS, HEIGHT, WIDTH, batch, build, detector_config, sample

CONFIG = {'type': 'PETR3DDenseAuxHead', 'num_classes': 4, 'in_channels': 24, 'feat_channels': 16}
CELLS = (2, 4)


def head(**changes: object) -> PETR3DDenseAuxHead:
    build(detector_config())
    torch.manual_seed(0)
    return MODELS.build({**CONFIG, **changes})


def sample_with(boxes: list[list[float]], labels: list[int]) -> object:
    result = sample(0)
    tensor = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 9)
    gt = LiDARInstance3DBoxes(tensor, box_dim=9, origin=(0.5, 0.5, 0.5))
    result.gt_instances_3d = InstanceData(bboxes_3d=gt, labels_3d=torch.tensor(labels, dtype=torch.long))
    return result


def test_targets_of_one_box_ahead() -> None:
    """Camera 0 looks along x and stands at about the origin; the box is 10 m ahead, turned by 0.4."""
    made = sample_with([[10.0, 0.5, -0.5, 4, 2, 1.5, 0.4, 0, 0]], [2])
    targets = head(focal=40.0).targets([made], CAMERAS, CELLS)
    assert targets.labels.shape == (CAMERAS, *CELLS)
    assert (targets.labels < 4).sum() == 1 and len(targets.cell) == 1
    x, y, depth = -0.5 + 0.1, 0.5 + 0.5, 10.0 - 0.2
    u, v = 40 * x / depth + WIDTH / 2, 40 * y / depth + HEIGHT / 2
    row, column = int(v // 16), int(u // 16)
    assert targets.labels[0, row, column] == 2 and targets.cell.item() == row * CELLS[1] + column
    offset, log_depth, size, angle = targets.values[0].split(list(PARTS.values()))
    torch.testing.assert_close(offset, torch.tensor([u / 16 - column, v / 16 - row], dtype=torch.float32))
    torch.testing.assert_close(log_depth.exp(), torch.tensor([depth], dtype=torch.float32))
    torch.testing.assert_close(size.exp(), torch.tensor([4.0, 2.0, 1.5]))
    observed = -0.4 - math.atan2(x, depth)
    torch.testing.assert_close(angle, torch.tensor([math.sin(observed), math.cos(observed)]))


def test_the_nearest_box_of_a_cell_wins_and_hidden_ones_do_not_count() -> None:
    rest = [4, 2, 1, 0, 0, 0]
    near, far, behind = [9.0, 0, -1, *rest], [18.0, 0, -1.5, *rest], [0.0, 0, 40, *rest]
    for order in ([near, far, behind], [behind, far, near]):
        made = sample_with(order, [0, 1, 2] if order[0] is near else [2, 1, 0])
        targets = head().targets([made], CAMERAS, CELLS)
        assert targets.labels[targets.labels < 4].tolist() == [0]


def test_of_equally_near_boxes_the_first_wins() -> None:
    made = sample_with([[9.0, 0, -1, 4, 2, 1, 0, 0, 0]] * 20, [3, *[1] * 19])
    targets = head().targets([made], CAMERAS, CELLS)
    assert targets.labels[targets.labels < 4].tolist() == [3]


def test_targets_of_a_batch_are_per_sample() -> None:
    samples = [sample_with([], []), sample_with([[10.0, 0, -0.5, 4, 2, 1, 0, 0, 0]], [3])]
    targets = head().targets(samples, CAMERAS, CELLS)
    assert (targets.labels[:CAMERAS] == 4).all()
    assert targets.labels[CAMERAS].min() == 3


WORLDS = [
    {'type': 'MultiViewGlobalRotScaleTrans', 'rot_range': (0.7, 0.7), 'scale_ratio_range': (0.8, 0.8)},
    {'type': 'MultiViewGlobalRotScaleTrans', 'translation_std': (2, 2, 0)},
    {'type': 'MultiViewRandomFlip3D', 'flip_ratio_bev_horizontal': 1.0, 'flip_images': False},
    {'type': 'MultiViewRandomFlip3D', 'flip_ratio_bev_horizontal': 1.0, 'flip_ratio_bev_vertical': 1.0},
]


def projected(results: dict) -> torch.Tensor:
    boxes = results['gt_bboxes_3d']
    centred = torch.cat((boxes.gravity_center, boxes.tensor[:, 3:]), dim=1)
    lidar2cam = torch.as_tensor(np.asarray(results['lidar2cam'][0]), dtype=torch.float32)
    cam2img = np.eye(4)
    matrix = np.asarray(results['cam2img'][0])
    cam2img[: len(matrix), : len(matrix)] = matrix
    lidar2img = torch.as_tensor(cam2img, dtype=torch.float32) @ lidar2cam
    seen = project_boxes(centred, lidar2cam, lidar2img, focal=40.0)
    return torch.cat((seen.pixel, seen.depth[:, None], seen.values), dim=1)[seen.depth > 1]


def pipeline_dict() -> dict:
    made = sample(12, seed=4)
    results = copy.deepcopy(made.metainfo)
    results['gt_bboxes_3d'] = made.gt_instances_3d.bboxes_3d.clone()
    results['img'] = [np.zeros((HEIGHT, WIDTH, 3), np.float32)] * CAMERAS
    return results


@pytest.mark.parametrize('world', WORLDS)
def test_moving_the_world_changes_no_target(world: dict) -> None:
    np.random.seed(0)
    before, after = projected(pipeline_dict()), projected(TRANSFORMS.build(world)(pipeline_dict()))
    assert len(before) > 2
    torch.testing.assert_close(after, before, atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize('both', [False, True])
def test_a_mirrored_image_mirrors_the_angle(both: bool) -> None:
    config = {'type': 'MultiViewImageAug', 'image_size': (HEIGHT, WIDTH), 'flip_prob': 1.0}
    if both:
        config = {'type': 'MultiViewRandomFlip3D', 'flip_ratio_bev_horizontal': 1.0}
    before, after = projected(pipeline_dict()), projected(TRANSFORMS.build(config)(pipeline_dict()))
    before[:, 0] = WIDTH - before[:, 0]
    before[:, -2] *= -1
    torch.testing.assert_close(after, before, atol=2e-3, rtol=1e-3)


def test_zooming_in_looks_like_coming_nearer() -> None:
    config = {'type': 'MultiViewImageAug', 'image_size': (HEIGHT, WIDTH), 'flip_prob': 0.0, 'resize_range': (2.0, 2.0)}
    before, after = projected(pipeline_dict()), projected(TRANSFORMS.build(config)(pipeline_dict()))
    torch.testing.assert_close(after[:, 5].exp() * 2, before[:, 5].exp(), rtol=1e-3, atol=1e-3)


def test_losses_train_the_backbone_and_nothing_runs_at_test() -> None:
    model = build(detector_config(aux_head=CONFIG)).train()
    losses = model(**model.data_preprocessor(batch(), training=True), mode='loss')
    names = {'aux_loss_cls', *(f'aux_loss_{part}' for part in PARTS)}
    assert names <= set(losses)
    sum(losses[name] for name in names).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.aux_head.parameters())
    assert model.img_backbone.conv1.weight.grad.any()

    def fail(*args: object) -> None:
        raise AssertionError('the auxiliary head ran at test')

    model.aux_head.register_forward_pre_hook(fail)
    with torch.no_grad():
        model.eval()(**model.data_preprocessor(batch(), training=False), mode='predict')


def test_perfect_values_have_no_loss() -> None:
    module, made = head(loss_weight=2.0), [sample(6, seed=1)]
    targets = module.targets(made, CAMERAS, CELLS)
    logits = torch.full((CAMERAS * CELLS[0] * CELLS[1], 4), -20.0)
    labels = targets.labels.flatten()
    logits[labels < 4, labels[labels < 4]] = 20.0
    values = torch.zeros(len(logits), sum(PARTS.values()))
    values[targets.cell] = targets.values
    as_map = lambda flat: flat.reshape(CAMERAS, *CELLS, -1).permute(0, 3, 1, 2)  # noqa: E731
    module.forward = lambda feats: (as_map(logits), as_map(values))
    assert all(loss < 1e-6 for loss in module.loss([torch.zeros(1, CAMERAS, 24, *CELLS)], made).values())


def test_unknown_part_is_refused() -> None:
    with pytest.raises(ValueError, match='offset, depth, size, angle'):
        head(loss_weights={'velocity': 1.0})
