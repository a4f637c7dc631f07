"""Tensors in nested structures are found and changed; data elements and other classes are passed on."""

from __future__ import annotations

from collections import OrderedDict, namedtuple

import torch
from mmengine.structures import InstanceData

from mmprune3d.layers.nested import map_tensors, tensors_in

Pair = namedtuple('Pair', 'a b')


class Sparse:
    def __init__(self, features: torch.Tensor) -> None:
        self.features = features

    def replace_feature(self, features: torch.Tensor) -> Sparse:
        return Sparse(features)


def test_every_tensor_is_changed_and_the_rest_stays():
    sample = InstanceData(scores=torch.ones(2), features=torch.ones(2, 1))
    tree = dict(
        maps=[torch.ones(1), (torch.full((1,), 2.0), None)],
        pair=Pair(torch.full((1,), 3.0), 'text'),
        ordered=OrderedDict(z=torch.full((1,), 4.0), number=5),
        sparse=Sparse(torch.full((1,), 6.0)),
        samples=[sample],
        mask=torch.tensor([True]),
    )
    made = map_tensors(tree, lambda tensor: -tensor if tensor.is_floating_point() else ~tensor)
    assert list(made) == list(tree) and isinstance(made['pair'], Pair) and isinstance(made['ordered'], OrderedDict)
    assert made['maps'][0] == -1 and made['maps'][1] == (-2, None) and made['pair'] == (-3, 'text')
    assert made['ordered'] == dict(z=-4, number=5) and made['sparse'].features == -6 and not made['mask']
    assert made['samples'][0] is sample
    assert sorted(map(float, tensors_in(tree))) == [1, 2, 3, 4, 6]
    assert next(tensors_in(dict(nothing=None, number=1)), None) is None
