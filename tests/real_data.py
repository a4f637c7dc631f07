"""Where the real frames are: `$MMPRUNE3D_REAL_DATA`, or ``shared/data`` beside the checkout."""

from __future__ import annotations

import math
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

VARIABLE = 'MMPRUNE3D_REAL_DATA'
FRAMES = ('nuscenes_frame', 'nuscenes_frame_2')
"""Two keyframes of nuScenes, from two scenes; see `frame_folder`."""


def real_data_root() -> Path:
    """The folder that holds the frames; it need not exist."""
    return Path(os.environ.get(VARIABLE) or Path(__file__).resolve().parents[2] / 'shared' / 'data')


def needs(name: str) -> pytest.MarkDecorator:
    """Skips, with the reason, where folder `name` of the real data is absent."""
    reason = f'no real data {name} (looked in the folder that ${VARIABLE} names, or beside the checkout)'
    return pytest.mark.skipif(not (real_data_root() / name).is_dir(), reason=reason)


def each_frame() -> list[Any]:
    """Both keyframes as parameters of a test, each skipped where it is absent."""
    return [pytest.param(name, marks=[needs(name), pytest.mark.real_data], id=name) for name in FRAMES]


def frame_folder(name: str, empty: Path) -> Path:
    """A folder with `infos.pkl` of one keyframe, and what it names beside it; the second is put together in `empty`."""
    source = real_data_root() / name
    if (source / 'infos.pkl').is_file():
        return source
    stored = yaml.safe_load((source / 'sample0000.yaml').read_text())
    for image in (source / 'imgs').iterdir():
        (empty / image.name).symlink_to(image)
    (empty / 'LIDAR_TOP.bin').symlink_to(source / '0.bin')
    categories = pickle.loads((real_data_root() / FRAMES[0] / 'infos.pkl').read_bytes())['metainfo']['categories']
    metainfo = {'categories': categories, 'dataset': 'nuscenes', 'version': 'v1.0-trainval', 'info_version': '1.1'}
    (empty / 'infos.pkl').write_bytes(pickle.dumps({'metainfo': metainfo, 'data_list': [_info(stored, categories)]}))
    return empty


def _info(stored: dict[str, Any], categories: dict[str, int]) -> dict[str, Any]:
    """BEVDet's description of a keyframe in mmdet3d's format v2."""
    lidar2ego = _pose(stored['lidar2ego_rotation'], stored['lidar2ego_translation'])
    columns = ('gt_boxes', 'gt_names', 'gt_velocity', 'valid_flag', 'num_lidar_pts', 'num_radar_pts')
    rows = zip(*(stored[key] for key in columns))
    return {
        'sample_idx': 0,
        'token': stored['token'],
        'timestamp': stored['timestamp'] / 1e6,
        'ego2global': _pose(stored['ego2global_rotation'], stored['ego2global_translation']).tolist(),
        'images': {name: _camera(name, camera) for name, camera in stored['cams'].items()},
        'lidar_points': {'lidar2ego': lidar2ego.tolist(), 'lidar_path': 'LIDAR_TOP.bin', 'num_pts_feats': 5},
        'instances': [_instance(*row, categories) for row in rows],
    }


def _instance(
    box: list[float], name: str, velocity: list[float], valid: bool, lidar: int, radar: int, labels: dict[str, int]
) -> dict[str, Any]:
    """There: width, length, height, and yaw from -y clockwise; in v2: length, width, height, and yaw from x."""
    x, y, z, width, length, height, yaw = box
    turned = (-yaw - math.pi / 2 + math.pi) % (2 * math.pi) - math.pi
    return {
        'bbox_3d': [x, y, z, length, width, height, turned],
        'bbox_3d_isvalid': valid,
        'bbox_label': labels[name],
        'bbox_label_3d': labels[name],
        'num_lidar_pts': lidar,
        'num_radar_pts': radar,
        'velocity': velocity,
    }


def _camera(name: str, stored: dict[str, Any]) -> dict[str, Any]:
    cam2lidar = np.eye(4)
    cam2lidar[:3] = np.c_[stored['sensor2lidar_rotation'], stored['sensor2lidar_translation']]
    return {
        'img_path': f'{name}.jpg',
        'cam2img': stored['cam_intrinsic'],
        'cam2ego': _pose(stored['sensor2ego_rotation'], stored['sensor2ego_translation']).tolist(),
        'lidar2cam': np.linalg.inv(cam2lidar).tolist(),
        'sample_data_token': stored['sample_data_token'],
        'timestamp': stored['timestamp'] / 1e6,
    }


def _pose(quaternion: list[float], translation: list[float]) -> np.ndarray:
    """[4, 4] of a rotation as w, x, y, z and a place."""
    from pyquaternion import Quaternion

    pose = Quaternion(quaternion).transformation_matrix
    pose[:3, 3] = translation
    return pose
