from __future__ import annotations

import numpy as np
import pytest
from shapely.geometry import LineString, Polygon

from mmprune3d.datasets.synthetic.layout import make_grid, make_placement
from mmprune3d.datasets.synthetic.paths import Path, plan_route, ring_walk
from mmprune3d.datasets.synthetic.town import assign_land, build_town

SEEDS = (0, 1, 2)


def make_town(seed: int):
    rng = np.random.default_rng(seed)
    grid = make_grid(rng)
    middle = np.array(grid.size) / 2
    route = np.linspace(middle - 40.0, middle + 40.0, 60)
    return grid, build_town(rng, grid, assign_land(rng, grid), make_placement(rng, grid.size), route)


def rectangle(center, size, yaw) -> Polygon:
    forward = np.array([np.cos(yaw), np.sin(yaw)])
    side = np.array([-forward[1], forward[0]])
    signs = ((1, 1), (1, -1), (-1, -1), (-1, 1))
    return Polygon([np.array(center) + a * forward * size[0] / 2 + b * side * size[1] / 2 for a, b in signs])


@pytest.mark.parametrize('seed', SEEDS)
def test_every_junction_keeps_three_arms(seed):
    grid, _ = make_town(seed)
    inner = [n for n in grid.nodes() if 0 < n[0] < len(grid.columns) - 1 and 0 < n[1] < len(grid.rows) - 1]
    assert all(sum(grid.has_arm(node, heading) for heading in range(4)) >= 3 for node in inner)


@pytest.mark.parametrize('seed', SEEDS)
def test_arms_have_two_ends(seed):
    grid, _ = make_town(seed)
    for node in grid.nodes():
        for heading in range(4):
            after = grid.next_node(node, heading)
            if after is not None:
                assert grid.has_arm(node, heading) == grid.has_arm(after, (heading + 2) % 4)


@pytest.mark.parametrize('seed', SEEDS)
def test_buildings_and_trees_stand_off_the_streets(seed):
    _, town = make_town(seed)
    streets = [LineString([road.start, road.end]).buffer(road.width / 2, cap_style=2) for road in town.roads]
    assert len(town.buildings) > 10
    for building in town.buildings:
        outline = rectangle(building.center, building.size, building.yaw)
        assert not any(street.intersects(outline) for street in streets)
    for tree in town.trees:
        trunk = Polygon(LineString([tree.position, np.add(tree.position, 0.01)]).buffer(0.1).exterior)
        assert not any(street.intersects(trunk) for street in streets)


@pytest.mark.parametrize('seed', SEEDS)
def test_town_has_positive_coordinates(seed):
    _, town = make_town(seed)
    assert town.extent[0] == pytest.approx(0.0, abs=1e-6) and town.extent[1] == pytest.approx(0.0, abs=1e-6)
    places = np.array([b.center for b in town.buildings] + [p.position for p in town.poles])
    assert (places > 0).all() and (places < town.extent[2:]).all()


def test_same_seed_same_town():
    assert make_town(5)[1] == make_town(5)[1]
    assert make_town(5)[1] != make_town(6)[1]


@pytest.mark.parametrize('seed', range(8))
def test_routes_are_smooth_and_keep_right(seed):
    rng = np.random.default_rng(seed)
    grid = make_grid(rng)
    route = plan_route(rng, grid, (2, 2), 0, 250.0)
    s = np.arange(0.0, route.path.length, 0.5)
    xy, yaw = route.path.pose(s)
    assert np.abs(np.linalg.norm(np.diff(xy, axis=0), axis=1) - 0.5).max() < 0.05
    assert np.abs(np.diff(yaw)).max() < 0.15, 'a curve is tighter than 3 m'
    assert 0.0 < (grid.rows[2].position - xy[0, 1]) < grid.rows[2].half_width, (
        'eastbound traffic is south of the middle'
    )


def test_stop_lines_lie_before_the_junction():
    rng = np.random.default_rng(3)
    grid = make_grid(rng)
    route = plan_route(rng, grid, (1, 1), 0, 250.0)
    for stop in route.stops:
        position = route.path.pose(np.array([stop.s]))[0][0]
        assert 8.0 < np.linalg.norm(position - grid.position(stop.node)) < 30.0


def test_path_poses():
    path = Path(np.array([[0.0, 0.0], [10.0, 0.0], [10.0, 0.0], [10.0, 10.0]]))
    xy, yaw = path.pose(np.array([-1.0, 5.0, 15.0, 99.0]))
    assert path.length == pytest.approx(20.0)
    assert xy == pytest.approx(np.array([[0.0, 0.0], [5.0, 0.0], [10.0, 5.0], [10.0, 10.0]]))
    assert yaw == pytest.approx([0.0, 0.0, np.pi / 2, np.pi / 2])


def test_speed_limits_allow_braking_into_curves():
    s, limit = Path(np.array([[0.0, 0.0], [50.0, 0.0], [50.0, 50.0]])).speed_limits(braking=2.0)
    assert limit.min() < 3.0
    assert (limit[:-1] ** 2 <= limit[1:] ** 2 + 2 * 2.0 * np.diff(s) + 1e-9).all()


def test_ring_walk_surrounds_the_block():
    grid = make_grid(np.random.default_rng(0))
    block = next(block for block in grid.blocks() if min(block.pavements) > 0)
    xy, _ = ring_walk(block, 0.5).pose(np.linspace(0.0, 100.0, 200))
    inside = (xy > np.array(block.low)).all(axis=1) & (xy < np.array(block.high)).all(axis=1)
    assert not inside.any()
