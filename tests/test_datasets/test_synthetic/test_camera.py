"""Pictures agree with the calibration, the boxes and the geometry."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from nuscenes.utils.data_classes import Box
from nuscenes.utils.geometry_utils import view_points
from pyquaternion import Quaternion

from mmprune3d.datasets.synthetic.camera import SKY_DEPTH
from mmprune3d.datasets.synthetic.camera_view import CameraView
from mmprune3d.datasets.synthetic.renderer import Renderer
from mmprune3d.datasets.synthetic.rig import CAMERAS, scaled_intrinsic
from mmprune3d.datasets.synthetic.scene import ActorState, Light, Snapshot

from .small_town import LIGHT, SIZES, actor, empty_town, snapshot, street_town, walled_town

SIZE = (352, 128)


def projected_box(state: ActorState, view: Snapshot, channel: str, size: tuple[int, int] = SIZE) -> np.ndarray | None:
    """(left, top, right, bottom) of a box as the devkit projects it, clipped to the image; None if partly behind."""
    box = Box(state.center, state.actor.size, Quaternion(axis=[0, 0, 1], angle=state.yaw))
    spec = CAMERAS[channel]
    box.translate(-np.array(view.ego.position))
    box.rotate(Quaternion(axis=[0, 0, 1], angle=view.ego.yaw).inverse)
    box.translate(-np.array(spec.translation))
    box.rotate(Quaternion(spec.rotation).inverse)
    corners = box.corners()
    if (corners[2] < 0.3).any():
        return None
    pixels = view_points(corners, scaled_intrinsic(spec, *size), normalize=True)[:2]
    low, high = pixels.min(axis=1), pixels.max(axis=1)
    return np.concatenate([np.clip(low, 0, size), np.clip(high, 0, size)])


def seen_box(instances: np.ndarray, instance: int) -> np.ndarray:
    """(left, top, right, bottom) of the pixels of an instance."""
    rows, columns = np.nonzero(instances == instance)
    return np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1], float)


def iou(a: np.ndarray, b: np.ndarray) -> float:
    sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    common = np.prod(np.maximum(sides, 0))
    return common / (np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - common)


@pytest.fixture(scope='module')
def cameras() -> Renderer:
    return Renderer(empty_town(), LIGHT, SIZE, seed=1, sensors=('camera',))


@pytest.mark.parametrize('yaw', [0.0, 2.2])
def test_boxes_surround_the_pixels_of_their_actors(cameras: Renderer, yaw: float) -> None:
    turn = Quaternion(axis=[0, 0, 1], angle=yaw)
    places = [(14, 1.0), (9, 11), (-3, 12), (-14, 0.5), (-4, -12), (9, -11), (22, -4.5)]
    actors = []
    for index, place in enumerate(places):
        x, y, _ = turn.rotate([*place, 0.0])
        actors.append(
            actor(index, 'bus' if index % 2 else 'trailer', x + 3, y - 2, yaw=0.6 * index, size=(1.6, 3.0, 2.0))
        )
    view = snapshot(*actors, yaw=yaw, at=(3.0, -2.0))
    rendered, scores = cameras.render(view, 0), []
    for channel, instances in rendered.instance_maps.items():
        for state in actors:
            box = projected_box(state, view, channel)
            if (instances == state.actor.instance).sum() < 60 or box is None:
                continue
            seen = seen_box(instances, state.actor.instance)
            assert (seen[:2] >= box[:2] - 1).all() and (seen[2:] <= box[2:] + 1).all()
            scores.append(iou(seen, box))
    assert len(scores) >= len(places) and np.median(scores) > 0.88


def test_every_class_stays_in_its_box_and_is_seen(cameras: Renderer) -> None:
    labels = ['car', 'truck', 'construction_vehicle', 'pedestrian', 'motorcycle', 'bicycle', 'traffic_cone', 'barrier']
    for index, label in enumerate(labels):
        state = actor(index, label, 4.0 + 5.0 * SIZES[label][2], 0.5, yaw=0.5)  # the crop must not cut its top
        view = snapshot(state)
        rendered = cameras.render(view, 0)
        seen = seen_box(rendered.instance_maps['CAM_FRONT'], index)
        box = projected_box(state, view, 'CAM_FRONT')
        assert (seen[:2] >= box[:2] - 1).all() and (seen[2:] <= box[2:] + 1).all()
        assert iou(seen, box) > 0.6, label
        assert rendered.visibility[index] > 0.9


def test_depth_of_wall_ground_and_sky() -> None:
    renderer = Renderer(walled_town(20.0), LIGHT, SIZE, seed=1, sensors=('camera',))
    depth = renderer.render(snapshot(), 0).depths['CAM_FRONT']
    spec, intrinsic = CAMERAS['CAM_FRONT'], scaled_intrinsic(CAMERAS['CAM_FRONT'], *SIZE)
    assert np.allclose(depth[40, 60:300], 20.0 - spec.translation[0], rtol=1e-4)
    row = 110
    expected = spec.translation[2] * intrinsic[1, 1] / (row + 0.5 - intrinsic[1, 2])
    assert np.allclose(depth[row], expected, rtol=1e-4)
    back = renderer.render(snapshot(), 0).depths['CAM_BACK']
    assert (back[:20] == SKY_DEPTH).all()


def test_depth_of_an_actor() -> None:
    renderer = Renderer(empty_town(), LIGHT, SIZE, seed=1, sensors=('camera',))
    state = actor(0, 'bus', 15.0, 0.0, size=(2.5, 10.0, 3.0))
    rendered = renderer.render(snapshot(state), 0)
    nearest = rendered.depths['CAM_FRONT'][rendered.instance_maps['CAM_FRONT'] == 0].min()
    assert nearest == pytest.approx(10.0 - CAMERAS['CAM_FRONT'].translation[0], abs=0.15)


def test_occlusion_lowers_visibility() -> None:
    renderer = Renderer(walled_town(20.0), LIGHT, SIZE, seed=1, sensors=('camera',))
    low_bus = actor(1, 'bus', 10.0, 4.0, size=(2.9, 8.0, 2.2))
    actors = (actor(0, 'car', 40.0, 0.0), low_bus, actor(2, 'pedestrian', 16.5, 5.5), actor(3, 'car', -20.0, 0.0))
    visibility = renderer.render(snapshot(*actors), 0).visibility
    assert visibility[0] == 0.0
    assert visibility[1] > 0.9 and visibility[3] > 0.9
    assert visibility[2] < 0.3


def test_bytes_follow_from_seed_and_index_alone() -> None:
    actors = (actor(0, 'car', 12.0, 1.0), actor(1, 'pedestrian', 8.0, -2.0))
    first, other = snapshot(*actors), snapshot(*actors, at=(31.0, 7.0), yaw=1.0)
    one, two = (Renderer(street_town(), LIGHT, SIZE, seed=9) for _ in range(2))
    reference = one.render(first, 4)
    two.render(other, 0)
    again = two.render(first, 4)
    changed = two.render(first, 5)
    for channel in CAMERAS:
        assert np.array_equal(reference.images[channel], again.images[channel])
        assert not np.array_equal(reference.images[channel], changed.images[channel])
        assert np.array_equal(reference.instance_maps[channel], changed.instance_maps[channel])
    assert reference.points.tobytes() == again.points.tobytes()
    for channel, array in reference.radars.items():
        assert array.tobytes() == again.radars[channel].tobytes()
    single = Renderer(street_town(), LIGHT, SIZE, seed=9, sensors=('camera', 'lidar')).render(
        first, 4, sensors=('lidar',)
    )
    assert single.points.tobytes() == reference.points.tobytes() and not single.images


def test_pictures_show_light_and_colour() -> None:
    view = snapshot(actor(0, 'car', 12.0, 1.0))
    noon = Renderer(street_town(), LIGHT, SIZE, seed=2, sensors=('camera',)).render(view, 0).images['CAM_FRONT']
    dusk = Renderer(street_town(), Light(0.8, 0.08, 0.5, 0.9), SIZE, seed=2, sensors=('camera',)).render(view, 0)
    assert noon.shape == (128, 352, 3) and noon.dtype == np.uint8
    assert noon.mean() > 1.1 * dusk.images['CAM_FRONT'].mean()
    assert noon[5].mean(axis=0)[2] > noon[100].mean(axis=0)[2]  # the sky is bluer than the street
    assert np.ptp(noon) > 150


def test_supersampling_keeps_the_geometry() -> None:
    view = snapshot(actor(0, 'car', 12.0, 1.0))
    pictures = [Renderer(empty_town(), LIGHT, SIZE, 3, ('camera',), supersample=n).render(view, 0) for n in (1, 2)]
    masks = [picture.instance_maps['CAM_FRONT'] == 0 for picture in pictures]
    assert pictures[1].images['CAM_FRONT'].shape == (128, 352, 3)
    assert (masks[0] & masks[1]).sum() / (masks[0] | masks[1]).sum() > 0.9


def test_wrong_use_is_refused() -> None:
    tilted = dataclasses.replace(CAMERAS['CAM_FRONT'], rotation=tuple(Quaternion(axis=[0, 1, 0], angle=0.1).elements))
    with pytest.raises(ValueError, match='tilted'):
        CameraView(tilted, *SIZE)
    with pytest.raises(ValueError, match='unknown sensors'):
        Renderer(empty_town(), LIGHT, SIZE, 0, sensors=('sonar',))
    with pytest.raises(ValueError, match='supersample'):
        Renderer(empty_town(), LIGHT, SIZE, 0, ('lidar',), supersample=0)
    renderer = Renderer(empty_town(), LIGHT, SIZE, 0, sensors=('lidar',))
    with pytest.raises(ValueError, match='unknown sensors'):
        renderer.render(snapshot(), 0, sensors=('camera',))
    hovering = dataclasses.replace(snapshot(), ego=dataclasses.replace(snapshot().ego, position=(0.0, 0.0, 2.0)))
    with pytest.raises(ValueError, match='on the ground'):
        renderer.render(hovering, 0)
