"""Packed masks against numpy-like bit arithmetic by hand, a round trip through torch.save, counts, zeros in place."""

from __future__ import annotations

import io

import pytest
import torch

from mmprune3d.pruning.masks import apply_masks_, keep_rates, pack, unpack


def random_masks(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {'a': (3, 5, 2), 'b': (8,), 'c': (), 'd': (0, 4), 'e': (17,)}
    return {name: torch.rand(shape, generator=generator) < 0.3 for name, shape in shapes.items()}


def test_bits():
    mask = torch.tensor([True, False, True, False, False, False, False, True, False, True])
    packed = pack({'x': mask})
    assert packed['x']['shape'] == [10] and packed['x']['bits'].tolist() == [0b10000101, 0b10]


def test_round_trip_through_a_file():
    masks, file = random_masks(), io.BytesIO()
    torch.save(pack(masks), file)
    file.seek(0)
    read = unpack(torch.load(file, weights_only=True))
    assert list(read) == list(masks)
    for name, mask in masks.items():
        assert read[name].dtype == torch.bool and torch.equal(read[name], mask)
    assert sum(entry['bits'].numel() for entry in pack(masks).values()) == 4 + 1 + 1 + 0 + 3


def test_strided_masks_and_wrong_ones():
    mask = random_masks()['a']
    assert torch.equal(unpack(pack({'x': mask.transpose(0, 1)}))['x'], mask.transpose(0, 1))
    with pytest.raises(ValueError, match='must be bool tensors, these are not: x'):
        pack({'x': mask.float()})
    packed = pack({'x': mask})
    packed['x']['shape'] = [3, 11]
    with pytest.raises(ValueError, match=r'x: 4 x torch.uint8 is no packed mask of shape \[3, 11\]'):
        unpack(packed)


def test_keep_rates():
    masks = {'a': torch.tensor([True, False, False, False]), 'b': torch.ones(2, 2).bool(), 'c': torch.zeros(2).bool()}
    rates = keep_rates(masks, {'a': 'camera', 'b': 'radar', 'c': 'camera', 'other': 'lidar'})
    assert rates == {
        'total': {'kept': 5, 'total': 10, 'rate': 0.5},
        'groups': {'camera': {'kept': 1, 'total': 6, 'rate': 1 / 6}, 'radar': {'kept': 4, 'total': 4, 'rate': 1.0}},
        'layers': {
            'a': {'kept': 1, 'total': 4, 'rate': 0.25},
            'b': {'kept': 4, 'total': 4, 'rate': 1.0},
            'c': {'kept': 0, 'total': 2, 'rate': 0.0},
        },
    }
    assert keep_rates({}, {}) == {'total': {'kept': 0, 'total': 0, 'rate': 1.0}, 'groups': {}, 'layers': {}}
    with pytest.raises(ValueError, match='no group is given for b'):
        keep_rates(masks, {'a': 'camera', 'c': 'camera'})


def test_apply():
    parameter = torch.nn.Parameter(torch.tensor([1.0, torch.nan, -torch.inf, 4.0]))
    storage, other = parameter.data_ptr(), torch.nn.Parameter(torch.ones(2))
    apply_masks_({'a': parameter, 'b': other}, {'a': torch.tensor([True, False, False, True])})
    assert parameter.tolist() == [1.0, 0.0, 0.0, 4.0] and parameter.data_ptr() == storage and other.tolist() == [1, 1]
    apply_masks_({'a': parameter}, {'a': torch.ones(4, dtype=torch.bool)})
    assert parameter.tolist() == [1.0, 0.0, 0.0, 4.0]


def test_apply_refuses_before_it_changes_anything():
    parameters = {'a': torch.ones(2), 'b': torch.ones(3)}
    good = {'a': torch.zeros(2, dtype=torch.bool)}
    with pytest.raises(ValueError, match='no parameter for the masks c; there are a, b'):
        apply_masks_(parameters, good | {'c': torch.zeros(1, dtype=torch.bool)})
    with pytest.raises(ValueError, match=r'b: mask \(2,\), parameter \(3,\)'):
        apply_masks_(parameters, good | {'b': torch.zeros(2, dtype=torch.bool)})
    assert parameters['a'].tolist() == [1, 1]
