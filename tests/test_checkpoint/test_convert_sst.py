"""SST weights of mmdet3d 0.15 become ours: old boxes, decoded by hand, are those that today's heads decode."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import pytest
import torch
from mmdet.utils import register_all_modules
from mmdet3d.structures import LiDARInstance3DBoxes
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor, nn

import mmprune3d
from mmprune3d.checkpoint.convert import convert_checkpoint, convert_state_dict
from mmprune3d.checkpoint.convert_sst import CLASSES, SOURCE, check_meta, convert_sst
from mmprune3d.cli import main
from tests.reference import reference_files

ROOT = Path(mmprune3d.__file__).parents[1]
LOWER, CELL = -74.88, 0.32
ROWS, COLUMNS = 3, 4


def small(name: str) -> nn.Module:
    """The detector of config `name` with narrow layers, few windows, and random weights everywhere."""
    register_all_modules(init_default_scope=False)
    config = Config.fromfile(ROOT / 'configs' / 'sst' / f'{name}.py').model
    config.voxel_encoder.feat_channels = [4, 8]
    blocks = config.backbone.num_blocks
    config.backbone.update(d_model=[8] * blocks, nhead=[2] * blocks, dim_feedforward=[8] * blocks)
    config.backbone.update(conv_in_channel=8, conv_out_channel=8)
    config.neck.update(in_channels=[8], out_channels=[8])
    config.bbox_head.in_channels = 8
    if 'tasks' in config.bbox_head:
        config.bbox_head.tasks = [dict(num_class=1, class_names=['Car']), dict(num_class=1, class_names=['Cyclist'])]
        config.bbox_head.share_conv_channel = 8
        config.bbox_head.separate_head.update(head_conv=8)
        config.bbox_head.separate_head.dcn_config.update(in_channels=8, out_channels=8)
        everywhere = [-100.0] * 3 + [100.0] * 3
        config.bbox_head.bbox_coder.update(max_num=ROWS * COLUMNS, score_threshold=0.0, post_center_range=everywhere)
        config.test_cfg.update(score_threshold=0.0, nms_thr=1.0, post_center_limit_range=everywhere)
    else:
        config.bbox_head.feat_channels = 8
        config.test_cfg.update(score_thr=0.0, nms_thr=1.0, nms_pre=-1)
    with DefaultScope.overwrite_default_scope('mmdet3d'):
        model = MODELS.build(config).eval()
    torch.manual_seed(0)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(0.5, 1.5) if tensor.dim() == 1 and (tensor == 1).all() else tensor.normal_(0, 0.3)
    return model


@pytest.fixture(scope='module')
def center() -> nn.Module:
    model = small('sst_waymoD5_centerhead')
    model.bbox_head.train_cfg.grid_size = [COLUMNS, ROWS, 1]  # of `features`
    return model


@pytest.fixture(scope='module')
def anchor() -> nn.Module:
    return small('sst_waymoD5_anchorhead')


def corners_of_old(boxes: Tensor) -> Tensor:
    """Corners [N, 8, 3], in today's order, of old boxes: bottom centre, w, l, h and the angle from -y, clockwise."""
    x, y, z, width, length, height, yaw = boxes.double().unbind(1)
    forward = torch.stack((-yaw.sin(), -yaw.cos()), 1)
    left = torch.stack((-forward[:, 1], forward[:, 0]), 1)
    found = []
    for along in (-0.5, 0.5):
        for across, up in ((-0.5, 0), (-0.5, 1), (0.5, 1), (0.5, 0)):
            flat = forward * (along * length)[:, None] + left * (across * width)[:, None]
            found.append(torch.stack((x + flat[:, 0], y + flat[:, 1], z + up * height), 1))
    return torch.stack(found, 1)


def features() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [0.3 * torch.randn(1, 8, ROWS, COLUMNS, generator=generator)]


def todays_boxes(head: nn.Module) -> tuple[Tensor, Tensor, Tensor]:
    """Corners, scores and labels that a head finds, by scores."""
    with torch.no_grad():
        found = head.predict_by_feat(*([head(features())] if hasattr(head, 'task_heads') else head(features())),
                                     batch_input_metas=[dict(box_type_3d=LiDARInstance3DBoxes)])[0]  # fmt: skip
    order = found.scores_3d.argsort(descending=True)
    return found.bboxes_3d.corners[order].double(), found.scores_3d[order], found.labels_3d[order]


def old_center_boxes(head: nn.Module) -> tuple[Tensor, Tensor, Tensor]:
    """The same by hand, of a head whose branches mean (w, l, h) and angles of the old convention."""
    boxes, scores, labels = [], [], []
    with torch.no_grad():
        tasks = head(features())
    for label, (maps,) in enumerate(tasks):
        flat = {name: values[0].flatten(1) for name, values in maps.items()}
        rows, columns = torch.meshgrid(torch.arange(ROWS), torch.arange(COLUMNS), indexing='ij')
        x = (columns.flatten() + flat['reg'][0]) * CELL + LOWER
        y = (rows.flatten() + flat['reg'][1]) * CELL + LOWER
        width, length, height = flat['dim'].exp()
        bottom = flat['height'][0] - height / 2
        yaw = torch.atan2(flat['rot'][0], flat['rot'][1])
        boxes.append(torch.stack((x, y, bottom, width, length, height, yaw), 1))
        scores.append(flat['heatmap'][0].sigmoid())
        labels.append(torch.full((len(x),), label))
    scores = torch.cat(scores)
    order = scores.argsort(descending=True)
    return corners_of_old(torch.cat(boxes)[order]), scores[order], torch.cat(labels)[order]


def old_anchor_boxes(head: nn.Module) -> tuple[Tensor, Tensor, Tensor]:
    """The same by hand, with the anchors and direction bins of the official config."""
    sizes = [(2.08, 4.73, 1.77, -0.0345), (0.84, 1.81, 1.77, -0.1188), (0.84, 0.91, 1.74, 0.0)]
    with torch.no_grad():
        ((scores,), (residuals,), (directions,)) = head(features())
    found = []
    for row in range(ROWS):
        for column in range(COLUMNS):
            for number in range(6):
                width, length, height, bottom = sizes[number // 2]
                dx, dy, dz, dw, dl, dh, dyaw = residuals[0, 7 * number : 7 * number + 7, row, column].double().tolist()
                diagonal = math.hypot(width, length)
                x = LOWER + (column + 0.5) * -2 * LOWER / COLUMNS + dx * diagonal
                y = LOWER + (row + 0.5) * -2 * LOWER / ROWS + dy * diagonal
                tall = height * math.exp(dh)
                z = bottom + height / 2 + dz * height - tall / 2
                yaw = (dyaw + (0, 1.57)[number % 2] - 0.7854) % math.pi + 0.7854
                first, second = directions[0, 2 * number : 2 * number + 2, row, column].tolist()
                yaw += math.pi * (second > first)
                box = (x, y, z, width * math.exp(dw), length * math.exp(dl), tall, yaw)
                for label in range(3):
                    found.append((*box, scores[0, 3 * number + label, row, column].sigmoid().item(), label))
    found = torch.tensor(sorted(found, key=lambda item: -item[7]), dtype=torch.float64)
    return corners_of_old(found[:, :7]), found[:, 7], found[:, 8].long()


@pytest.mark.parametrize(('kind', 'by_hand', 'count'), [
    ('center', old_center_boxes, 2 * ROWS * COLUMNS), ('anchor', old_anchor_boxes, 3 * 6 * ROWS * COLUMNS)
])  # fmt: skip
def test_the_converted_head_finds_the_same_boxes(request, kind, by_hand, count):
    model = request.getfixturevalue(kind)
    corners, scores, labels = by_hand(model.bbox_head)
    assert len(corners) == count
    assert (todays_boxes(model.bbox_head)[0] - corners).abs().amax((1, 2)).median() > 0.5
    converted = copy.deepcopy(model)
    converted.load_state_dict(convert_sst(model.state_dict()), strict=True)
    found, found_scores, found_labels = todays_boxes(converted.bbox_head)
    torch.testing.assert_close(found_scores.double(), scores.double(), rtol=0, atol=1e-6)
    assert torch.equal(found_labels, labels)
    torch.testing.assert_close(found, corners, rtol=0, atol=2e-4)


@pytest.mark.parametrize('path', reference_files('sst', 'keys_*.json'))
def test_all_official_keys_pass(path: Path) -> None:
    shapes = json.loads(path.read_text())
    converted = convert_state_dict({key: torch.zeros(shape) for key, shape in shapes.items()}, SOURCE)
    assert {key: list(value.shape) for key, value in converted.items()} == shapes


@pytest.mark.parametrize(('kind', 'changed'), [
    ('center', {f'{task}.task_head.{branch}.1.{name}' for task in (0, 1) for branch in ('dim', 'rot')
                for name in ('weight', 'bias')}),
    ('anchor', {f'conv_{layer}.{name}' for layer in ('cls', 'reg', 'dir_cls') for name in ('weight', 'bias')}),
])  # fmt: skip
def test_only_box_branches_change(request, kind, changed):
    before = request.getfixturevalue(kind).state_dict()
    kept = {key: value.clone() for key, value in before.items()}
    after = convert_sst(before)
    assert list(after) == list(before) and all(torch.equal(value, kept[key]) for key, value in before.items())
    found = {key for key in before if after[key] is not before[key]}
    prefix = 'bbox_head.task_heads.' if kind == 'center' else 'bbox_head.'
    assert found == {prefix + key for key in changed}
    assert all(after[key].dtype == before[key].dtype and not torch.equal(after[key], before[key]) for key in found)
    assert (kind == 'center') == any(key.endswith('tau') for key in after)


def test_missing_and_unknown_keys_are_listed(center, anchor):
    weights = dict(center.state_dict())
    del weights['backbone.block_list.2.encoder_list.1.win_attn.self_attn.tau']
    del weights['bbox_head.task_heads.1.task_head.rot.1.bias']
    weights['backbone.block_list.0.encoder_list.0.gate.weight'] = weights['ema_backbone_x'] = torch.ones(1)
    pattern = (
        r'(?s)2 unknown keys:.*0\.gate\.weight.*ema_backbone_x.*'
        r'2 missing keys:.*2\.encoder_list\.1\.win_attn\.self_attn\.tau.*1\.task_head\.rot\.1\.bias'
    )
    with pytest.raises(ValueError, match=pattern):
        convert_sst(weights)
    weights = {key: value for key, value in anchor.state_dict().items() if not key.startswith('bbox_head.conv_dir')}
    with pytest.raises(ValueError, match=r'(?s)2 missing keys:.*conv_dir_cls\.bias.*conv_dir_cls\.weight'):
        convert_sst(weights)
    with pytest.raises(ValueError, match=r'(?s)missing keys:.*vfe_layers\.0\.linear.*'):
        convert_sst({'bbox_head.task_heads.0.cls_head.0.weight': torch.ones(1)})


def test_backbones_without_convolutions_and_with_batch_norm(anchor):
    weights = {key: value for key, value in anchor.state_dict().items() if '.conv_layer.' not in key}
    weights['backbone.linear0.weight'], weights['backbone.linear0.bias'] = torch.ones(8, 4), torch.ones(8)
    norms = [key for key in weights if '.norm1.weight' in key or '.norm2.weight' in key]
    for key in norms:
        for name in ('running_mean', 'running_var', 'num_batches_tracked'):
            weights[key.replace('weight', name)] = torch.ones(8)
    assert list(convert_sst(weights)) == list(weights)
    del weights[norms[-1].replace('weight', 'running_var')], weights['backbone.linear0.bias']
    with pytest.raises(ValueError, match='2 missing keys'):
        convert_sst(weights)


def test_heads_of_other_sizes_are_refused(center, anchor):
    key = 'bbox_head.task_heads.0.task_head.dim.1.weight'
    with pytest.raises(ValueError, match=r'dim\.1\.weight has 2 rows; 3 are expected'):
        convert_sst({**center.state_dict(), key: torch.ones(2, 8, 3, 3)})
    with pytest.raises(ValueError, match='it must be even'):
        convert_sst({**anchor.state_dict(), 'bbox_head.conv_dir_cls.weight': torch.ones(10, 8, 1, 1)})
    with pytest.raises(ValueError, match=r'conv_reg\.weight has 54 rows; 42 are expected'):
        convert_sst({**anchor.state_dict(), 'bbox_head.conv_reg.weight': torch.ones(54, 8, 1, 1)})


def test_anchor_heads_of_other_angles_are_refused():
    text = "bbox_head=dict(type='Anchor3DHead', anchor_generator=dict(rotations={}), dir_offset={})"
    check_meta({})
    check_meta({'config': text.format('[0, 1.57]', 0.7854)})
    check_meta({'config': "bbox_head=dict(type='CenterHead', rotations=[0], dir_offset=0)"})
    with pytest.raises(ValueError, match=r'has rotations \(0\.0, 0\.78, 1\.57\); only \(0\.0, 1\.57\) can'):
        check_meta({'config': text.format('[\n    0, 0.78, 1.57]', 0.7854)})
    with pytest.raises(ValueError, match=r'has dir_offset \(-0\.7854,\)'):
        check_meta({'config': text.format('(0, 1.57)', -0.7854)})


def test_command_line(center, tmp_path, monkeypatch, capsys):
    source, target = tmp_path / 'theirs.pth', tmp_path / 'ours.pth'
    weights = {f'module.{key}': value for key, value in center.state_dict().items()}
    torch.save({'state_dict': weights, 'optimizer': {'state': {}}, 'meta': {'epoch': 12}}, source)
    assert main(['checkpoint', 'convert', str(source), str(target), '--from', SOURCE]) == 0
    assert 'ours.pth' in capsys.readouterr().out
    found = torch.load(target, weights_only=True)
    assert found['meta'] == {'converted_from': SOURCE, 'dataset_meta': {'classes': CLASSES}} and len(found) == 2
    copy.deepcopy(center).load_state_dict(found['state_dict'], strict=True)
    with pytest.raises(ValueError, match=f'already converted from {SOURCE}'):
        convert_checkpoint(found, SOURCE)
    meta = {'CLASSES': ['A'], 'config': 'Anchor3DHead rotations=[0] '}
    with pytest.raises(ValueError, match='rotations'):
        convert_checkpoint({'state_dict': weights, 'meta': meta}, SOURCE)
