"""Detectors and data without velocities: 8 box codes, boxes of 7 numbers."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest
import torch
from mmdet3d.structures import LiDARInstance3DBoxes

from mmprune3d.checkpoint.load import load_state_dict
from mmprune3d.checkpoint.mismatch import CheckpointMismatchError
from mmprune3d.engine.hooks.allow_mismatch_hook import AllowShapeMismatchHook

from .small import batch, build, detector_config, head_config
from .test_detector import run, total

EIGHT = [1.0] * 8
DENOISING = {'groups': 2, 'noise_scale': 1.0, 'noise_trans': 0.5}


def small_detector(codes: int, **head: object) -> torch.nn.Module:
    aux = {'type': 'PETR3DDenseAuxHead', 'num_classes': 4, 'in_channels': 24, 'feat_channels': 16}
    weights = {} if codes == 10 else {'code_weights': [1.0] * codes}
    return build(detector_config(head={**weights, **head}, aux_head=aux))


def without_velocity(data: dict) -> dict:
    for sample in data['data_samples']:
        boxes = sample.gt_instances_3d.bboxes_3d.tensor[:, :7]
        sample.gt_instances_3d.bboxes_3d = LiDARInstance3DBoxes(boxes, box_dim=7)
    return data


@pytest.mark.parametrize('denoising', [None, DENOISING], ids=['plain', 'denoising'])
def test_a_detector_without_velocities_trains_and_predicts(denoising: dict | None) -> None:
    model = small_detector(8, denoising=denoising)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    losses = run(model, without_velocity(batch()), 'loss')
    assert all(torch.isfinite(value).all() for value in losses.values())
    assert losses['loss_bbox'] > 0 and ('dn_loss_bbox' in losses) == (denoising is not None)
    total(losses).backward()
    last = model.pts_bbox_head.reg_branches[-1][-1].weight
    before = last.detach().clone()
    optimizer.step()
    assert last.shape[0] == 8 and (last != before).any(1).all()
    with torch.no_grad():
        found = run(model, without_velocity(batch()), 'predict')[0].pred_instances_3d
    assert found.bboxes_3d.tensor.shape == (20, 7)


def test_velocities_of_the_data_are_left_out() -> None:
    model = small_detector(8)
    torch.manual_seed(0)
    with_them = run(model, batch(), 'loss')
    torch.manual_seed(0)
    without = run(model, without_velocity(batch()), 'loss')
    assert with_them.keys() == without.keys()
    assert all(torch.equal(value, without[name]) for name, value in with_them.items())


def test_frames_without_objects() -> None:
    losses = run(small_detector(8), without_velocity(batch(boxes=(0, 0))), 'loss')
    assert losses['loss_bbox'] == 0


@pytest.mark.parametrize('boxes', [(5, 2), (0, 0)])
def test_data_without_velocities_for_a_head_that_predicts_them(boxes: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match='no velocity') as error:
        run(small_detector(10), without_velocity(batch(boxes=boxes)), 'loss')
    for words in ('model.pts_bbox_head.code_weights', 'AllowShapeMismatchHook', 'with_velocity=True'):
        assert words in str(error.value)


@pytest.mark.parametrize('count', [0, 7, 9, 11])
def test_other_numbers_of_codes_are_refused(count: int) -> None:
    with pytest.raises(ValueError, match=f'{count} code_weights, but boxes have 8 codes, or 10'):
        build(head_config(code_weights=[1.0] * count))


@pytest.mark.parametrize(('saved', 'codes'), [(10, 8), (8, 10)])
def test_weights_of_the_other_kind_begin_with_the_hook_that_the_message_names(saved: int, codes: int) -> None:
    source, target = small_detector(saved), build(detector_config(head={'code_weights': [0.5] * codes}), seed=1)
    weights = {name: value for name, value in source.state_dict().items() if not name.startswith('aux_head')}
    with pytest.raises(CheckpointMismatchError, match=f'{saved} numbers per box, the model {codes}') as error:
        load_state_dict(target, weights)
    prefixes = ['pts_bbox_head.reg_branches']
    assert f'prefixes={prefixes}' in str(error.value)
    checkpoint = {'state_dict': dict(weights)}
    runner = SimpleNamespace(model=target, logger=logging.getLogger('test'))
    AllowShapeMismatchHook(prefixes).after_load_checkpoint(runner, checkpoint)
    load_state_dict(target, checkpoint['state_dict'])
    head = target.pts_bbox_head
    assert torch.equal(head.reg_branches[0][0].weight, source.pts_bbox_head.reg_branches[0][0].weight)
    assert len(head.reg_branches[0][-1].weight) == codes and torch.equal(head.code_weights, torch.full((codes,), 0.5))


def test_code_weights_are_those_of_the_config() -> None:
    """A checkpoint would bring back those of its own training, without a word."""
    source, target = build(head_config()), build(head_config(code_weights=[1.0] * 8 + [0.0] * 2))
    target.load_state_dict(source.state_dict())
    assert target.code_weights.tolist() == [1.0] * 8 + [0.0] * 2
    weights = {name: value for name, value in source.state_dict().items() if name != 'code_weights'}
    assert target.load_state_dict(weights, strict=False).missing_keys == ['code_weights']
