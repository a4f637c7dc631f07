from __future__ import annotations

import copy
import json

import pytest
import torch
from mmdet3d.registry import MODELS
from mmengine.model import PretrainedInit
from mmengine.runner import load_checkpoint

import mmprune3d  # noqa: F401  (strict loading)
from mmprune3d.checkpoint.mismatch import CheckpointMismatchError
from mmprune3d.checkpoint.slim import mask_state_dict, slim_checkpoint, structure_of
from mmprune3d.models.slim_detector import SlimDetector, read_structure, without_pretrained
from tests.test_coupling.channel_nets import (
    bevfusion_config,
    bevfusion_forward,
    bevfusion_groups,
    build_bevfusion,
    half_of,
)


@pytest.fixture(scope='module')
def dense():
    return build_bevfusion()


@pytest.fixture(scope='module')
def keep():
    return half_of(bevfusion_groups().groups)


@pytest.fixture(scope='module')
def slim_file(dense, keep, tmp_path_factory):
    path = tmp_path_factory.mktemp('slim') / 'slim.pth'
    torch.save(slim_checkpoint({'state_dict': dense.state_dict()}, bevfusion_groups().groups, keep), path)
    return path


@pytest.fixture(scope='module')
def structure(slim_file):
    return read_structure(slim_file)


def test_a_plain_config_loads_slim_weights_and_computes_what_the_masked_model_does(dense, keep, slim_file):
    config = {'type': 'SlimDetector', 'detector': bevfusion_config(), 'structure': str(slim_file)}
    slim = MODELS.build(config).eval()
    load_checkpoint(slim, str(slim_file), strict=True)
    assert type(slim) is type(dense)
    assert list(slim.state_dict()) == list(dense.state_dict())
    assert sum(p.numel() for p in slim.parameters()) < 0.5 * sum(p.numel() for p in dense.parameters())
    masked = copy.deepcopy(dense)
    masked.load_state_dict(mask_state_dict(dense.state_dict(), bevfusion_groups().groups, keep))
    with torch.no_grad():
        ours, theirs = bevfusion_forward(slim), bevfusion_forward(masked)
    assert (ours - theirs).abs().max() < 2e-5 * theirs.abs().max()


def test_from_json_and_from_a_mapping(structure, tmp_path):
    path = tmp_path / 'structure.json'
    path.write_text(json.dumps(structure))
    shapes = [structure_of(SlimDetector(bevfusion_config(), given).state_dict()) for given in (str(path), structure)]
    assert shapes[0] == shapes[1] == structure


def test_removing_nothing_gives_the_dense_detector(dense):
    torch.manual_seed(0)
    built = SlimDetector(bevfusion_config(), structure_of(dense.state_dict()))
    assert structure_of(built.state_dict()) == structure_of(dense.state_dict())


def test_the_config_can_be_built_again_and_with_what_init_model_sets(structure):
    before = copy.deepcopy(bevfusion_config())
    for _ in range(2):
        SlimDetector(bevfusion_config(), structure, train_cfg=None)
    assert bevfusion_config() == before


def test_other_overrides_reach_the_detector(structure):
    with pytest.raises(ValueError, match='BEVFusion3D takes no train_cfg'):
        SlimDetector(bevfusion_config(), structure, train_cfg={'a': 1})


def test_it_trains(structure):
    slim = SlimDetector(bevfusion_config(), structure)
    slim.init_weights()  # as a Runner does before it loads
    optimizer = torch.optim.SGD(slim.parameters(), lr=0.1)
    before = copy.deepcopy(slim.state_dict())
    bevfusion_forward(slim.train()).square().mean().backward()
    optimizer.step()
    name = 'pts_middle_encoder.encoder_layers.encoder_layer1.0.conv1.weight'
    assert slim.state_dict()[name].shape == tuple(structure[name])
    assert not torch.equal(slim.state_dict()[name], before[name])


def test_dense_weights_do_not_fit(dense, structure, tmp_path):
    slim = SlimDetector(bevfusion_config(), structure)
    torch.save({'state_dict': dense.state_dict()}, tmp_path / 'dense.pth')
    with pytest.raises(CheckpointMismatchError, match='channels removed by pruning'):
        load_checkpoint(slim, str(tmp_path / 'dense.pth'))


def test_a_structure_of_another_model(structure):
    with pytest.raises(ValueError, match=r'tensors that are not in the model: backbone.weight'):
        SlimDetector(bevfusion_config(), {**structure, 'backbone.weight': [3]})


def test_files_that_hold_no_structure(tmp_path):
    (tmp_path / 'list.json').write_text('[1]')
    with pytest.raises(ValueError, match=r'list.json: a structure is an object \{tensor name'):
        read_structure(tmp_path / 'list.json')
    with pytest.raises(FileNotFoundError):
        read_structure(tmp_path / 'none.pth')


def test_initial_weights_of_the_dense_detector_are_left_out():
    config = {
        'pretrained': 'torchvision://resnet50',
        'backbone': {'init_cfg': {'type': 'Pretrained', 'checkpoint': 'x'}, 'depth': 50},
        'parts': [
            {'init_cfg': [{'type': 'Kaiming'}, {'type': 'Pretrained', 'checkpoint': 'y'}]},
            {'init_cfg': {'type': PretrainedInit, 'checkpoint': 'z'}},
            {'init_cfg': {'type': 'mmengine.model.PretrainedInit', 'checkpoint': 'z'}},
        ],
        'head': {'init_cfg': {'type': 'Normal', 'layer': 'Conv2d'}},
    }
    before = copy.deepcopy(config)
    assert without_pretrained(config) == {
        'backbone': {'depth': 50},
        'parts': [{}, {}, {}],
        'head': {'init_cfg': {'type': 'Normal', 'layer': 'Conv2d'}},
    }
    assert config == before
