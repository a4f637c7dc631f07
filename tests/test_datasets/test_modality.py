"""Masked-modal training: the official choice for each random number."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from mmdet3d.structures import LiDARPoints

from mmprune3d.datasets.transforms import CMT3DModalMask
from tests.reference import load, reference_files


def sample() -> dict:
    return {'img': [np.ones((2, 3, 3), np.uint8)] * 2, 'points': LiDARPoints(torch.ones(4, 5), points_dim=5)}


@pytest.mark.parametrize('path', reference_files('query_detectors', 'cmt_coder.pt'))
def test_official_choices(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for entry in load(path)['modal_mask']:
        monkeypatch.setattr(np.random, 'rand', lambda entry=entry: entry['rand'])
        found = CMT3DModalMask(mode=entry['mode'], mask_modal=entry['mask_modal'])(sample())
        assert all((image == 0).all() == entry['image_is_zero'] for image in found['img'])
        assert bool((found['points'].tensor == 0).all()) == entry['points_are_zero']
        assert len(found['points'].tensor) == 4


def test_unknown_settings() -> None:
    with pytest.raises(ValueError, match='mode'):
        CMT3DModalMask(mode='val')
    with pytest.raises(ValueError, match='mask_modal'):
        CMT3DModalMask(mask_modal='radar')
