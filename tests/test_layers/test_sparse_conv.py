from __future__ import annotations

import copy
import io
import pickle
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import spconv.pytorch as spconv
import torch
import torch.nn.functional as F
from mmdet3d.models.layers import SparseBasicBlock, make_sparse_convmodule
from mmdet3d.models.middle_encoders import SparseEncoder
from spconv.pytorch.conv import SparseConvolution
from spconv.pytorch.pool import SparseMaxPool
from torch import nn

from mmprune3d.layers import sparse_conv as layers
from mmprune3d.layers import sparse_sites
from mmprune3d.layers.sparse_conv import NAMES, exact_class, make_exact

SHAPE = [8, 64, 64]


def some_tensor(
    channels: int = 8, count: int = 1500, seed: int = 0, shape: list[int] = SHAPE
) -> spconv.SparseConvTensor:
    generator = torch.Generator().manual_seed(seed)
    sites = torch.stack([torch.randint(0, size, (count,), generator=generator) for size in (2, *shape)], 1)
    sites = torch.unique(sites, dim=0).int()
    features = torch.randn(len(sites), channels, generator=generator, requires_grad=True)
    return spconv.SparseConvTensor(features, sites, shape, 3)


def dense(tensor: spconv.SparseConvTensor) -> torch.Tensor:
    cells = tensor.features.new_zeros(tensor.batch_size, *tensor.spatial_shape, tensor.features.shape[1])
    return cells.index_put(tuple(tensor.indices.long().T), tensor.features).permute(0, 4, 1, 2, 3)


@contextmanager
def number_of_threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize('threads', [1, 2])
@pytest.mark.parametrize(('name', 'stride'), [('SubMConv3d', 1), ('SparseConv3d', 2)])
def test_layers_equal_a_dense_convolution_with_any_number_of_threads(name, stride, threads):
    torch.manual_seed(0)
    conv = getattr(layers, name)(8, 16, 3, stride=stride, padding=1)
    tensor = some_tensor()
    leaves = (tensor.features, conv.weight, conv.bias)
    with number_of_threads(threads):
        out = conv(tensor)
        direction = torch.randn_like(out.features)
        ours = torch.autograd.grad(out.features, leaves, direction)
    grid = F.conv3d(dense(tensor), conv.weight.permute(0, 4, 1, 2, 3), conv.bias, stride, 1)
    expected = grid.permute(0, 2, 3, 4, 1)[tuple(out.indices.long().T)]
    torch.testing.assert_close(out.features, expected, rtol=1e-5, atol=1e-5)
    theirs = torch.autograd.grad(expected, leaves, direction)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert out.spatial_shape == list(grid.shape[2:])
    assert out.batch_size == 3


@pytest.mark.parametrize('kernel', [1, 3])
@pytest.mark.parametrize('name', ['SubMConv3d', 'SparseConv3d'])
def test_layers_equal_spconv_on_one_thread(name, kernel):
    """Also where spconv reads the weight of a single cell as (in, out)."""
    conv = getattr(spconv, name)(8, 12, kernel, padding=kernel // 2)
    exact = copy.deepcopy(conv)
    assert make_exact(exact) == 1
    with torch.no_grad(), number_of_threads(1):
        expected, actual = conv(some_tensor()), exact(some_tensor())
    torch.testing.assert_close(dense(actual), dense(expected), rtol=1e-5, atol=1e-5)


def test_inverse_convolution_returns_to_the_sites_of_its_partner():
    torch.manual_seed(0)
    tensor = some_tensor()
    down = layers.SparseConv3d(8, 12, 3, stride=2, padding=1, bias=False, indice_key='down')
    up = layers.SparseInverseConv3d(12, 8, 3, indice_key='down', bias=False)
    middle = down(tensor)
    back = up(middle)
    assert back.indices is tensor.indices
    assert back.spatial_shape == tensor.spatial_shape
    grid = F.conv_transpose3d(dense(middle), up.weight.permute(4, 0, 1, 2, 3), None, 2, 1, output_padding=1)
    expected = grid.permute(0, 2, 3, 4, 1)[tuple(tensor.indices.long().T)]
    torch.testing.assert_close(back.features, expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match=r"'down' has none.*\['other'\]"):
        up(layers.SubMConv3d(8, 12, 3, indice_key='other')(tensor))


def test_rulebooks_are_shared_by_key_and_by_sites(monkeypatch):
    built = []
    for name in ('submanifold_rulebook', 'strided_rulebook'):
        build = getattr(sparse_sites, name)
        monkeypatch.setattr(sparse_sites, name, lambda *args, build=build: built.append(build.__name__) or build(*args))
    keyed = [layers.SubMConv3d(8, 8, 3, indice_key='a') for _ in range(3)]
    x = some_tensor()
    for conv in keyed:
        x = conv(x)
    assert built == ['submanifold_rulebook']
    x = layers.SubMConv3d(8, 8, (1, 3, 3), indice_key='b')(x)
    block = SparseBasicBlock(8, 8, conv_cfg={'type': 'SubMConv3d'})
    make_exact(block)
    x = block(block(x))  # without keys
    assert built == ['submanifold_rulebook'] * 3
    x = layers.SparseConv3d(8, 8, 3, stride=2)(x)
    block(x)
    assert built[3:] == ['strided_rulebook', 'submanifold_rulebook']


def test_a_key_of_other_sites_is_refused():
    x = layers.SubMConv3d(8, 8, 3, indice_key='a')(some_tensor())
    for other in (
        layers.SubMConv3d(8, 8, (1, 3, 3), indice_key='a'),
        layers.SubMConv3d(8, 8, 3, dilation=2, indice_key='a'),
        layers.SparseConv3d(8, 8, 3, indice_key='a'),
    ):
        with pytest.raises(ValueError, match="indice_key 'a' belongs to other sites"):
            other(x)
    x.indices = x.indices.flip(0)
    with pytest.raises(ValueError, match="indice_key 'a' belongs to other sites"):
        layers.SubMConv3d(8, 8, 3, indice_key='a')(x)


def encoder(block_type: str = 'basicblock') -> SparseEncoder:
    torch.manual_seed(0)
    channels, paddings = ((8, 8), (8, 8)), ((1, 1), (1, 1))
    settings = {'base_channels': 8, 'output_channels': 6, 'block_type': block_type}
    return SparseEncoder(4, SHAPE, encoder_channels=channels, encoder_paddings=paddings, **settings)


@pytest.mark.parametrize('block_type', ['basicblock', 'conv_module'])
def test_make_exact_changes_classes_and_nothing_else(block_type):
    model = encoder(block_type)
    plain = [module for module in model.modules() if isinstance(module, SparseConvolution)]
    before, parameters = copy.deepcopy(model.state_dict()), list(model.parameters())
    assert make_exact(model) == len(plain) > 4
    assert make_exact(model) == 0
    assert all(isinstance(module, exact_class(type(module).__name__)) for module in plain)
    after = model.state_dict()
    assert list(after) == list(before)
    assert after._metadata == before._metadata
    assert after._metadata['conv_input.0']['version'] == 2
    assert all(one is other for one, other in zip(model.parameters(), parameters))
    model.load_state_dict(before)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_encoder_of_mmdet3d_trains_on_cpu():
    model = encoder()
    make_exact(model)
    tensor = some_tensor(channels=4)
    model(tensor.features, tensor.indices, 3).square().sum().backward()
    double = copy.deepcopy(model).double()
    double.zero_grad()
    double(tensor.features.double(), tensor.indices, 3).square().sum().backward()
    for own, exact in zip(model.parameters(), double.parameters()):
        torch.testing.assert_close(own.grad.double(), exact.grad, rtol=1e-3, atol=1e-4 * float(exact.grad.abs().max()))


def test_copies_and_pickles_are_exact_too():
    model = encoder()
    make_exact(model)
    restored = pickle.loads(pickle.dumps(model))
    for other in (copy.deepcopy(model), restored):
        assert make_exact(other) == 0
        assert type(other.conv_input[0]) is layers.SubMConv3d
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=True)
    assert loaded._metadata['conv_input.0']['version'] == 2


class Special(spconv.SubMConv3d):
    """Computes as its base does."""


class Other(spconv.SubMConv3d):
    """Does not."""

    def forward(self, input, add_input=None):
        return super().forward(input, add_input)


def test_subclasses_that_compute_as_their_base_are_exact_too():
    torch.manual_seed(0)
    assert make_exact(nn.Linear(2, 2)) == 0
    special, plain = Special(8, 2, 3, bias=False), layers.SubMConv3d(8, 2, 3, bias=False)
    plain.load_state_dict(special.state_dict())
    model = nn.Sequential(special)
    assert (make_exact(model), make_exact(model)) == (1, 0)
    assert isinstance(special, Special) and type(special).__name__ == 'Special'
    expected = plain(some_tensor()).features
    for one in (special, copy.deepcopy(model)[0], pickle.loads(pickle.dumps(model))[0]):
        assert type(one) is type(special)
        assert torch.equal(one(some_tensor()).features, expected)


@pytest.mark.parametrize(
    'layer',
    [
        lambda: spconv.SparseConvTranspose3d(8, 8, 3),
        lambda: spconv.SparseAvgPool3d(2),
        lambda: spconv.SparseGlobalAvgPool(),
        lambda: Other(8, 8, 3),
    ],
    ids=['transposed', 'average', 'global average', 'own forward'],
)
def test_layers_without_an_exact_version_are_refused_by_name_before_anything_changes(layer, monkeypatch):
    model = nn.Sequential(spconv.SubMConv3d(8, 8, 3), nn.Sequential(layer()))
    message = rf'1.0 \({type(model[1][0]).__name__}\)\. Valid are SubMConv1d, .*run this model on a GPU'
    with pytest.raises(ValueError, match=message):
        make_exact(model)
    assert type(model[0]) is spconv.SubMConv3d
    # With a GPU the model may run there; what comes on the CPU is refused by the layer.
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    assert (make_exact(model), make_exact(model)) == (1, 0)
    with pytest.raises(ValueError, match=type(model[1][0]).__name__):
        model(some_tensor())


FILL = float('-inf')


def dense_max(tensor: spconv.SparseConvTensor, pool: nn.Module) -> torch.Tensor:
    """Dense max-pooling with minus infinity wherever nothing is active: [B, *grid, C]."""
    cells = tensor.features.new_full((tensor.batch_size, *tensor.spatial_shape, tensor.features.shape[1]), FILL)
    grid = cells.index_put(tuple(tensor.indices.long().T), tensor.features).movedim(-1, 1)
    pad = [side for size in reversed(pool.padding) for side in (size, size)]
    function = getattr(F, f'max_pool{pool.ndim}d')
    return function(F.pad(grid, pad, value=FILL), pool.kernel_size, pool.stride, 0, pool.dilation).movedim(1, -1)


@pytest.mark.parametrize('threads', [1, 2])
@pytest.mark.parametrize(
    'settings',
    [
        dict(kernel_size=3, stride=2, padding=1),
        dict(kernel_size=2, stride=2),
        dict(kernel_size=3, stride=1, padding=2, dilation=2),
        dict(kernel_size=4, stride=3, padding=1),
    ],
    ids=str,
)
@pytest.mark.parametrize('axes', [1, 2, 3])
def test_pools_equal_dense_ones_over_minus_infinity(axes, settings, threads):
    pool = getattr(layers, f'SparseMaxPool{axes}d')(**settings)
    tensor = some_tensor(4, 12 if axes == 1 else 120, shape=[9, 14, 11][:axes])
    # A maximum that begins at 0 would be 0 nearly everywhere.
    tensor = tensor.replace_feature((tensor.features - 2).detach().requires_grad_())
    with number_of_threads(threads):
        out = pool(tensor)
    grid = dense_max(tensor, pool)
    assert out.spatial_shape == list(grid.shape[1:-1])
    expected = grid[tuple(out.indices.long().T)]
    assert torch.equal(out.features, expected)
    assert len(out.indices) == int((grid > FILL).any(-1).sum())  # no site is missing
    direction = torch.randn_like(expected)
    ours, theirs = (torch.autograd.grad(values, tensor.features, direction)[0] for values in (out.features, expected))
    torch.testing.assert_close(ours, theirs)
    assert (out.features < 0).any()


def test_a_lone_negative_feature_stays_what_it_is_after_make_exact():
    """spconv 2.3.8 on a CPU gives 0."""
    model = spconv.SparseSequential(spconv.SparseMaxPool3d(3, 2, 1))
    assert (make_exact(model), make_exact(model)) == (1, 0)
    lone = spconv.SparseConvTensor(torch.tensor([[-5.0]]), torch.tensor([[0, 1, 1, 1]]).int(), [4, 4, 4], 1)
    out = model(lone)
    assert out.features.tolist() == [[-5.0]] * 8
    assert out.spatial_shape == [2, 2, 2]
    positive = lone.replace_feature(torch.tensor([[5.0]]))
    plain = spconv.SparseMaxPool3d(3, 2, 1)(positive)  # right where everything is positive
    torch.testing.assert_close(dense(model(positive)), dense(plain))


def test_pools_of_four_axes_equal_those_of_spconv_for_positive_features():
    tensor = some_tensor(3, 60, shape=[5, 6, 4, 5])
    tensor = tensor.replace_feature(tensor.features.detach().abs())
    found = layers.SparseMaxPool4d(3, 2, 1)(tensor)
    with number_of_threads(1):
        expected = spconv.SparseMaxPool4d(3, 2, 1)(tensor)
    order = [torch.from_numpy(np.lexsort(out.indices.numpy().T[::-1])) for out in (found, expected)]
    assert torch.equal(found.indices[order[0]], expected.indices[order[1]])
    assert torch.equal(found.features[order[0]], expected.features[order[1]])


def test_equal_infinite_and_undefined_features_pool_as_dense_ones_do():
    features = torch.tensor([[0.0], [0.0], [FILL], [float('nan')], [7.0]], requires_grad=True)
    sites = torch.tensor([[0, 0], [0, 1], [0, 2], [0, 4], [0, 5]]).int()
    tensor = spconv.SparseConvTensor(features, sites, [6], 1)
    out = layers.SparseMaxPool1d(2, 2)(tensor)
    torch.testing.assert_close(out.features.detach(), torch.tensor([[0.0], [FILL], [float('nan')]]), equal_nan=True)
    out.features[0].sum().backward()
    assert features.grad.flatten().tolist() == [1, 0, 0, 0, 0]


def test_an_inverse_convolution_goes_back_through_a_pool():
    tensor = some_tensor()
    pool = layers.SparseMaxPool3d(3, 2, 1, indice_key='pooled')
    up = layers.SparseInverseConv3d(8, 4, 3, indice_key='pooled')
    middle = pool(tensor)
    back = up(middle)
    assert back.indices is tensor.indices and back.features.shape[1] == 4
    with pytest.raises(ValueError, match="indice_key 'pooled' of a SparseMaxPool3d is already used"):
        pool(middle)


def test_a_submanifold_pool_keeps_the_sites():
    pool = SparseMaxPool(3, 3, 1, 1, subm=True)
    assert make_exact(pool) == 1
    tensor = some_tensor(4, 300)
    out = pool(tensor)
    assert out.indices is tensor.indices
    assert torch.equal(out.features, dense_max(tensor, pool)[tuple(out.indices.long().T)])


def test_the_largest_features_of_whole_samples():
    tensor = some_tensor(4, 300)
    pool = spconv.SparseGlobalMaxPool()
    assert make_exact(pool) == 1
    with pytest.raises(ValueError, match=r'samples \[2\] have no active sites'):
        pool(tensor)
    tensor.batch_size = 2
    found = pool(tensor)
    for sample in range(2):
        assert torch.equal(found[sample], tensor.features[tensor.indices[:, 0] == sample].amax(0))


@pytest.mark.parametrize('axes', [1, 2])
@pytest.mark.parametrize(('name', 'stride'), [('SubMConv', 1), ('SparseConv', 2)])
def test_convolutions_of_fewer_axes_equal_dense_ones(name, stride, axes):
    torch.manual_seed(0)
    conv = getattr(layers, f'{name}{axes}d')(8, 5, 3, stride=stride, padding=1)
    tensor = some_tensor(8, 200, shape=SHAPE[-axes:])
    out = conv(tensor)
    cells = tensor.features.new_zeros(3, *tensor.spatial_shape, 8)
    cells = cells.index_put(tuple(tensor.indices.long().T), tensor.features).movedim(-1, 1)
    grid = getattr(F, f'conv{axes}d')(cells, conv.weight.movedim(-1, 1), conv.bias, stride, 1).movedim(1, -1)
    torch.testing.assert_close(out.features, grid[tuple(out.indices.long().T)], rtol=1e-5, atol=1e-5)


def test_half_precision_rounds_once():
    """1000 is a number of bfloat16, 1000 + 1 is not: a sum that is rounded at every offset stays there."""
    conv = layers.SubMConv3d(1, 1, 3, bias=False).bfloat16()
    nn.init.ones_(conv.weight)
    sites = torch.cartesian_prod(torch.arange(1), *[torch.arange(3)] * 3).int()
    features = torch.ones(27, 1, dtype=torch.bfloat16)
    features[0] = 1000
    out = conv(spconv.SparseConvTensor(features, sites, [3, 3, 3], 1))
    assert out.features.dtype == torch.bfloat16
    assert out.features[13].item() == torch.tensor(1026.0).bfloat16().item() != 1000


def test_norms_and_activations_around_the_layers():
    module = make_sparse_convmodule(8, 4, 3, conv_type='SubMConv3d', padding=1, indice_key='a')
    make_exact(module)
    out = module(some_tensor())
    assert out.features.shape[1] == 4
    assert float(out.features.detach().min()) == 0


def test_fused_additions_are_refused():
    x = some_tensor()
    with pytest.raises(NotImplementedError, match='on a GPU only'):
        layers.SubMConv3d(8, 8, 3)(x, add_input=x)


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(AttributeError, match='SubMConv3d'):
        layers.SparseConv5d  # noqa: B018
    assert all(issubclass(getattr(layers, name), getattr(spconv, name)) for name in NAMES)


def test_without_spconv_the_message_says_what_to_type(monkeypatch):
    for name in [name for name in sys.modules if name.split('.')[0] == 'spconv']:
        monkeypatch.delitem(sys.modules, name)
    assert make_exact(nn.Linear(2, 2)) == 0
    monkeypatch.setitem(sys.modules, 'spconv', None)
    exact_class.cache_clear()
    with pytest.raises(ImportError, match=r'pip install spconv-cu120.*pip install spconv==2\.3\.8'):
        layers.SubMConv3d  # noqa: B018
