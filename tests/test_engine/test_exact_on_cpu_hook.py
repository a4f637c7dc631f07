from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest
from torch import nn

from mmprune3d.engine.hooks import ExactOnCPUHook
from mmprune3d.layers.sparse_conv import exact_class

spconv = pytest.importorskip('spconv.pytorch')


def test_the_detector_is_exact_before_anything_runs() -> None:
    model = nn.Sequential(spconv.SubMConv3d(2, 3, 3), nn.ReLU())
    keys = list(model.state_dict())
    runner = SimpleNamespace(model=model, logger=logging.getLogger('test'))
    ExactOnCPUHook().before_run(runner)
    assert type(model[0]) is exact_class('SubMConv3d')
    assert list(model.state_dict()) == keys


def test_a_detector_without_anything_to_change_is_an_error() -> None:
    runner = SimpleNamespace(model=nn.Conv2d(1, 1, 1), logger=logging.getLogger('test'))
    with pytest.raises(ValueError, match='leave the hook out'):
        ExactOnCPUHook().before_run(runner)
