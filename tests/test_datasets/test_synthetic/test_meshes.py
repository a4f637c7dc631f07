"""Meshes of objects."""

from __future__ import annotations

import numpy as np
import pytest

from mmprune3d.datasets.synthetic.materials import Material
from mmprune3d.datasets.synthetic.mesh_town import build_town
from mmprune3d.datasets.synthetic.meshes import BOX_MARGIN, build_actor
from mmprune3d.datasets.synthetic.raycast import RayScene
from mmprune3d.datasets.synthetic.scene import CATEGORIES, Actor
from mmprune3d.datasets.synthetic.shapes import block, cylinder, ellipsoid

from .small_town import SIZES, empty_town, street_town

ATTRIBUTES = {
    'pedestrian': ('pedestrian.moving', 'pedestrian.standing'),
    'bicycle': ('cycle.with_rider', 'cycle.without_rider'),
    'motorcycle': ('cycle.with_rider', 'cycle.without_rider'),
}


@pytest.mark.parametrize('label', CATEGORIES)
def test_mesh_fills_its_box(label: str) -> None:
    rng = np.random.default_rng(3)
    for seed in range(12):
        size = tuple(np.array(SIZES[label]) * rng.uniform(0.7, 1.4, 3))
        for attribute in ATTRIBUTES.get(label, ('',)):
            mesh = build_actor(Actor(0, label, size, seed), attribute, phase=seed % 4)
            half = np.array([size[1], size[0], size[2]]) / 2 - BOX_MARGIN
            assert np.allclose(mesh.vertices.max(axis=0), half, atol=1e-4)
            assert np.allclose(mesh.vertices.min(axis=0), -half, atol=1e-4)
            assert mesh.faces.min() == 0 and mesh.faces.max() == len(mesh.vertices) - 1
            assert len(mesh.colors) == len(mesh.materials) == len(mesh.faces)
            assert mesh.colors.min() >= 0 and mesh.colors.max() <= 1


def test_looks_follow_from_seed_and_attribute() -> None:
    cars = [build_actor(Actor(0, 'car', SIZES['car'], seed)) for seed in (1, 1, 2)]
    assert np.array_equal(cars[0].vertices, cars[1].vertices) and np.array_equal(cars[0].colors, cars[1].colors)
    assert not np.array_equal(cars[0].colors[:4], cars[2].colors[:4])
    bike = Actor(0, 'bicycle', SIZES['bicycle'], 1)
    with_rider, alone = (build_actor(bike, f'cycle.{name}') for name in ('with_rider', 'without_rider'))
    assert (with_rider.materials == Material.CLOTH).any() and not (alone.materials == Material.CLOTH).any()
    walker = Actor(0, 'pedestrian', SIZES['pedestrian'], 1)
    steps = [build_actor(walker, 'pedestrian.moving', phase).vertices for phase in (0, 2)]
    assert not np.allclose(*steps)


@pytest.mark.parametrize('label', ['car', 'truck', 'bus', 'motorcycle'])
def test_vehicles_show_white_lamps_ahead_and_red_ones_behind(label: str) -> None:
    mesh = build_actor(Actor(0, label, SIZES[label], 5))
    centers = mesh.vertices[mesh.faces].mean(axis=1)
    lamps, red = mesh.materials == Material.LAMP, mesh.colors[:, 1] < 0.2
    length = SIZES[label][1]
    assert centers[lamps & red, 0].max() < -0.3 * length
    white = lamps & (mesh.colors.min(axis=1) > 0.8)
    assert centers[white, 0].min() > 0.15 * length


@pytest.mark.parametrize('mesh', [
    block((-1, -2, 0), (1, 2, 3), (0.5, 0.5, 0.5), Material.PAINT, (0.5, 0.7)),
    cylinder((0, 0, 0), (1, 1, 2), (0.5, 0.3), (0.5, 0.5, 0.5), Material.METAL),
    ellipsoid((1, 2, 3), (1, 2, 0.5), (0.5, 0.5, 0.5), Material.FOLIAGE),
], ids=['block', 'cylinder', 'ellipsoid'])  # fmt: skip
def test_solids_are_closed_and_look_outwards(mesh: object) -> None:
    flux = (mesh.normals() * mesh.areas()[:, None]).sum(axis=0)
    assert np.allclose(flux, 0, atol=1e-4)
    outward = mesh.vertices[mesh.faces].mean(axis=1) - mesh.vertices.mean(axis=0)
    assert ((outward * mesh.normals()).sum(axis=1) > 0).all()


def test_unknown_classes_and_tiny_boxes_are_refused() -> None:
    with pytest.raises(ValueError, match='no mesh for class'):
        build_actor(Actor(0, 'tram', (2.0, 9.0, 3.0), 0))
    with pytest.raises(ValueError, match='too small'):
        build_actor(Actor(7, 'car', (1.9, 0.02, 1.5), 0))


def test_facades_are_measured_along_the_walls() -> None:
    town = street_town()
    built = build_town(town)
    walls = built.walls == 0
    points = built.mesh.vertices[built.mesh.faces[walls]]
    axis = built.wall_axis[walls]
    along = (points[..., :2] * axis[:, None, :2]).sum(axis=-1) + axis[:, None, 2]
    assert along.min() == pytest.approx(0, abs=1e-3)
    assert along.max() == pytest.approx(2 * sum(town.buildings[0].size), abs=1e-3)
    spans = along.max(axis=1) - along.min(axis=1)
    assert sorted(np.round(spans, 2)) == [12.0] * 4 + [14.0] * 4


def test_empty_town_can_be_traced() -> None:
    built = build_town(empty_town())
    scene = RayScene(built.mesh.vertices, built.mesh.faces)
    hits = scene.first_hits(np.float32([0, 0, 1]), np.float32([[1, 0, 0], [0, 0, 1]]), 50.0)
    assert (hits.face == -1).all() and np.allclose(hits.distance, 50.0)
    assert len(scene.first_hits(np.zeros(3), np.zeros((0, 3))).face) == 0
