"""Voxels of any number of points, against a loop over the points."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mmprune3d.ops.dynamic_scatter import REDUCTIONS, dynamic_scatter, voxels_of_points


def sample(seed: int, points: int = 60, channels: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    coords = torch.randint(-1, 4, (points, 3), generator=generator, dtype=torch.int32)
    # few different values: maxima are attained by several points
    features = torch.randint(-3, 3, (points, channels), generator=generator).double()
    return features, coords


def by_hand(features: Tensor, coords: Tensor, reduce: str, weights: Tensor) -> tuple[Tensor, list, Tensor]:
    """Voxel features, coordinates, and the gradient of ``(voxel features * weights).sum()``."""
    members: dict[tuple, list[int]] = {}
    for point, coord in enumerate(coords.tolist()):
        if min(coord) >= 0:
            members.setdefault(tuple(coord), []).append(point)
    order, found, gradient = sorted(members), [], torch.zeros_like(features)
    for row, coord in enumerate(order):
        points = members[coord]
        if reduce == 'max':
            found.append(features[points].amax(dim=0))
            for channel in range(features.shape[1]):
                first = next(p for p in points if features[p, channel] == found[-1][channel])
                gradient[first, channel] = weights[row, channel]
        else:
            share = 1 / len(points) if reduce == 'mean' else 1
            found.append(features[points].sum(dim=0) * share)
            gradient[points] = weights[row] * share
    return torch.stack(found), order, gradient


@pytest.mark.parametrize('reduce', REDUCTIONS)
@pytest.mark.parametrize('seed', range(4))
def test_values_order_and_gradients(seed: int, reduce: str) -> None:
    features, coords = sample(seed)
    features.requires_grad_()
    found, cells = dynamic_scatter(features, coords, reduce)
    weights = torch.randn(found.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    (found * weights).sum().backward()
    expected, order, gradient = by_hand(features.detach(), coords, reduce, weights)
    torch.testing.assert_close(found.detach(), expected, rtol=1e-14, atol=0)
    assert [tuple(cell) for cell in cells.tolist()] == order and cells.dtype == coords.dtype
    torch.testing.assert_close(features.grad, gradient, rtol=1e-14, atol=0)
    outside = (coords < 0).any(dim=1)
    assert outside.any() and (features.grad[outside] == 0).all()


def test_gradients_are_those_of_finite_differences() -> None:
    _, coords = sample(0)
    features = torch.randn(len(coords), 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for reduce in REDUCTIONS:
        assert torch.autograd.gradcheck(lambda x, r=reduce: dynamic_scatter(x, coords, r)[0], features.requires_grad_())


@pytest.mark.parametrize('reduce', REDUCTIONS)
def test_no_point_one_point_and_none_inside(reduce: str) -> None:
    features, coords = torch.randn(3, 2), torch.tensor([[0, 1, 2], [-1, 0, 0], [0, -1, 0]])
    found, cells = dynamic_scatter(features, coords, reduce)
    assert torch.equal(found, features[:1]) and torch.equal(cells, coords[:1])
    for rows in (slice(0, 0), slice(1, 3)):
        found, cells = dynamic_scatter(features[rows], coords[rows], reduce)
        assert found.shape == (0, 2) and cells.shape == (0, 3)
    with pytest.raises(ValueError, match='max, mean, sum'):
        dynamic_scatter(features, coords, 'min')


def test_a_diverged_training_stays_visible() -> None:
    features = torch.tensor([[float('nan')], [1.0]], requires_grad=True)
    assert dynamic_scatter(features, torch.zeros(2, 3, dtype=torch.int32), 'max')[0].isnan().all()


@pytest.mark.parametrize('seed', range(4))
def test_every_point_finds_its_voxel_again(seed: int) -> None:
    features, coords = sample(seed)
    _, cells = dynamic_scatter(features, coords)
    rows = voxels_of_points(coords, cells)
    inside = (coords >= 0).all(dim=1)
    assert torch.equal(cells[rows[inside]], coords[inside])
    assert rows.min() >= 0 and rows.max() < len(cells)


@pytest.mark.parametrize(('dtype', 'count', 'value'), [(torch.bfloat16, 301, 3.0), (torch.float16, 5000, 100.0)])
@pytest.mark.parametrize('channels', [1, 4])
def test_half_precision_neither_miscounts_nor_overflows(
    dtype: torch.dtype, count: int, value: float, channels: int
) -> None:
    features, coords = torch.full((count, channels), value, dtype=dtype), torch.zeros(count, 3, dtype=torch.int32)
    mean, _ = dynamic_scatter(features, coords, 'mean')
    assert mean.dtype == dtype and mean.tolist() == [[value] * channels]
    ones = torch.ones(count, channels, dtype=dtype)
    total, _ = dynamic_scatter(ones, coords, 'sum')
    assert torch.equal(total, torch.full((1, channels), float(count)).to(dtype))
