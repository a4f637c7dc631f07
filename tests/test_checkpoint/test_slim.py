from __future__ import annotations

import copy

import pytest
import torch

from mmprune3d.checkpoint.slim import mask_state_dict, slim_checkpoint, slim_state_dict, structure_of
from mmprune3d.coupling.groups import find_channel_groups
from mmprune3d.layers.slim import slim_model_
from tests.test_coupling.channel_nets import SparseToDense, as_trained_, half_of


@pytest.fixture(scope='module')
def dense():
    torch.manual_seed(0)
    model = SparseToDense()
    return as_trained_(model, lambda model: model(model.inputs()))


@pytest.fixture(scope='module')
def groups(dense):
    return find_channel_groups(dense, lambda model: model(model.inputs())).groups


@torch.no_grad()
def output(model):
    return model.eval()(model.inputs())


def test_slim_weights_load_and_compute_what_masked_ones_do(dense, groups):
    keep = half_of(groups)
    slim, masked = copy.deepcopy(dense), copy.deepcopy(dense)
    weights = slim_state_dict(dense.state_dict(), groups, keep)
    assert slim_model_(slim, structure_of(weights))
    slim.load_state_dict(weights)  # permutes sparse weights if their version is lost
    masked.load_state_dict(mask_state_dict(dense.state_dict(), groups, keep))
    torch.testing.assert_close(output(slim), output(masked), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(output(slim), output(dense), rtol=1e-2)
    assert slim.conv1.weight.shape == (3, 3, 3, 3, 4)


def test_versions_go_along(dense, groups):
    for change in (slim_state_dict, mask_state_dict):
        made = change(dense.state_dict(), groups, half_of(groups))
        assert made._metadata == dense.state_dict()._metadata
        assert list(made) == list(dense.state_dict())


def test_the_slim_model_trains_as_the_masked_one(dense, groups):
    """Same gradients in train mode, whatever happens to the channels that are not there."""
    keep = half_of(groups, seed=1)
    slim, masked = copy.deepcopy(dense).double(), copy.deepcopy(dense).double()
    weights = slim_state_dict(dense.state_dict(), groups, keep)
    slim_model_(slim, structure_of(weights))
    slim.load_state_dict(weights)
    masked.load_state_dict(mask_state_dict(dense.state_dict(), groups, keep))
    features, coords = dense.inputs()
    for model in (slim, masked):
        model.train()((features.double(), coords)).square().sum().backward()
    expected = slim_state_dict(
        {name: p.grad for name, p in masked.named_parameters()}, without_statistics(groups), keep
    )
    for name, parameter in slim.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name])


def without_statistics(groups):
    from dataclasses import replace

    return [replace(g, members=tuple(m for m in g.members if m.role != 'stat')) for g in groups]


def test_removing_nothing_is_the_identity(dense, groups):
    weights = dense.state_dict()
    made = slim_state_dict(weights, groups, {})
    assert all(made[name] is weights[name] for name in weights)


def test_a_whole_checkpoint(dense, groups):
    keep = half_of(groups)
    weights = dense.state_dict()
    averaged = {f'module.{name}': value * 0.5 for name, value in weights.items()}
    whole = {
        'state_dict': weights,
        'ema_state_dict': averaged,
        'optimizer': {'state': {}},
        'meta': {'epoch': 3, 'mmprune3d': {'altermoma': {}}},
    }
    made = slim_checkpoint(whole, groups, keep)
    assert set(made) == {'state_dict', 'ema_state_dict', 'meta'}
    slim = slim_state_dict(weights, groups, keep)
    for name, value in slim.items():
        assert torch.equal(made['state_dict'][name], value)
        assert torch.equal(made['ema_state_dict'][f'module.{name}'], slim[name] * 0.5)
    assert made['meta']['epoch'] == 3
    assert made['meta']['mmprune3d'] == {'altermoma': {}, 'channels': {'conv1': [3, 6], 'down': [4, 7], 'flat': [3, 5]}}
    assert 'optimizer' in whole and whole['meta']['mmprune3d'] == {'altermoma': {}}


def test_it_survives_the_disk(dense, groups, tmp_path):
    made = slim_checkpoint(dense.state_dict(), groups, half_of(groups))
    torch.save(made, tmp_path / 'slim.pth')
    loaded = torch.load(tmp_path / 'slim.pth', weights_only=True)
    slim = copy.deepcopy(dense)
    slim_model_(slim, structure_of(loaded['state_dict']))
    slim.load_state_dict(loaded['state_dict'])
    assert slim.down.weight.shape == (4, 3, 3, 3, 3)


def test_weights_of_another_model(dense, groups):
    weights = dense.state_dict()
    del weights['bn1.weight']
    with pytest.raises(
        ValueError, match=r'1 tensors of the channel groups are not .*, such as bn1.weight; it has conv1.weight'
    ):
        slim_state_dict(weights, groups, half_of(groups))
