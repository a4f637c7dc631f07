from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mmprune3d.ops import sparse_conv as module
from mmprune3d.ops.sparse_conv import sparse_conv
from mmprune3d.ops.sparse_rulebook import Rulebook, strided_rulebook, submanifold_rulebook

SHAPE, BATCH, C_IN, C_OUT = (7, 6, 9), 3, 3, 4
ONES, ZEROS = (1, 1, 1), (0, 0, 0)


def some_sites(seed: int = 0, count: int = 120, samples: int = BATCH - 1) -> Tensor:
    """Distinct sites in random order, corners among them; the last sample has none."""
    generator = torch.Generator().manual_seed(seed)
    draws = [torch.randint(0, size, (count,), generator=generator) for size in (samples, *SHAPE)]
    corners = torch.tensor([[0, 0, 0, 0], [samples - 1, *(size - 1 for size in SHAPE)]])
    sites = torch.unique(torch.cat([torch.stack(draws, 1), corners]), dim=0)
    return sites[torch.randperm(len(sites), generator=generator)].int()


def some_numbers(sites: Tensor, kernel: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    sizes = [(len(sites), C_IN), (C_OUT, *kernel, C_IN), (C_OUT,)]
    return tuple(torch.randn(size, dtype=torch.float64, requires_grad=True) for size in sizes)


def dense(features: Tensor, sites: Tensor) -> Tensor:
    grid = features.new_zeros(BATCH, *SHAPE, features.shape[1])
    return grid.index_put(tuple(sites.long().T), features).permute(0, 4, 1, 2, 3)


def at(grid: Tensor, sites: Tensor) -> Tensor:
    return grid.permute(0, 2, 3, 4, 1)[tuple(sites.long().T)]


def assert_same_values_and_gradients(ours: Tensor, theirs: Tensor, leaves: tuple[Tensor, ...]) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)
    direction = torch.randn(ours.shape, dtype=ours.dtype, generator=torch.Generator().manual_seed(2))
    for own, other in zip(torch.autograd.grad(ours, leaves, direction), torch.autograd.grad(theirs, leaves, direction)):
        torch.testing.assert_close(own, other, rtol=1e-11, atol=1e-11)


@pytest.fixture(params=[1, 2])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize(('kernel', 'dilation'), [((3, 3, 3), ONES), ((1, 3, 5), ONES), ((3, 5, 3), (2, 1, 3))])
def test_submanifold_convolution_is_the_dense_one_at_the_input_sites(kernel, dilation, threads):
    sites = some_sites()
    leaves = features, weight, bias = some_numbers(sites, kernel)
    padding = [size // 2 * step for size, step in zip(kernel, dilation)]
    theirs = F.conv3d(dense(features, sites), weight.permute(0, 4, 1, 2, 3), bias, 1, padding, dilation)
    ours = sparse_conv(features, weight, bias, submanifold_rulebook(sites, SHAPE, BATCH, kernel, dilation))
    assert_same_values_and_gradients(ours, at(theirs, sites), leaves)


STRIDED = [
    ((3, 3, 3), (2, 2, 2), (1, 1, 1), ONES),
    ((3, 3, 3), (2, 2, 2), (1, 1, 0), ONES),
    ((1, 1, 3), (1, 1, 2), ZEROS, ONES),
    ((3, 1, 1), (2, 1, 1), ZEROS, ONES),
    ((2, 3, 4), (1, 2, 3), (0, 2, 1), (3, 1, 2)),
    ((3, 3, 3), ONES, ONES, ONES),
    ((1, 1, 1), (2, 3, 2), ZEROS, ONES),
]


@pytest.mark.parametrize(('kernel', 'stride', 'padding', 'dilation'), STRIDED)
def test_strided_convolution_is_the_dense_one_where_a_window_holds_a_site(kernel, stride, padding, dilation, threads):
    sites = some_sites()
    leaves = features, weight, bias = some_numbers(sites, kernel)
    rulebook, out_sites, out_shape = strided_rulebook(sites, SHAPE, BATCH, kernel, stride, padding, dilation)
    geometry = {'stride': stride, 'padding': padding, 'dilation': dilation}
    theirs = F.conv3d(dense(features, sites), weight.permute(0, 4, 1, 2, 3), bias, **geometry)
    occupied = F.conv3d(dense(torch.ones(len(sites), 1), sites), torch.ones(1, 1, *kernel), **geometry)[:, 0] > 0.5
    assert out_shape == list(theirs.shape[2:])
    assert out_sites.dtype == sites.dtype
    assert torch.equal(out_sites.long(), occupied.nonzero())
    assert_same_values_and_gradients(sparse_conv(features, weight, bias, rulebook), at(theirs, out_sites), leaves)


def test_transposed_rulebook_is_the_dense_transposed_convolution():
    kernel, stride, padding = (3, 3, 3), (2, 2, 2), (1, 1, 0)
    sites = some_sites()
    rulebook, out_sites, out_shape = strided_rulebook(sites, SHAPE, BATCH, kernel, stride, padding, ONES)
    torch.manual_seed(3)
    features = torch.randn(len(out_sites), C_IN, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(C_OUT, *kernel, C_IN, dtype=torch.float64, requires_grad=True)
    grid = features.new_zeros(BATCH, *out_shape, C_IN).index_put(tuple(out_sites.long().T), features)
    extra = [n - ((m - 1) * s - 2 * p + k) for n, m, s, p, k in zip(SHAPE, out_shape, stride, padding, kernel)]
    theirs = F.conv_transpose3d(
        grid.permute(0, 4, 1, 2, 3), weight.permute(4, 0, 1, 2, 3), None, stride, padding, output_padding=extra
    )
    ours = sparse_conv(features, weight, None, rulebook.transposed())
    assert_same_values_and_gradients(ours, at(theirs, sites), (features, weight))


@pytest.mark.parametrize('kind', ['submanifold', 'strided'])
def test_first_and_second_derivatives_are_those_of_finite_differences(kind):
    sites, kernel = some_sites(count=14), (3, 1, 3)
    if kind == 'submanifold':
        rulebook = submanifold_rulebook(sites, SHAPE, BATCH, kernel, ONES)
    else:
        rulebook = strided_rulebook(sites, SHAPE, BATCH, kernel, (2, 1, 2), ONES, ONES)[0]
    leaves = [leaf.detach()[..., :2].clone().requires_grad_() for leaf in some_numbers(sites, kernel)[:2]]
    assert torch.autograd.gradcheck(lambda x, w: sparse_conv(x, w, None, rulebook), leaves)
    assert torch.autograd.gradgradcheck(lambda x, w: sparse_conv(x, w, None, rulebook), leaves, fast_mode=True)


def test_chunks_of_rows_change_nothing(monkeypatch):
    sites, kernel = some_sites(), (3, 3, 3)
    leaves = features, weight, bias = some_numbers(sites, kernel)
    rulebook = submanifold_rulebook(sites, SHAPE, BATCH, kernel, ONES)
    whole = sparse_conv(features, weight, bias, rulebook)
    expected = torch.autograd.grad(whole.square().sum(), leaves)
    monkeypatch.setattr(module, 'CHUNK_BYTES', 8 * (C_IN + C_OUT) * 5)  # five rows
    chunked = sparse_conv(features, weight, bias, rulebook)
    torch.testing.assert_close(chunked, whole)
    torch.testing.assert_close(torch.autograd.grad(chunked.square().sum(), leaves), expected)


def test_order_of_the_sites_does_not_matter():
    sites, kernel = some_sites(), (3, 3, 3)
    features, weight, bias = some_numbers(sites, kernel)
    order = torch.randperm(len(sites), generator=torch.Generator().manual_seed(5))
    rulebooks = [submanifold_rulebook(some, SHAPE, BATCH, kernel, ONES) for some in (sites, sites[order])]
    one, other = (sparse_conv(*args) for args in zip((features, features[order]), [weight] * 2, [bias] * 2, rulebooks))
    torch.testing.assert_close(other, one[order])


def test_no_sites_at_all():
    sites, kernel = some_sites()[:0], (3, 3, 3)
    features, weight, bias = some_numbers(sites, kernel)
    strided, out_sites, out_shape = strided_rulebook(sites, SHAPE, BATCH, kernel, (2, 2, 2), ONES, ONES)
    assert out_sites.shape == (0, 4)
    assert out_shape == [4, 3, 5]
    for rulebook in (strided, submanifold_rulebook(sites, SHAPE, BATCH, kernel, ONES)):
        out = sparse_conv(features, weight, bias, rulebook)
        assert out.shape == (0, C_OUT)
        assert not torch.autograd.grad(out.sum(), weight)[0].any()


def test_autocast_does_not_round():
    sites, kernel = some_sites(), (3, 3, 3)
    features, weight, bias = (leaf.detach().float() for leaf in some_numbers(sites, kernel))
    rulebook = submanifold_rulebook(sites, SHAPE, BATCH, kernel, ONES)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        inside = sparse_conv(features, weight, bias, rulebook)
    assert torch.equal(inside, sparse_conv(features, weight, bias, rulebook))


def test_bad_input_is_named():
    sites = some_sites()
    with pytest.raises(ValueError, match='must be odd'):
        submanifold_rulebook(sites, SHAPE, BATCH, (3, 2, 3), ONES)
    with pytest.raises(ValueError, match='twice'):
        submanifold_rulebook(torch.cat([sites, sites[:1]]), SHAPE, BATCH, (3, 3, 3), ONES)
    for bad in ((0, 7, 0, 0), (0, 0, 0, -1), (BATCH, 0, 0, 0)):
        outside = torch.cat([sites, torch.tensor([bad], dtype=torch.int32)])
        with pytest.raises(ValueError, match='not all inside 3 grids'):
            submanifold_rulebook(outside, SHAPE, BATCH, (3, 3, 3), ONES)
        with pytest.raises(ValueError, match='not all inside 3 grids'):
            strided_rulebook(outside, SHAPE, BATCH, (3, 3, 3), ONES, ONES, ONES)
    with pytest.raises(ValueError, match='is larger than the grid'):
        strided_rulebook(sites, SHAPE, BATCH, (3, 7, 3), ONES, ZEROS, ONES)


@pytest.mark.parametrize('change', ['rows', 'channels', 'kernel'])
def test_numbers_that_do_not_fit_the_rulebook(change):
    sites = some_sites()
    rulebook: Rulebook = submanifold_rulebook(sites, SHAPE, BATCH, (3, 3, 3), ONES)
    features, weight, _ = some_numbers(sites, (3, 3, 1) if change == 'kernel' else (3, 3, 3))
    features = {'rows': features[1:], 'channels': features[:, 1:]}.get(change, features)
    with pytest.raises(ValueError, match='do not match'):
        sparse_conv(features, weight, None, rulebook)
