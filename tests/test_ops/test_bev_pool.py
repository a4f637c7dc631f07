"""Pooling against recorded values and against the outer product that it avoids."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from mmprune3d.ops.bev_pool import bev_pool, cell_index
from tests.reference import load, reference_files

FILES = reference_files('bevfusion', 'bev_pool*.pt')
SHAPE = (4, 3, 2)  # cells in x, y, z


def frustum(dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Depth [2, 3, 5, 2, 4], context [2, 3, 6, 2, 4] and cells, about a third of them outside."""
    generator = torch.Generator().manual_seed(seed)
    depth = torch.rand(2, 3, 5, 2, 4, generator=generator, dtype=dtype)
    context = torch.randn(2, 3, 6, 2, 4, generator=generator, dtype=dtype)
    cells = torch.randint(-12, 24, depth.shape, generator=generator).clamp(min=-1)
    return depth.requires_grad_(), context.requires_grad_(), cells


def by_outer_product(depth: Tensor, context: Tensor, cells: Tensor) -> Tensor:
    nx, ny, nz = SHAPE
    lifted = torch.einsum('bndhw,bnchw->bndhwc', depth, context)
    maps = []
    for sample, where in zip(lifted, cells):
        cell_sums = sample.new_zeros(nx * ny * nz + 1, lifted.shape[-1])
        cell_sums = cell_sums.index_add(0, where.flatten() % len(cell_sums), sample.flatten(0, 3))  # -1 is the last row
        maps.append(cell_sums[:-1].view(nz, nx, ny, -1).permute(0, 3, 1, 2).flatten(0, 1))
    return torch.stack(maps)


def bounds(data: dict) -> tuple[Tensor, Tensor]:
    axes = torch.tensor([data['meta']['constructor'][f'{axis}bound'] for axis in 'xyz'])
    return axes[:, 0], axes[:, 2]


@pytest.mark.parametrize('path', FILES)
def test_recorded_pooling(path: Path) -> None:
    data = load(path)
    inputs, expected, shape = data['inputs'], data['outputs'], data['meta']['nx']
    cells = cell_index(inputs['geom'], *bounds(data), shape)
    assert torch.equal(cells, expected['cell_index'])
    # One feature vector per point: each depth bin is a camera of its own whose only bin has weight 1.
    cells = cells.flatten(1, 2).unsqueeze(2)
    context = inputs['x'].flatten(1, 2).movedim(-1, 2).clone().requires_grad_()
    bev = bev_pool(torch.ones(cells.shape), context, cells, shape)
    torch.testing.assert_close(bev, expected['bev'], rtol=0, atol=1e-6 * float(expected['bev'].abs().max()))
    (grad,) = torch.autograd.grad((bev * inputs['projection']).sum(), context)
    assert torch.equal(grad, expected['grad_x'].flatten(1, 2).movedim(-1, 2))


@pytest.mark.parametrize('seed', range(3))
def test_equals_the_outer_product(seed: int) -> None:
    depth, context, cells = frustum(torch.float64, seed)
    pooled, plain = bev_pool(depth, context, cells, SHAPE), by_outer_product(depth, context, cells)
    torch.testing.assert_close(pooled, plain)
    weights = torch.randn(plain.shape, dtype=plain.dtype, generator=torch.Generator().manual_seed(seed))
    for ours, theirs in zip(
        torch.autograd.grad((pooled * weights).sum(), (depth, context)),
        torch.autograd.grad((plain * weights).sum(), (depth, context)),
    ):
        assert theirs.abs().max() > 0
        torch.testing.assert_close(ours, theirs)


def test_gradients_by_finite_differences() -> None:
    depth, context, cells = frustum(torch.float64)
    assert torch.autograd.gradcheck(lambda d, c: bev_pool(d, c, cells, SHAPE), (depth, context), fast_mode=True)


def test_nothing_of_the_outer_products_size_is_kept() -> None:
    depth, context, cells = frustum()
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
        bev_pool(depth, context, cells, SHAPE).sum().backward()
    assert sizes
    assert max(sizes) <= max(depth.numel(), context.numel())


def test_same_bits_every_time_and_for_every_sample_alone() -> None:
    depth, context, cells = (tensor.detach() for tensor in frustum())
    both = bev_pool(depth, context, cells, SHAPE)
    assert torch.equal(both, bev_pool(depth, context, cells, SHAPE))
    alone = [bev_pool(depth[i : i + 1], context[i : i + 1], cells[i : i + 1], SHAPE) for i in range(2)]
    assert torch.equal(both, torch.cat(alone))


def test_no_point_inside() -> None:
    depth, context, cells = frustum()
    pooled = bev_pool(depth, context, torch.full_like(cells, -1), SHAPE)
    assert pooled.shape == (2, 12, 4, 3)
    assert not pooled.any()
    assert not any(grad.any() for grad in torch.autograd.grad(pooled.sum(), (depth, context)))


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_sums_in_float32(dtype: torch.dtype) -> None:
    depth, context, cells = frustum()
    low = (depth.detach().to(dtype), context.detach().to(dtype))
    assert torch.equal(bev_pool(*low, cells, SHAPE), bev_pool(low[0].float(), low[1].float(), cells, SHAPE))
    assert bev_pool(*low, cells, SHAPE).dtype == torch.float32


def test_cells_are_truncated_toward_zero() -> None:
    x = torch.tensor([-1.0, -0.999, -0.5, 0.0, 0.999, 1.0, 3.999, 4.0])
    points = torch.stack((x, torch.zeros_like(x), torch.ones_like(x)), -1)
    cells = cell_index(points, torch.zeros(3), torch.ones(3), SHAPE)
    assert cells.tolist() == [-1, *(12 + 3 * column for column in (0, 0, 0, 0, 1, 3)), -1]


def test_points_that_are_nowhere_are_outside() -> None:
    points = torch.zeros(4, 3)
    points[:, 1] = torch.tensor([float('nan'), float('inf'), -float('inf'), 1e30])
    assert (cell_index(points, torch.zeros(3), torch.ones(3), SHAPE) == -1).all()


def test_shapes_that_do_not_fit() -> None:
    depth, context, cells = frustum()
    with pytest.raises(ValueError, match=r'context must be \[B, N, C, h, w\] but is \[2, 3, 6, 2, 3\]'):
        bev_pool(depth, context[..., :3], cells, SHAPE)
    with pytest.raises(ValueError, match=r'cells must be \[2, 3, 5, 2, 4\] but is \[2, 3, 4, 2, 4\]'):
        bev_pool(depth, context, cells[:, :, :4], SHAPE)
