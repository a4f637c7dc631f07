from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from mmprune3d.adapters.learned_queries import learned_queries
from mmprune3d.inspect.query_points import nearest_distances, points_in_metres, range_of, spread
from mmprune3d.inspect.query_selection import SelectionCounter


class Embedded(nn.Module):
    """The parts of a head that hold queries."""

    def __init__(self, name: str, width: int) -> None:
        super().__init__()
        self.cls_branches, self.num_classes = nn.ModuleList(), 2
        self.bbox_coder = SimpleNamespace(pc_range=[-10.0, -20.0, -5.0, 10.0, 20.0, 3.0], max_num=300)
        setattr(self, name, nn.Embedding(5, width))


def test_points_are_in_metres_and_other_queries_have_none() -> None:
    head = Embedded('reference_points', 3)
    head.reference_points.weight.data[:2] = torch.tensor([[0.5, 0.25, 1.0], [-0.1, 1.2, 0.0]])
    queries = learned_queries(head)
    queries.embedding.remove(torch.tensor([1]))
    assert points_in_metres(queries)[:2].tolist() == [[0, -10, 3], [-10, 20, -5]]
    assert range_of(queries)[3:] == [10, 20, 3]
    assert SelectionCounter(queries, 0.1).limit == 4 * 2
    assert points_in_metres(learned_queries(Embedded('query_embedding', 3))) is None
    assert points_in_metres(learned_queries(Embedded('reference_points', 4))) is None


def test_spread_tells_grids_from_random_points_and_clusters() -> None:
    area = [-50.0, -50.0, -5.0, 50.0, 50.0, 3.0]
    axis = torch.arange(-47.5, 50, 5.0)
    grid = torch.cat((torch.cartesian_prod(axis, axis), torch.ones(400, 1)), 1)
    random = torch.rand(400, 3, generator=torch.Generator().manual_seed(0)) * 100 - 50
    regular, uniform, dense = (spread(points, area) for points in (grid, random, random * 0.2))
    assert regular['neighbour_m'] == pytest.approx(5) and regular['height_m'] == 1 and regular['height_std_m'] == 0
    assert regular['clark_evans'] == pytest.approx(2, rel=0.05) and regular['clark_evans_z'] > 20
    assert uniform['clark_evans'] == pytest.approx(1, abs=0.06) and abs(uniform['clark_evans_z']) < 2
    assert dense['neighbour_m'] == pytest.approx(uniform['neighbour_m'] / 5) and dense['clark_evans_z'] < -20
    assert nearest_distances(torch.tensor([[0.0, 0.0], [3.0, 4.0], [3.0, 5.0]])).tolist() == [5, 1, 1]
