"""`SSTCenterHead` against mmdet3d's `CenterHead`, and with boxes of which that one knows nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from mmdet3d.models.dense_heads import CenterHead
from mmdet3d.registry import MODELS
from mmdet3d.structures import Det3DDataSample, LiDARInstance3DBoxes
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from mmprune3d.models.sst.center_head import SSTCenterHead
from tests.reference import reference_files

RANGE, VOXEL, GRID = [-8.0, -6.0, -2, 8, 6, 4], [0.4, 0.25, 6], [40, 48, 1]
TASKS = [{'num_class': 1, 'class_names': ['car']}, {'num_class': 2, 'class_names': ['pedestrian', 'cyclist']}]
HEADS = {'reg': (2, 2), 'height': (1, 2), 'dim': (3, 2), 'rot': (2, 2)}
WEIGHTS = [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3]
DCN = {'type': 'DCN', 'in_channels': 8, 'out_channels': 8, 'kernel_size': 3, 'padding': 1, 'groups': 4, 'bias': False}
PLAIN = {'type': 'SeparateHead', 'init_bias': -2.19, 'final_kernel': 3, 'head_conv': 8}
DEFORMABLE = {'type': 'DCNSeparateHead', 'init_bias': -2.19, 'final_kernel': 3, 'head_conv': 8, 'dcn_config': DCN}


def config(velocity: bool, **changes: Any) -> dict:
    stride = changes.pop('out_size_factor', 1)
    place = {'out_size_factor': stride, 'voxel_size': VOXEL[:2], 'pc_range': RANGE[:2]}
    train = {
        'grid_size': GRID,
        'voxel_size': VOXEL,
        'point_cloud_range': RANGE,
        'out_size_factor': stride,
        'dense_reg': 1,
        'gaussian_overlap': 0.1,
        'min_radius': 2,
        'max_objs': 30,
        'code_weights': WEIGHTS + ([0.2, 0.1] if velocity else []),
    }
    coder = {
        'type': 'CenterPointBBoxCoder',
        'post_center_range': [-10, -10, -10, 10, 10, 10],
        'max_num': 50,
        'score_threshold': 0.1,
        'code_size': 9 if velocity else 7,
        **place,
    }
    test = {
        'post_center_limit_range': [-10, -10, -10, 10, 10, 10],
        'score_threshold': 0.1,
        'nms_type': 'rotate',
        'nms_thr': 0.7,
        'pre_max_size': 100,
        'post_max_size': 50,
    }
    common = {**HEADS, 'vel': (2, 2)} if velocity else HEADS
    return {
        'in_channels': 6,
        'share_conv_channel': 8,
        'tasks': TASKS,
        'common_heads': changes.pop('common_heads', common),
        'bbox_coder': {**coder, **changes.pop('bbox_coder', {})},
        'separate_head': dict(changes.pop('separate_head', PLAIN)),
        'loss_cls': {'type': 'mmdet.GaussianFocalLoss', 'reduction': 'mean'},
        'loss_bbox': {'type': 'mmdet.L1Loss', 'reduction': 'mean', 'loss_weight': 2},
        'norm_bbox': changes.pop('norm_bbox', True),
        'train_cfg': {**train, **changes},
        'test_cfg': test,
    }


def head(velocity: bool, kind: type[nn.Module] = SSTCenterHead, **changes: Any) -> nn.Module:
    init_default_scope('mmdet3d')
    torch.manual_seed(0)
    return kind(**config(velocity, **changes))


def truth(number: int, seed: int, columns: int = 9, beyond: float = 1.0) -> InstanceData:
    generator = torch.Generator().manual_seed(seed)
    low = torch.tensor([-8.0, -6, -2, 0.3, 0.3, 0.5, -4, -9, -9])
    size = torch.tensor([16.0, 12, 4, 5, 3, 2, 8, 18, 18])
    boxes = torch.rand(number, 9, generator=generator) * size + low
    boxes[:, :2] *= beyond
    labels = torch.randint(-1, 3, (number,), generator=generator)
    boxes = boxes[:, :columns]
    return InstanceData(bboxes_3d=LiDARInstance3DBoxes(boxes, box_dim=columns), labels_3d=labels)


def features(batch: int = 2, stride: int = 1) -> list[Tensor]:
    return [torch.randn(batch, 6, GRID[1] // stride, GRID[0] // stride, generator=torch.Generator().manual_seed(1))]


def same(first: Any, second: Any) -> None:
    torch.testing.assert_close(first, second, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize('norm_bbox', [True, False])
@pytest.mark.parametrize('stride', [1, 2])
@pytest.mark.parametrize(('counts', 'beyond'), [((25, 0, 200), 1.2), ((1, 29), 1.0), ((0,), 1.0)])
def test_targets_are_those_of_mmdet3d(counts: tuple[int, ...], beyond: float, stride: int, norm_bbox: bool) -> None:
    ours, theirs = (
        head(True, kind, out_size_factor=stride, norm_bbox=norm_bbox) for kind in (SSTCenterHead, CenterHead)
    )
    batch = [truth(count, seed, beyond=beyond) for seed, count in enumerate(counts)]
    if counts[0] > 10:
        batch[0].bboxes_3d.tensor[[0, 3], [3, 4]] = 0.0  # nothing to draw
        batch[0].bboxes_3d.tensor[5, 7:] = torch.nan  # nuScenes does not know every velocity
        batch[0].bboxes_3d.tensor[6, :2] = torch.tensor([-8.1, -6.1])  # truncated towards cell 0
        batch[0].bboxes_3d.tensor[7] = batch[0].bboxes_3d.tensor[8]
    found, expected = ours.get_targets(batch), theirs.get_targets(batch)
    same(found, expected)
    used = [int(mask.sum()) for mask in found[3]]
    assert sum(used) > 1 if sum(counts) else sum(used) == 0
    more = head(True, out_size_factor=stride, norm_bbox=norm_bbox, max_objs=500).get_targets(batch)
    assert (sum(int(mask.sum()) for mask in more[3]) > sum(used)) == (max(counts) == 200)


class Copies(TorchDispatchMode):
    """Counts what waits for the device: single numbers, and results whose size depends on the data."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.name() in ('aten::_local_scalar_dense', 'aten::nonzero', 'aten::index.Tensor')
        return func(*args, **(kwargs or {}))


def test_copies_to_the_host_do_not_grow_with_the_objects() -> None:
    counts = {}
    for kind in (SSTCenterHead, CenterHead):
        for number in (5, 25):
            module, batch = head(True, kind), [truth(number, 0)]
            with Copies() as copies:
                module.get_targets(batch)
            counts[kind, number] = copies.count
    assert counts[SSTCenterHead, 5] == counts[SSTCenterHead, 25] < counts[CenterHead, 5] < counts[CenterHead, 25]


@pytest.mark.parametrize('counts', [(12, 20), (0, 7), (0, 0)])
@pytest.mark.parametrize('separate_head', [PLAIN, DEFORMABLE], ids=['plain', 'deformable'])
def test_losses_are_those_of_mmdet3d(counts: tuple[int, int], separate_head: dict) -> None:
    ours, theirs = (head(True, kind, separate_head=separate_head) for kind in (SSTCenterHead, CenterHead))
    samples = [Det3DDataSample(gt_instances_3d=truth(count, seed)) for seed, count in enumerate(counts)]
    found, expected = ours.loss(features(), samples), theirs.loss(features(), samples)
    same(found, expected)
    assert set(found) == {f'task{i}.loss_{part}' for i in range(2) for part in ('heatmap', 'bbox')}
    assert (sum(found[f'task{i}.loss_bbox'] for i in range(2)) > 0) == (sum(counts) > 0)
    for losses in (found, expected):
        sum(losses.values()).backward()
    theirs = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        same(parameter.grad, theirs[name].grad)


def test_without_velocities_the_losses_are_those_with_weightless_ones() -> None:
    wide = head(True, CenterHead, code_weights=[*WEIGHTS, 0.0, 0.0])
    predictions = wide(features())
    narrow = tuple([{k: v for k, v in maps.items() if k != 'vel'} for maps in levels] for levels in predictions)
    batch = [truth(12, 0), truth(20, 1)]
    found = head(False).loss_by_feat(narrow, [truth(12, 0, columns=7), truth(20, 1, columns=7)])
    same(found, head(False).loss_by_feat(narrow, batch))  # velocities that nobody asked for
    weightless = head(True, code_weights=[*WEIGHTS, 0.0, 0.0])
    same(found, weightless.loss_by_feat(predictions, [truth(12, 0, columns=7), truth(20, 1, columns=7)]))
    torch.testing.assert_close(found, wide.loss_by_feat(predictions, batch), rtol=1e-6, atol=0)


def test_predictions_stay_and_can_be_used_twice() -> None:
    module = head(False)
    predictions = module(features())
    before = [{name: part.clone() for name, part in levels[0].items()} for levels in predictions]
    losses = [module.loss_by_feat(predictions, [truth(9, 0, 7), truth(4, 1, 7)]) for _ in range(2)]
    same(losses[0], losses[1])
    same([levels[0] for levels in predictions], before)


def maps_of(module: nn.Module, targets: tuple[list[Tensor], ...]) -> tuple[list[dict], ...]:
    """Predictions that say what the targets say."""
    predictions = []
    for heatmap, codes, index, mask in zip(*targets):
        batch, _, ny, nx = heatmap.shape
        flat = torch.zeros(batch, ny * nx, codes.shape[2])
        for b in range(batch):
            flat[b, index[b][mask[b].bool()]] = codes[b][mask[b].bool()]
        flat = flat.permute(0, 2, 1).reshape(batch, -1, ny, nx)
        widths = {'reg': 2, 'height': 1, 'dim': 3, 'rot': 2, 'vel': codes.shape[2] - 8}
        maps = {k: part for k, part in zip(widths, flat.split(list(widths.values()), 1)) if part.shape[1]}
        predictions.append([{**maps, 'heatmap': torch.where(heatmap == 1, 5.0, -9.0)}])
    return tuple(predictions)


@pytest.mark.parametrize(('velocity', 'code_size'), [(False, 7), (True, 7), (True, 9)])
@pytest.mark.parametrize('stride', [1, 2])
def test_targets_come_back_as_boxes(velocity: bool, code_size: int, stride: int) -> None:
    module = head(velocity, out_size_factor=stride, bbox_coder={'code_size': code_size}).eval()
    boxes = torch.tensor(
        [
            [0.0, 0, -1, 4, 2, 1.5, 0.3, 1, -2],
            [-7, -5.5, 0, 0.8, 0.6, 1.7, -3.0, 0, 0],
            [5.0, 4, 1, 1.8, 0.7, 1.6, 3.1, 3, 4],
        ]
    )
    gt = InstanceData(bboxes_3d=LiDARInstance3DBoxes(boxes, box_dim=9), labels_3d=torch.tensor([0, 1, 2]))
    none = truth(0, 0)
    predictions = maps_of(module, module.get_targets([gt, none]))
    found, empty = module.predict_by_feat(predictions, [{'box_type_3d': LiDARInstance3DBoxes}] * 2)
    order = found.labels_3d.argsort()
    assert isinstance(found.bboxes_3d, LiDARInstance3DBoxes) and found.labels_3d[order].tolist() == [0, 1, 2]
    torch.testing.assert_close(found.bboxes_3d.tensor[order], boxes[:, :code_size], rtol=1e-5, atol=1e-5)
    assert empty.bboxes_3d.tensor.shape == (0, code_size) and len(empty.scores_3d) == len(empty.labels_3d) == 0


@pytest.mark.parametrize('velocity', [False, True])
@pytest.mark.parametrize('separate_head', [PLAIN, DEFORMABLE], ids=['plain', 'deformable'])
def test_training_and_prediction(velocity: bool, separate_head: dict) -> None:
    module = head(velocity, separate_head=separate_head, code_weights=[1.0] * 8 + [0.0, 0.0] * velocity)
    metas = {'box_type_3d': LiDARInstance3DBoxes}
    samples = [Det3DDataSample(metainfo=metas, gt_instances_3d=truth(count, count, 7)) for count in (6, 0)]
    sum(module.loss(features(), samples).values()).backward()
    silent = [name for name, p in module.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert silent == [] and module.shared_conv.conv.weight.grad.any()
    module.eval().test_cfg['score_threshold'] = module.bbox_coder.score_threshold = 0.0
    with torch.no_grad():
        found = module.predict(features(), samples)
    for item in found:
        assert len(item.bboxes_3d) > 10 and item.bboxes_3d.tensor.shape[1] == (9 if velocity else 7)
        assert item.bboxes_3d.tensor.isfinite().all() and set(item.labels_3d.tolist()) <= {0, 1, 2}


def test_registered_with_the_keys_of_mmdet3d() -> None:
    init_default_scope('mmdet3d')
    ours = MODELS.build({'type': 'SSTCenterHead', **config(True)})
    assert isinstance(ours, SSTCenterHead)
    assert list(ours.state_dict()) == list(head(True, CenterHead).state_dict())


@pytest.mark.parametrize('path', reference_files('sst', 'keys_center*.json'))
def test_state_dict_of_the_published_config(path: Path) -> None:
    shapes = json.loads(path.read_text())
    prefix = 'bbox_head.'
    expected = {key[len(prefix) :]: tuple(shape) for key, shape in shapes.items() if key.startswith(prefix)}
    wide, inner = expected['shared_conv.conv.weight'][1], expected['shared_conv.conv.weight'][0]
    dcn = {**DCN, 'in_channels': inner, 'out_channels': inner}
    changed = config(True, separate_head={**DEFORMABLE, 'head_conv': 64, 'dcn_config': dcn})
    changed.update(in_channels=wide, share_conv_channel=inner)
    changed['tasks'] = [{'num_class': 3, 'class_names': ['car', 'pedestrian', 'cyclist']}]
    init_default_scope('mmdet3d')
    found = {key: tuple(value.shape) for key, value in SSTCenterHead(**changed).state_dict().items()}
    assert found == expected


@pytest.mark.parametrize(
    ('velocity', 'changes', 'message'),
    [
        (False, {'code_weights': [1.0] * 10}, 'list of 8'),
        (True, {'code_weights': [1.0] * 8}, r'list of 10 .*vx, vy'),
        (False, {'code_weights': None}, 'code_weights is None'),
        (False, {'bbox_coder': {'code_size': 9}}, r'valid without vel in common_heads are \(7,\)'),
        (True, {'bbox_coder': {'code_size': 10}}, r'\(7, 9\)'),
        (False, {'common_heads': {**HEADS, 'iou': (1, 2)}}, "valid are {'reg': 2"),
        (False, {'common_heads': {'reg': (2, 2)}}, "valid are {'reg': 2"),
        (False, {'common_heads': {**HEADS, 'rot': (1, 2)}}, "valid are {'reg': 2"),
    ],
)
def test_configs_that_do_not_fit(velocity: bool, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        head(velocity, **changes)


def test_boxes_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match='set the last two code_weights to 0'):
        head(True).get_targets([truth(3, 0, columns=7)])
    assert not head(True).get_targets([truth(0, 0, columns=7)])[3][0].any()
    with pytest.raises(ValueError, match='8 columns; valid are 7'):
        head(True).get_targets([truth(3, 0, columns=8)])


def test_a_head_without_training_needs_no_weights() -> None:
    changed = {**config(False), 'train_cfg': None}
    init_default_scope('mmdet3d')
    assert SSTCenterHead(**changed).code_length == 8
