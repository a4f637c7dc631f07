"""The neck of the camera stream."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mmprune3d.models.bevfusion.lss_fpn import BEVFusion3DLSSFPN
from tests.reference import load, reference_files

from .recorded import assert_leaves_close


@pytest.mark.parametrize('path', reference_files('bevfusion', 'lss_fpn*.pt'))
def test_recorded_neck(path: Path) -> None:
    data = load(path)
    neck = BEVFusion3DLSSFPN(**data['meta']['constructor'])
    for mode, expected in data['outputs'].items():
        neck.load_state_dict(data['state_dict'])
        neck.train(mode == 'train')
        features = [level.clone().requires_grad_() for level in data['inputs']['features']]
        outs = neck(features)
        assert len(outs) == data['meta']['num_returned']
        assert_leaves_close(dict(enumerate(outs)), dict(enumerate(expected['outs'])), 1e-5, f'{mode}/outs')
    sum((out * weights).sum() for out, weights in zip(outs, data['inputs']['projections'])).backward()
    grads = {name: parameter.grad for name, parameter in neck.named_parameters()}
    assert set(grads) == set(expected['grads'])
    assert_leaves_close(grads, expected['grads'], 1e-4, 'train/grads')
    grads = dict(enumerate(level.grad for level in features))
    assert_leaves_close(grads, dict(enumerate(expected['grad_features'])), 1e-4, 'train/grad_features')
    assert_leaves_close(dict(neck.named_buffers()), expected['buffers_after'], 1e-5, 'train/buffers_after')


def test_a_range_of_levels() -> None:
    torch.manual_seed(0)
    part = BEVFusion3DLSSFPN([3, 4, 5, 6], 8, num_outs=1, start_level=1, end_level=2).eval()
    whole = BEVFusion3DLSSFPN([4, 5], 8, num_outs=1).eval()
    whole.load_state_dict(part.state_dict())
    levels = [torch.randn(1, 3 + level, 16 >> level, 16 >> level) for level in range(4)]
    (out,) = part(levels)
    assert out.shape == (1, 8, 8, 8)
    assert torch.equal(out, whole(levels[1:3])[0])


@pytest.mark.parametrize(('start', 'end'), [(2, -1), (0, 3), (1, 1), (-1, 2), (0, 0)])
def test_levels_that_are_not_there(start: int, end: int) -> None:
    with pytest.raises(ValueError, match=r'must be 0 <= start < end <= 2, the last of the 3 levels'):
        BEVFusion3DLSSFPN([3, 4, 5], 8, num_outs=2, start_level=start, end_level=end)


def test_wrong_numbers() -> None:
    with pytest.raises(ValueError, match='num_outs=3 must be 2'):
        BEVFusion3DLSSFPN([3, 4, 5], 8, num_outs=3, end_level=2)
    with pytest.raises(ValueError, match='the neck was built for 2 levels, got 1'):
        BEVFusion3DLSSFPN([3, 4], 8, num_outs=1)([torch.zeros(1, 3, 8, 8)])
