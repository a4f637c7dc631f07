"""The whole detector against the recorded one: both streams, either one masked, in evaluation and in training."""

from __future__ import annotations

from contextlib import ExitStack
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from mmdet3d.registry import MODELS
from torch import Tensor, nn

from mmprune3d.adapters.fusion import fusion_map
from mmprune3d.adapters.modality_masking import masked
from tests.reference import load, reference_files

from .recorded import assert_leaves_close, batch_of, detector_of

FILES = reference_files('bevfusion', 'detector_*.pt')
TOLERANCE = 1e-4
MODES: dict[str, dict[str, Any]] = {
    'fused': {'modality': None},
    'camera_zeroed': {'modality': 'camera'},
    'lidar_zeroed': {'modality': 'lidar'},
    'lidar_zeroed_depth_zeroed': {'modality': 'lidar', 'mask_cross_modal_inputs': True},
}


def recorded_modes(data: dict, kind: str) -> list[str]:
    return [mode for mode in data['outputs'].get(kind, {}) if mode in MODES]


def watch(detector: nn.Module, stack: ExitStack) -> dict[str, Tensor]:
    """What the parts of the detector return."""
    seen: dict[str, Tensor] = {}
    parts = {'view_transform': 'camera_bev', 'pts_middle_encoder': 'lidar_bev', 'fusion_layer': 'fused_bev'}
    for part, name in parts.items():
        module = getattr(detector, part)
        if module is not None:
            handle = module.register_forward_hook(lambda _m, _i, out, name=name: seen.__setitem__(name, out))
            stack.callback(handle.remove)
    handle = detector.pts_neck.register_forward_hook(lambda _m, _i, out: seen.__setitem__('neck', out[0]))
    stack.callback(handle.remove)
    return seen


@pytest.mark.parametrize('path', FILES)
def test_evaluation(path: Path) -> None:
    data = load(path)
    detector = detector_of(data).eval()
    inputs, samples = batch_of(data)
    for mode in recorded_modes(data, 'eval'):
        expected = data['outputs']['eval'][mode]
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            stack.enter_context(masked(detector, fusion=fusion_map(detector), **MODES[mode]))
            seen = watch(detector, stack)
            raw = detector(inputs, samples, mode='tensor')[0][0]
            seen.clear()  # the first pass may have run a masked stream to learn the shape of its output
            found = detector(inputs, deepcopy(samples), mode='predict')
        assert_leaves_close(raw, expected['raw'], TOLERANCE, f'{mode}/raw')
        assert set(seen) == {name for name in ('camera_bev', 'lidar_bev', 'fused_bev', 'neck') if name in expected}
        assert_leaves_close(seen, {name: expected[name] for name in seen}, TOLERANCE, mode)
        for sample, boxes in zip(found, expected['decoded'], strict=True):
            instances = sample.pred_instances_3d
            assert torch.equal(instances.labels_3d, boxes['labels'])
            assert_leaves_close(
                {'boxes': instances.bboxes_3d.tensor, 'scores': instances.scores_3d},
                {'boxes': boxes['boxes'], 'scores': boxes['scores']},
                TOLERANCE,
                f'{mode}/decoded',
            )


@pytest.mark.parametrize('path', FILES)
def test_voxels(path: Path) -> None:
    data = load(path)
    expected = data['outputs'].get('eval', {}).get('voxels')
    if expected is None:
        pytest.skip('this file records no voxels')
    feats, coords, _ = detector_of(data).eval().pts_voxel_layer(data['inputs']['points'])
    assert torch.equal(coords, expected['coors_batch_x_y_z'])
    torch.testing.assert_close(feats, expected['features'])


@pytest.mark.parametrize('path', FILES)
def test_training(path: Path) -> None:
    data = load(path)
    for mode in recorded_modes(data, 'train'):
        expected = data['outputs']['train'][mode]
        detector = detector_of(data).train()
        inputs, samples = batch_of(data)
        with masked(detector, fusion=fusion_map(detector), **MODES[mode]):
            losses = detector(inputs, samples, mode='loss')
            total, _ = detector.parse_losses(losses)
            total.backward()
        assert set(losses) == set(expected['losses'])
        assert_leaves_close(losses, expected['losses'], TOLERANCE, f'{mode}/losses')
        torch.testing.assert_close(total.detach(), expected['total_loss'], rtol=TOLERANCE, atol=0)
        gradients = {name: p.grad for name, p in detector.named_parameters() if p.grad is not None}
        assert set(gradients) == set(expected['grads'])
        assert_leaves_close(gradients, expected['grads'], TOLERANCE, f'{mode}/grads')
        if 'buffers_after' in expected:
            assert_leaves_close(dict(detector.named_buffers()), expected['buffers_after'], TOLERANCE, f'{mode}/buffers')


@pytest.mark.parametrize('path', reference_files('bevfusion', 'detector_lidar_cam.pt'))
def test_a_batch_can_be_used_again_and_a_config_built_twice(path: Path) -> None:
    data = load(path)
    detector, again = detector_of(data).eval(), detector_of(data).eval()
    inputs, samples = batch_of(data)
    with torch.no_grad():
        first = detector(inputs, samples, mode='tensor')[0][0]
        second = again(inputs, samples, mode='tensor')[0][0]
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert all(torch.equal(a, b) for a, b in zip(inputs['points'], data['inputs']['points'], strict=True))


def test_streams_must_make_sense() -> None:
    lidar = {'pts_middle_encoder': {'type': 'x'}}
    camera = {'img_backbone': {'type': 'x'}, 'view_transform': {'type': 'x'}}
    for config, message in [
        ({}, 'needs a camera stream'),
        ({'img_backbone': {'type': 'x'}}, 'must be given together'),
        ({**lidar, **camera}, 'two streams need a fusion_layer'),
        (lidar, 'voxelize_cfg'),
        ({**lidar, 'data_preprocessor': {'voxelize_cfg': {}}, 'train_cfg': {}}, 'no train_cfg'),
    ]:
        with pytest.raises(ValueError, match=message):
            MODELS.build({'type': 'BEVFusion3D', **config})
