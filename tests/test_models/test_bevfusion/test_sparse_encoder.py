from __future__ import annotations

import copy
import json

import pytest
import torch
from mmdet3d.registry import MODELS
from torch import Tensor, nn

from mmprune3d.models.bevfusion.sparse_encoder import BEVFusion3DSparseEncoder

from ...reference import load, reference_files

OFFICIAL = {
    'type': 'BEVFusion3DSparseEncoder',
    'in_channels': 5,
    'sparse_shape': [1440, 1440, 41],
    'order': ('conv', 'norm', 'act'),
    'norm_cfg': {'type': 'BN1d', 'eps': 0.001, 'momentum': 0.01},
    'encoder_channels': ((16, 16, 32), (32, 32, 64), (64, 64, 128), (128, 128)),
    'encoder_paddings': ((0, 0, 1), (0, 0, 1), (0, 0, (1, 1, 0)), (0, 0)),
    'block_type': 'basicblock',
}
SMALL = {
    **OFFICIAL,
    'in_channels': 4,
    'sparse_shape': [32, 24, 41],
    'base_channels': 4,
    'output_channels': 6,
    'encoder_channels': ((4, 4, 6), (6, 6, 8), (8, 8, 8), (8, 8)),
}


def recorded_encoder(data: dict) -> nn.Module:
    encoder = BEVFusion3DSparseEncoder(**data['meta']['constructor'], return_middle_feats=True)
    own = encoder.state_dict()
    assert list(own) == list(data['state_dict'])
    for key, value in data['state_dict'].items():
        own[key].copy_(value)
    return encoder


def assert_close(actual: Tensor, expected: Tensor, tolerance: float, largest: Tensor | None = None) -> None:
    scale = float((expected if largest is None else largest).abs().max())
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance * scale)


def largest(group: dict[str, Tensor]) -> Tensor:
    return torch.stack([value.abs().max() for value in group.values()])


@pytest.mark.parametrize('path', reference_files('bevfusion', 'sparse_encoder*.pt'))
def test_eval_outputs_of_the_official_encoder(path):
    data = load(path)
    encoder, inputs, expected = recorded_encoder(data).eval(), data['inputs'], data['outputs']['eval']
    with torch.no_grad():
        bev, stages = encoder(inputs['voxel_features'], inputs['coors'], inputs['batch_size'])
    assert_close(bev, expected['bev'], 1e-5)
    for ours, theirs in zip(stages, expected['stages'], strict=True):
        coors, order = torch.unique(ours.indices, dim=0, return_inverse=True)
        assert ours.spatial_shape == theirs['spatial_shape']
        assert torch.equal(coors, theirs['coors'])
        assert_close(ours.features[order.argsort()], theirs['features'], 1e-5)


@pytest.mark.parametrize('path', reference_files('bevfusion', 'sparse_encoder*.pt'))
def test_training_step_of_the_official_encoder(path):
    assert_training_step(load(path))


@pytest.mark.parametrize('path', reference_files('bevfusion', 'sparse_encoder_conv_module.pt'))
def test_training_step_on_two_threads(path):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert_training_step(load(path))
    finally:
        torch.set_num_threads(before)


def assert_training_step(data: dict) -> None:
    encoder, inputs, expected = recorded_encoder(data).train(), data['inputs'], data['outputs']['train']
    voxels = inputs['voxel_features'].clone().requires_grad_()
    bev, _ = encoder(voxels, inputs['coors'], inputs['batch_size'])
    (bev * inputs['projection']).sum().backward()
    assert_close(bev.detach(), expected['bev'], 1e-5)
    assert_close(voxels.grad, expected['grad_voxel_features'], 1e-4)
    grads = {name: parameter.grad for name, parameter in encoder.named_parameters()}
    buffers = dict(encoder.named_buffers())
    assert set(grads) == set(expected['grads'])
    for name, value in expected['grads'].items():
        assert_close(grads[name], value, 1e-4, largest(expected['grads']))
    for name, value in expected['buffers_after'].items():
        assert_close(buffers[name], value, 1e-5, largest(expected['buffers_after']))


@pytest.mark.parametrize('path', reference_files('bevfusion', 'keys_lidar.json'))
def test_keys_and_shapes_of_the_official_configuration(path):
    prefix = 'pts_middle_encoder.'
    expected = {key: shape for key, shape in json.loads(path.read_text()).items() if key.startswith(prefix)}
    own = {prefix + key: list(value.shape) for key, value in MODELS.build(OFFICIAL).state_dict().items()}
    assert list(own.items()) == list(expected.items())


def some_voxels(samples: int, seed: int = 0, count: int = 300) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    sizes = (samples, *SMALL['sparse_shape'])
    coors = torch.stack([torch.randint(0, size, (count,), generator=generator) for size in sizes], 1)
    coors = torch.unique(coors, dim=0)
    return torch.randn(len(coors), SMALL['in_channels'], generator=generator), coors


@pytest.fixture
def small():
    torch.manual_seed(0)
    return MODELS.build(SMALL).eval()


@torch.no_grad()
def test_samples_without_voxels_are_maps_of_zeros(small):
    features, coors = some_voxels(samples=2)
    bev = small(features, coors, 4)
    assert bev.shape == (4, 6 * 2, 4, 3)
    torch.testing.assert_close(bev[:2], small(features, coors, 2))
    assert bev[0].any()
    assert not bev[2:].any()
    assert not small(features[:0], coors[:0], 2).any()


@torch.no_grad()
def test_samples_do_not_see_each_other(small):
    features, coors = some_voxels(samples=2)
    second = coors[:, 0] == 1
    alone = coors[second] * torch.tensor([0, 1, 1, 1])
    torch.testing.assert_close(small(features[second], alone, 1)[0], small(features, coors, 2)[1])


@torch.no_grad()
def test_a_voxel_shows_up_at_its_x_and_y(small):
    for norm in small.modules():
        if isinstance(norm, nn.BatchNorm1d):
            nn.init.constant_(norm.bias, 0.1)  # whatever is active is seen
    bev = small(torch.ones(1, 4), torch.tensor([[0, 16, 8, 40]]), 1)
    assert bev[0].abs().sum(0).nonzero().tolist() == [[2, 1]]


@torch.no_grad()
def test_saved_weights_come_back(small):
    torch.manual_seed(1)
    other = MODELS.build(SMALL).eval()
    other.load_state_dict(copy.deepcopy(small.state_dict()))
    voxels = some_voxels(samples=1)
    assert torch.equal(small(*voxels, 1), other(*voxels, 1))


def test_bad_settings_are_named():
    for change, message in (
        ({'block_type': 'bottleneck'}, "'conv_module' or 'basicblock', got 'bottleneck'"),
        ({'encoder_paddings': ((0, 0, 1),)}, 'one entry per layer'),
        ({'order': ('conv', 'act')}, "'conv', 'norm' and 'act' once each"),
    ):
        settings = {key: value for key, value in {**SMALL, **change}.items() if key != 'type'}
        with pytest.raises(ValueError, match=message):
            BEVFusion3DSparseEncoder(**settings)
    with pytest.raises(ValueError, match='not all inside 1 grids'):
        MODELS.build(SMALL)(*some_voxels(samples=2), 1)
