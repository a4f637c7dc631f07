from __future__ import annotations

import pytest
import torch
from torch import nn

from mmprune3d.layers.slim import is_depthwise, slim_model_, weight_layout


def shapes(model):
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def layers():
    from mmprune3d.layers.sparse_conv import exact_class

    return {
        'conv': (nn.Conv2d(6, 8, 3), nn.Conv2d(4, 5, 3), torch.randn(1, 4, 5, 5)),
        'conv1d': (nn.Conv1d(6, 8, 1, bias=False), nn.Conv1d(4, 5, 1, bias=False), torch.randn(1, 4, 5)),
        'deconv': (nn.ConvTranspose2d(6, 8, 2), nn.ConvTranspose2d(4, 5, 2), torch.randn(1, 4, 5, 5)),
        'depthwise': (nn.Conv2d(6, 6, 3, groups=6), nn.Conv2d(4, 4, 3, groups=4), torch.randn(1, 4, 5, 5)),
        'linear': (nn.Linear(6, 8), nn.Linear(4, 5), torch.randn(2, 4)),
        'bn': (nn.BatchNorm2d(6), nn.BatchNorm2d(4), torch.randn(2, 4, 5, 5)),
        'bn without affine': (
            nn.BatchNorm2d(6, affine=False),
            nn.BatchNorm2d(4, affine=False),
            torch.randn(2, 4, 5, 5),
        ),
        'ln': (nn.LayerNorm(6), nn.LayerNorm(4), torch.randn(2, 4)),
        'sparse': (exact_class('SubMConv3d')(6, 8, 3), exact_class('SubMConv3d')(4, 5, 3), None),
    }


@pytest.mark.parametrize('name', list(layers()))
def test_a_narrowed_layer_is_one_that_was_built_narrow(name):
    dense, small, inputs = layers()[name]
    changed = slim_model_(dense, shapes(small))
    assert set(changed) == {key for key, value in small.state_dict().items() if value.dim()}
    dense.load_state_dict(small.state_dict())
    assert repr(dense) == repr(small)
    for attribute in ('in_channels', 'out_channels', 'groups', 'in_features', 'out_features', 'num_features'):
        assert getattr(dense, attribute, None) == getattr(small, attribute, None)
    if inputs is not None:
        assert torch.equal(dense(inputs), small(inputs))


def test_the_dense_structure_changes_nothing():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    before = dict(model.named_parameters())
    assert slim_model_(model, shapes(model)) == slim_model_(model, {}) == []
    assert all(parameter is before[name] for name, parameter in model.named_parameters())


def test_frozen_stays_frozen_and_tensors_stand_alone():
    model = nn.Conv2d(3, 4, 1)
    model.weight.requires_grad_(False)
    dense = model.weight
    slim_model_(model, {'weight': (2, 3, 1, 1), 'bias': (2,)})
    assert not model.weight.requires_grad and model.bias.requires_grad
    assert model.weight.untyped_storage().data_ptr() != dense.untyped_storage().data_ptr()
    assert model.weight.is_contiguous() and isinstance(model.weight, nn.Parameter)


def test_mmcvs_conv_module_follows():
    from mmcv.cnn import ConvModule

    model = ConvModule(6, 8, 3, norm_cfg={'type': 'BN'})
    small = ConvModule(4, 5, 3, norm_cfg={'type': 'BN'})
    slim_model_(model, shapes(small))
    assert (model.in_channels, model.out_channels) == (4, 5)
    model.load_state_dict(small.state_dict())
    x = torch.randn(2, 4, 5, 5)
    assert torch.equal(model.eval()(x), small.eval()(x))


def test_one_layer_under_two_names():
    layer = nn.Linear(6, 6)
    model = nn.Sequential(layer, layer)
    slim_model_(model, {'0.weight': (4, 4), '0.bias': (4,), '1.weight': (4, 4), '1.bias': (4,)})
    assert model[0] is model[1]
    assert model(torch.randn(2, 4)).shape == (2, 4)


@pytest.mark.parametrize(
    ('structure', 'message'),
    [
        ({'2.weight': (1,)}, 'names 1 tensors that are not in the model: 2.weight; .* this one has 0.weight, 0.bias'),
        ({'0.scale': (1,)}, 'tensors that are not in the model: 0.scale'),
        ({'0.weight': (5, 3, 1, 1)}, r'0.weight: cannot make \[5, 3, 1, 1\] of \[4, 3, 1, 1\]'),
        ({'0.weight': (0, 3, 1, 1)}, r'cannot make \[0, 3, 1, 1\]'),
        ({'0.weight': (3, 4)}, r'cannot make \[3, 4\]'),
        ({'0.weight': (2, 3, 1, 1)}, "0: the structure gives it 2 channels, but {'bias': \\[4\\]}"),
        ({'1.weight': (2,), '1.bias': (2,)}, "1: the structure gives it 2 channels, but .*'running_mean': \\[4\\]"),
    ],
)
def test_structures_that_do_not_fit(structure, message):
    with pytest.raises(ValueError, match=message):
        slim_model_(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)), structure)


@pytest.mark.parametrize('layer', [nn.GroupNorm(2, 8), nn.Conv2d(8, 8, 1, groups=2), nn.PReLU(8), nn.Embedding(8, 3)])
def test_layers_that_cannot_become_narrower(layer):
    structure = {name: (len(value) // 2, *value.shape[1:]) for name, value in layer.state_dict().items()}
    with pytest.raises(ValueError, match=f'a {type(layer).__name__} cannot be made narrower'):
        slim_model_(nn.Sequential(layer), {f'0.{name}': shape for name, shape in structure.items()})


def test_layouts():
    from mmprune3d.layers.sparse_conv import exact_class

    class OfMMCV(nn.Module):
        def __init__(self):
            super().__init__()
            self.indice_key, self.weight = None, nn.Parameter(torch.empty(3, 3, 3, 6, 8))

    OfMMCV.__module__ = 'mmcv.ops.sparse_conv'
    assert weight_layout(exact_class('SparseConv3d')(6, 8, 3)) == (0, 4)
    assert weight_layout(OfMMCV()) == (4, 3)
    assert weight_layout(nn.ConvTranspose2d(6, 8, 2)) == (1, 0)
    assert weight_layout(nn.Conv2d(6, 6, 3, groups=6)) is None
    assert is_depthwise(nn.Conv2d(6, 6, 3, groups=6)) and not is_depthwise(nn.Conv2d(1, 1, 3))
    assert weight_layout(nn.Conv2d(1, 1, 3)) == (0, 1)
