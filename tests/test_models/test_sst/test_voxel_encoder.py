"""Pillar features against a loop over pillars, on grids where others lose the last row."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mmprune3d.models.sst.voxel_encoder import SSTDynamicVFE

from .small_sst import stir

WAYMO = dict(voxel_size=(0.32, 0.32, 6), point_cloud_range=(-74.88, -74.88, -2, 74.88, 74.88, 4))
CELLS = 468
OPTIONS = [
    dict(),
    dict(mode='avg'),
    dict(with_distance=True),
    dict(with_cluster_center=True),
    dict(with_voxel_center=True, feat_channels=(6,)),
    dict(with_distance=True, with_cluster_center=True, with_voxel_center=True, feat_channels=(4, 5, 6), mode='avg'),
]


def encoder(**options: Any) -> SSTDynamicVFE:
    return stir(SSTDynamicVFE(**{**dict(in_channels=5, feat_channels=(4, 6)), **WAYMO, **options})).double().eval()


def points_in(cells: list[tuple[int, int, int]], each: int = 3) -> tuple[Tensor, Tensor]:
    """Some points in each cell (b, y, x) of Waymo's grid, shuffled within samples, and their cells (b, z, y, x)."""
    generator = torch.Generator().manual_seed(0)
    coords = torch.tensor([(b, 0, y, x) for b, y, x in cells]).repeat_interleave(each, 0)
    inside = 0.05 + 0.9 * torch.rand(len(coords), 3, generator=generator, dtype=torch.float64)
    low, size = torch.tensor([-74.88, -74.88, -2.0]).double(), torch.tensor([0.32, 0.32, 6.0]).double()
    xyz = low + (coords[:, [3, 2, 1]] + inside) * size
    points = torch.cat((xyz, torch.randn(len(coords), 2, generator=generator, dtype=torch.float64)), 1)
    order = torch.randperm(len(points), generator=generator)
    order = order[coords[order, 0].argsort(stable=True)]
    return points[order], coords[order].int()


def corners() -> list[tuple[int, int, int]]:
    """Cells at the edges, with neighbours that a grid of 467 columns would mix up."""
    edge = CELLS - 1
    cells = {
        (0, edge, edge),
        (0, 0, 0),
        (0, 0, edge),
        (0, edge, 0),
        (0, 5, edge),
        (0, 6, 0),
        (0, 5, edge - 1),
        (2, 7, 7),
    }
    return sorted(cells | {(0, 467, x) for x in range(0, CELLS, 60)} | {(2, y, 467) for y in range(0, CELLS, 70)})


def slow(module: SSTDynamicVFE, points: Tensor, coords: Tensor) -> tuple[Tensor, Tensor]:
    members: dict[tuple[int, ...], list[int]] = {}
    for row, cell in enumerate(coords.tolist()):
        if min(cell) >= 0:
            members.setdefault(tuple(cell), []).append(row)
    low = points.new_tensor(module.point_cloud_range[:3])
    size = points.new_tensor(module.voxel_size)
    found = []
    for cell in sorted(members):
        own = points[members[cell]]
        columns = [own]
        if module.with_cluster_center:
            columns.append(own[:, :3] - own[:, :3].mean(0))
        if module.with_voxel_center:
            middle = low + (points.new_tensor(cell[:0:-1]) + 0.5) * size
            columns.append(own[:, :3] - middle)
        if module.with_distance:
            columns.append(own[:, :3].square().sum(1, keepdim=True).sqrt())
        x = torch.cat(columns, 1)
        for number, layer in enumerate(module.vfe_layers):
            bn = layer.norm
            x = (x @ layer.linear.weight.T - bn.running_mean) / (bn.running_var + bn.eps).sqrt() * bn.weight + bn.bias
            x = x.clamp(min=0)
            pillar = x.amax(0) if module.reduce == 'max' else x.mean(0)
            if number < len(module.vfe_layers) - 1:
                x = torch.cat((x, pillar.expand_as(x)), 1)
        found.append(pillar)
    return torch.stack(found), torch.tensor(sorted(members))


@pytest.mark.parametrize('options', OPTIONS, ids=str)
def test_pillars_equal_the_loop(options: dict) -> None:
    module = encoder(**options)
    points, coords = points_in(corners())
    points.requires_grad_()
    feats, cells = module(points, coords)
    expected, expected_cells = slow(module, points, coords)
    assert torch.equal(cells.long(), expected_cells) and len(cells) == len(corners())
    assert (expected != 0).double().mean() > 0.2 and feats.shape[1] == module.out_channels
    torch.testing.assert_close(feats, expected)
    inputs, gradients = [points, *module.parameters()], []
    for out in (feats, expected):
        gradients.append(torch.autograd.grad((out * torch.arange(out.numel()).view(out.shape)).sum(), inputs))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_order_of_points_does_not_matter() -> None:
    module = encoder(with_cluster_center=True, with_voxel_center=True)
    points, coords = points_in(corners())
    order = torch.randperm(len(points), generator=torch.Generator().manual_seed(1))
    one, other = module(points, coords), module(points[order], coords[order])
    torch.testing.assert_close(one, other)


def test_points_outside_are_as_if_they_were_not_there() -> None:
    module = encoder(with_cluster_center=True)
    points, coords = points_in(corners())
    outside = torch.arange(len(points)) % 4 == 1
    marked, values = coords.clone(), points.clone()
    marked[outside, 1:] = -1
    values[outside] = torch.nan
    found, expected = module(values, marked), module(points[~outside], coords[~outside])
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])


def test_samples_do_not_see_each_other() -> None:
    module = encoder(with_cluster_center=True)
    points, coords = points_in(corners())
    feats, cells = module(points, coords)
    for b in (0, 2):
        own = coords[:, 0] == b
        torch.testing.assert_close(feats[cells[:, 0] == b], module(points[own], coords[own])[0])


def test_values_far_from_the_mean_do_not_lose_digits() -> None:
    """In single precision, at the corner of the range: offsets are differences of large numbers."""
    module = encoder(with_cluster_center=True, with_voxel_center=True)
    points, coords = points_in(corners())
    exact, _ = module(points, coords)
    single, _ = module.float()(points.float(), coords)
    torch.testing.assert_close(single.double(), exact, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('training', [False, True])
def test_no_point_and_none_inside(training: bool) -> None:
    module = encoder().train(training)
    points, coords = points_in([(0, 1, 1)])
    for some in (0, 3):
        feats, cells = module(points[:some], torch.full_like(coords[:some], -1))
        assert feats.shape == (0, 6) and cells.shape == (0, 4)


def test_training_uses_the_statistics_of_points() -> None:
    module = encoder().train()
    points, coords = points_in(corners())
    before = module.vfe_layers[0].norm.running_mean.clone()
    rows = module.vfe_layers[0].linear(points).detach()
    module(points, coords)
    after = module.vfe_layers[0].norm.running_mean
    torch.testing.assert_close(after, 0.99 * before + 0.01 * rows.mean(0))


def test_norms_and_widths() -> None:
    module = SSTDynamicVFE(feat_channels=(8, 16), with_cluster_center=True, with_voxel_center=True)
    shapes = {key: list(value.shape) for key, value in module.state_dict().items() if key.endswith('linear.weight')}
    assert shapes == {'vfe_layers.0.linear.weight': [8, 10], 'vfe_layers.1.linear.weight': [16, 16]}
    assert all(isinstance(layer.norm, nn.BatchNorm1d) and layer.norm.eps == 1e-3 for layer in module.vfe_layers)
    assert isinstance(SSTDynamicVFE(norm_cfg=dict(type='LN')).vfe_layers[0].norm, nn.LayerNorm)


@pytest.mark.parametrize(
    ('options', 'message'),
    [(dict(mode='min'), "unknown mode 'min'; valid are max, avg"), (dict(feat_channels=()), 'at least one width')],
    ids=str,
)
def test_errors_name_what_is_valid(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SSTDynamicVFE(**options)
