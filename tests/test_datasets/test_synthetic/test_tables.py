from __future__ import annotations

import re

import numpy as np
import pytest
from nuscenes.utils import splits
from nuscenes.utils.geometry_utils import points_in_box, view_points

from mmprune3d.datasets.synthetic.recording import rig_records
from mmprune3d.datasets.synthetic.renderer import Renderer
from mmprune3d.datasets.synthetic.scene import Actor, ActorState, EgoState
from mmprune3d.datasets.synthetic.simulation import Scene
from mmprune3d.datasets.synthetic.tables import Frame, Observation, SceneRecord, scene_tables, visibility_token
from mmprune3d.datasets.synthetic.vocabulary import TABLE_NAMES, make_token


def test_all_tables_hold_unique_tokens(nusc):
    assert set(nusc.table_names) == set(TABLE_NAMES)
    for name in nusc.table_names:
        tokens = [record['token'] for record in getattr(nusc, name)]
        assert len(set(tokens)) == len(tokens) > 0
        if name != 'visibility':
            assert all(re.fullmatch('[0-9a-f]{32}', token) for token in tokens)


def test_scene_names_are_official(nusc):
    names = [scene['name'] for scene in nusc.scene]
    assert names == [splits.train[0], splits.val[0]]


def test_sample_chains(nusc):
    for scene in nusc.scene:
        token, times = scene['first_sample_token'], []
        while token:
            sample = nusc.get('sample', token)
            assert sample['scene_token'] == scene['token']
            times.append(sample['timestamp'])
            last, token = token, sample['next']
        assert last == scene['last_sample_token'] and len(times) == scene['nbr_samples'] == 3
        assert np.diff(times).tolist() == [500_000, 500_000]


def test_sample_data_chains(nusc):
    assert {len(sample['data']) for sample in nusc.sample} == {12}
    starts = [record for record in nusc.sample_data if not record['prev']]
    assert len(starts) == 12 * len(nusc.scene)
    for record in starts:
        chain = [record]
        while chain[-1]['next']:
            chain.append(nusc.get('sample_data', chain[-1]['next']))
            assert chain[-1]['prev'] == chain[-2]['token'] and chain[-1]['channel'] == record['channel']
        keys = [data['is_key_frame'] for data in chain]
        assert keys == ([True, False, True, False, True] if record['channel'] == 'LIDAR_TOP' else [True] * 3)
        assert (np.diff([data['timestamp'] for data in chain]) > 0).all()
        for data in chain:
            sample = nusc.get('sample', data['sample_token'])
            assert 0 <= sample['timestamp'] - data['timestamp'] < 500_000, 'sweeps belong to the sample that follows'


def test_files_lie_where_nuscenes_has_them(nusc, tiny):
    for data in nusc.sample_data:
        folder = 'samples' if data['is_key_frame'] else 'sweeps'
        assert data['filename'].startswith(f'{folder}/{data["channel"]}/')
        assert f'__{data["channel"]}__{data["timestamp"]}.' in data['filename']
        assert (tiny.root / data['filename']).is_file()


def test_annotation_chains(nusc):
    for instance in nusc.instance:
        chain = [nusc.get('sample_annotation', instance['first_annotation_token'])]
        while chain[-1]['next']:
            chain.append(nusc.get('sample_annotation', chain[-1]['next']))
            assert chain[-1]['prev'] == chain[-2]['token']
        assert chain[-1]['token'] == instance['last_annotation_token'] and len(chain) == instance['nbr_annotations']
        assert {annotation['instance_token'] for annotation in chain} == {instance['token']}
        assert len({tuple(annotation['size']) for annotation in chain}) == 1


def test_annotations_are_in_range_and_not_the_ego_vehicle(nusc):
    for sample in nusc.sample:
        data = nusc.get('sample_data', sample['data']['LIDAR_TOP'])
        ego = np.array(nusc.get('ego_pose', data['ego_pose_token'])['translation'])
        distances = [np.linalg.norm((nusc.get_box(token).center - ego)[:2]) for token in sample['anns']]
        assert min(distances) > 2.0 and max(distances) <= 80.01
        assert len(distances) > 5


def test_point_counts_match_the_devkit(nusc):
    total = 0
    for sample in nusc.sample:
        path, boxes, _ = nusc.get_sample_data(sample['data']['LIDAR_TOP'])
        points = np.fromfile(path, np.float32).reshape(-1, 5)[:, :3].T
        for box in boxes:
            counted = int(points_in_box(box, points).sum())
            assert counted == nusc.get('sample_annotation', box.token)['num_lidar_pts']
            total += counted
    assert total > 500


def test_velocities_of_the_devkit(nusc):
    speeds = {'vehicle.parked': [], 'vehicle.moving': []}
    for annotation in nusc.sample_annotation:
        names = [nusc.get('attribute', token)['name'] for token in annotation['attribute_tokens']]
        velocity = nusc.box_velocity(annotation['token'])[:2]
        if names and names[0] in speeds and not np.isnan(velocity).any():
            speeds[names[0]].append(np.linalg.norm(velocity))
    assert max(speeds['vehicle.parked']) < 0.01
    assert np.median(speeds['vehicle.moving']) > 1.0


def test_ego_drives_on_the_map(nusc):
    for scene in nusc.scene:
        mask = nusc.get('map', nusc.get('log', scene['log_token'])['map_token'])['mask']
        sample = nusc.get('sample', scene['first_sample_token'])
        pose = nusc.get('ego_pose', nusc.get('sample_data', sample['data']['LIDAR_TOP'])['ego_pose_token'])
        x, y, _ = pose['translation']
        assert mask.is_on_mask(x, y).all()
        assert 0.05 < mask.mask().mean() / 255 < 0.6


def test_radar_and_lidar_files_load(nusc):
    from nuscenes.utils.data_classes import LidarPointCloud, RadarPointCloud

    for channel, token in nusc.sample[0]['data'].items():
        if channel == 'LIDAR_TOP':
            assert LidarPointCloud.from_file(nusc.get_sample_data_path(token)).points.shape[1] > 5000
        elif channel.startswith('RADAR'):
            assert RadarPointCloud.from_file(nusc.get_sample_data_path(token)).points.shape[0] == 18


def test_boxes_cover_what_the_cameras_see(nusc, tiny):
    """Projected by the devkit, the annotated boxes must enclose the pixels in which their objects were rendered."""
    import cv2

    job, checked = tiny.config.jobs()[1], 0
    scene = Scene(job.seed, duration=1.0)
    sample = next(s for s in nusc.sample if s['scene_token'] == nusc.scene[1]['token'])
    rendered = Renderer(scene.town, scene.light, job.image_size, seed=0, sensors=('camera',)).render(
        scene.snapshot(0.0), 0
    )
    centers = {a.actor.instance: np.array(a.center) for a in scene.snapshot(0.0).actors}
    annotated = {token: np.array(nusc.get('sample_annotation', token)['translation']) for token in sample['anns']}
    for channel, mask in rendered.instance_maps.items():
        _, boxes, intrinsic = nusc.get_sample_data(sample['data'][channel])
        for box in boxes:
            near = min(centers, key=lambda key: np.linalg.norm(centers[key] - annotated[box.token]))
            pixels = np.argwhere(mask == near)
            if len(pixels) < 20 or box.corners()[2].min() < 0.5:
                continue
            hull = cv2.convexHull(view_points(box.corners(), intrinsic, normalize=True)[:2].T.astype(np.float32))
            inside = [cv2.pointPolygonTest(hull, (float(c) + 0.5, float(r) + 0.5), True) > -1.0 for r, c in pixels]
            assert np.mean(inside) > 0.98, (channel, nusc.get('sample_annotation', box.token)['category_name'])
            checked += 1
    assert checked >= 5


@pytest.mark.parametrize(
    ('fraction', 'token'), [(0.0, '1'), (0.4, '1'), (0.5, '2'), (0.7, '3'), (0.81, '4'), (1.0, '4')]
)
def test_visibility_levels(fraction, token):
    assert visibility_token(fraction) == token


def make_frames(seen: list[bool]) -> list[Frame]:
    state = ActorState(Actor(7, 'car', (1.9, 4.5, 1.7), 0), (10.0, 0.0, 0.85), 0.0, (0.0, 0.0), 'vehicle.parked')
    ego = EgoState((0.0, 0.0, 0.0), 0.0, (0.0, 0.0))
    return [Frame(0.5 * k, True, ego, {}, (Observation(state, int(hit), 0, 0.0),)) for k, hit in enumerate(seen)]


def test_objects_are_annotated_from_first_to_last_sight():
    scene = SceneRecord('scene-0001', 0, 'test', '')
    tables = scene_tables(scene, (), make_frames([False, True, False, True, False]), 'maps/x.png')
    samples = [annotation['sample_token'] for annotation in tables['sample_annotation']]
    assert samples == [scene.token('sample', k) for k in (1, 2, 3)]
    assert [a['num_lidar_pts'] for a in tables['sample_annotation']] == [1, 0, 1]
    assert tables['instance'][0]['nbr_annotations'] == 3


def test_objects_that_nobody_sees_are_not_annotated():
    tables = scene_tables(SceneRecord('scene-0001', 0, 'test', ''), (), make_frames([False, False]), 'maps/x.png')
    assert tables['sample_annotation'] == [] and tables['instance'] == []


def test_rig_has_the_sensors_of_nuscenes():
    records = rig_records((352, 128), ('camera', 'lidar', 'radar'))
    assert [record.modality for record in records] == ['camera'] * 6 + ['lidar'] + ['radar'] * 5
    assert len({record.channel for record in records}) == 12
    assert all(len(record.intrinsic) == (3 if record.modality == 'camera' else 0) for record in records)


def test_tokens_depend_on_all_parts():
    assert make_token('a', 1) == make_token('a', 1) != make_token('a', 2)
