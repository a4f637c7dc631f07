from __future__ import annotations

import numpy as np
import pytest

from mmprune3d.datasets.synthetic.driving import Driver, Signals, drive
from mmprune3d.datasets.synthetic.paths import Path, Route, StopLine
from mmprune3d.datasets.synthetic.scene import CATEGORIES
from mmprune3d.datasets.synthetic.simulation import Scene
from mmprune3d.datasets.synthetic.sizes import MEAN_SIZES, draw_size
from mmprune3d.datasets.synthetic.tracks import STEP, World, standing
from mmprune3d.datasets.synthetic.traffic import EGO_SIZE, REAR_AXLE
from mmprune3d.datasets.synthetic.vocabulary import ATTRIBUTES

from .test_town import rectangle

STEPS = 202
STRAIGHT = Route(Path(np.array([[0.0, 0.0], [400.0, 0.0]])), ())
CAR = (1.95, 4.62, 1.73)


@pytest.fixture(scope='module')
def scene() -> Scene:
    return Scene((0, 1, 3), duration=19.5)


def speed_of(s: np.ndarray) -> np.ndarray:
    return np.diff(s) / STEP


def test_free_driver_reaches_its_speed():
    s = drive(Driver(STRAIGHT, 5.0, 10.0, 4.6, 1.9), World(STEPS), Signals({}))
    assert speed_of(s)[-1] == pytest.approx(10.0, abs=0.5)


def test_driver_stops_behind_an_obstacle():
    world = World(STEPS)
    world.add(standing('truck', (2.5, 7.0, 3.0), np.array([90.0, 0.0]), 0.0, STEPS))
    s = drive(Driver(STRAIGHT, 5.0, 12.0, 4.6, 1.9), world, Signals({}))
    assert speed_of(s)[-1] < 0.3
    assert 90.0 - 3.5 - (s[-1] + 2.3) == pytest.approx(2.5, abs=1.5), 'gap from nose to truck'


def test_driver_ignores_what_stands_beside_the_lane():
    world = World(STEPS)
    world.add(standing('truck', (2.5, 7.0, 3.0), np.array([90.0, 3.2]), 0.0, STEPS))
    s = drive(Driver(STRAIGHT, 5.0, 10.0, 4.6, 1.9), world, Signals({}))
    assert s[-1] > 150.0


@pytest.mark.parametrize('red', [True, False])
def test_driver_obeys_the_lights(red):
    route = Route(STRAIGHT.path, (StopLine(60.0, (0, 0), 0),))
    # At phase 12 the axis turns red at once and stays so for half a cycle; at phase 0 it begins with green.
    signals = Signals({(0, 0): 12.0 if red else 0.0}, cycle=26.0)
    s = drive(Driver(route, 5.0, 10.0, 4.6, 1.9), World(STEPS), signals)
    nose_after_10_seconds = s[100] + 2.3
    assert (nose_after_10_seconds < 60.5) == red


def test_axes_are_never_green_together():
    signals = Signals({(0, 0): 3.0})
    for time in np.arange(0.0, 30.0, 0.1):
        assert signals.is_red((0, 0), 0, time) or signals.is_red((0, 0), 1, time)


def test_world_rejects_overlap():
    world = World(10)
    world.add(standing('car', CAR, np.array([0.0, 0.0]), 0.0, 10))
    assert not world.try_add(standing('car', CAR, np.array([4.5, 0.0]), 0.0, 10))
    assert world.try_add(standing('car', CAR, np.array([0.0, 2.3]), 0.0, 10))
    turned = standing('car', CAR, np.array([0.0, -3.0]), np.pi / 2, 10)
    assert not world.is_free(turned), 'its length reaches into the first car'
    assert len(world.tracks) == 2


def test_snapshot_is_a_pure_function_of_seed_and_time(scene):
    first = scene.snapshot(7.3)
    scene.snapshot(1.0)
    assert scene.snapshot(7.3) == first
    assert Scene((0, 1, 3), duration=19.5).snapshot(7.3) == first


def test_snapshot_refuses_other_times(scene):
    with pytest.raises(ValueError, match=r'within 0 and 19\.5'):
        scene.snapshot(20.0)


def test_boxes_never_overlap(scene):
    for time in np.arange(0.0, 19.5, 1.5):
        snapshot = scene.snapshot(float(time))
        yaw = snapshot.ego.yaw
        middle = np.array(snapshot.ego.position[:2]) + REAR_AXLE * np.array([np.cos(yaw), np.sin(yaw)])
        boxes = [rectangle(middle, (EGO_SIZE[1], EGO_SIZE[0]), yaw)]
        boxes += [rectangle(s.center[:2], (s.actor.size[1], s.actor.size[0]), s.yaw) for s in snapshot.actors]
        centers = np.array([box.centroid.coords[0] for box in boxes])
        for k in range(len(boxes)):
            for j in np.flatnonzero(np.linalg.norm(centers[k + 1 :] - centers[k], axis=1) < 15.0) + k + 1:
                assert not boxes[k].intersects(boxes[j]), f'{k} and {j} at {time} s'


def test_actors_keep_identity_and_move_at_their_velocity(scene):
    before = {state.actor: state for state in scene.snapshot(5.0).actors}
    after = {state.actor: state for state in scene.snapshot(5.05).actors}
    common = before.keys() & after.keys()
    assert len(common) > 30
    for actor in common:
        moved = np.subtract(after[actor].center, before[actor].center)[:2]
        assert moved == pytest.approx(0.05 * np.array(before[actor].velocity), abs=1e-6)
        assert np.linalg.norm(before[actor].velocity) < 16.0
        assert before[actor].center[2] == pytest.approx(actor.size[2] / 2)


def test_vehicles_drive_forwards(scene):
    moving = [s for t in (2.0, 8.0, 14.0) for s in scene.snapshot(t).actors if s.attribute == 'vehicle.moving']
    assert len(moving) > 10
    for state in moving:
        heading = np.arctan2(state.velocity[1], state.velocity[0])
        assert abs((heading - state.yaw + np.pi) % (2 * np.pi) - np.pi) < 0.35


def test_attributes_fit_classes(scene):
    prefix = {'pedestrian': 'pedestrian.', 'bicycle': 'cycle.', 'motorcycle': 'cycle.'}
    for state in scene.snapshot(10.0).actors:
        if state.actor.label in ('traffic_cone', 'barrier'):
            assert state.attribute == ''
        else:
            assert state.attribute in ATTRIBUTES
            assert state.attribute.startswith(prefix.get(state.actor.label, 'vehicle.'))


def test_ego_drives():
    distances = []
    for number in range(3):
        scene = Scene((0, 0, number), duration=10.0)
        first, last = scene.snapshot(0.0).ego, scene.snapshot(10.0).ego
        distances.append(np.hypot(*np.subtract(first.position, last.position)[:2]))
    assert max(distances) > 40.0


def test_sizes_follow_the_priors():
    rng = np.random.default_rng(0)
    assert set(MEAN_SIZES) == set(CATEGORIES)
    for label, mean in MEAN_SIZES.items():
        drawn = np.array([draw_size(rng, label) for _ in range(300)])
        assert drawn.mean(axis=0) == pytest.approx(mean, rel=0.05)
        assert (drawn > 0.5 * np.array(mean)).all()


def test_all_classes_occur_within_a_few_scenes():
    seen = set()
    for number in range(6):
        seen |= {actor.label for actor in Scene((0, 1, number), duration=2.0).actors}
    assert seen == set(CATEGORIES)
