"""The fuser against the official one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from mmdet3d.registry import MODELS

from mmprune3d.models.bevfusion import BEVFusion3DConvFuser
from tests.reference import load, reference_files

from .recorded import assert_leaves_close
from .upstream import as_ours

FILES = reference_files('bevfusion', 'conv_fuser*.pt')


def fuser_of(data: dict) -> BEVFusion3DConvFuser:
    fuser = MODELS.build(as_ours({'type': data['meta']['class'], **data['meta']['constructor']}))
    fuser.load_state_dict(data['state_dict'])
    return fuser


@pytest.mark.parametrize('path', FILES)
def test_evaluation_equals_the_official_one(path: Path) -> None:
    data = load(path)
    fuser, features = fuser_of(data).eval(), data['inputs']['features']
    with torch.no_grad():
        found = {
            'bev': fuser(features),
            'bev_first_zeroed': fuser([torch.zeros_like(features[0]), features[1]]),
            'bev_second_zeroed': fuser([features[0], torch.zeros_like(features[1])]),
        }
    assert_leaves_close(found, data['outputs']['eval'], 1e-5, 'eval')


@pytest.mark.parametrize('path', FILES)
def test_training_equals_the_official_one(path: Path) -> None:
    data = load(path)
    expected, fuser = data['outputs']['train'], fuser_of(data).train()
    features = [feature.clone().requires_grad_() for feature in data['inputs']['features']]
    bev = fuser(features)
    (bev * data['inputs']['projection']).sum().backward()
    assert_leaves_close({'bev': bev}, {'bev': expected['bev']}, 1e-5, 'train')
    grads = {name: parameter.grad for name, parameter in fuser.named_parameters()}
    assert set(grads) == set(expected['grads'])
    assert_leaves_close(grads, expected['grads'], 1e-4, 'grads')
    for feature, grad in zip(features, expected['grad_features'], strict=True):
        assert_leaves_close({'grad': feature.grad}, {'grad': grad}, 1e-4, 'grad_features')
    assert_leaves_close(dict(fuser.named_buffers()), expected['buffers_after'], 1e-5, 'buffers')


@pytest.mark.parametrize('shapes', [[(1, 2, 4, 4)], [(1, 2, 4, 4), (1, 2, 4, 4)], [(1, 2, 4, 4), (1, 3, 4, 5)]])
def test_maps_that_do_not_fit_are_refused(shapes: list[tuple[int, ...]]) -> None:
    with pytest.raises(ValueError, match='channels in total on one grid'):
        BEVFusion3DConvFuser([2, 3], 4)([torch.zeros(shape) for shape in shapes])
