"""Boxes keep projecting to the pixels that show them, whatever is done to the images or the world."""

from __future__ import annotations

import copy

import cv2
import numpy as np
import pytest
import torch
from mmdet3d.registry import TRANSFORMS
from mmdet3d.structures import LiDARInstance3DBoxes, LiDARPoints

import mmprune3d.datasets.transforms  # noqa: F401
from mmprune3d.ops.cameras import as_4x4, lidar2img_of

SIZE = (60, 100)
SEEDS = range(6)


def make(seed: int) -> dict:
    """A sample with three cameras and a few boxes and points."""
    rng = np.random.default_rng(seed)
    cam2img, lidar2cam = [], []
    for angle in rng.uniform(0, 2 * np.pi, 3):
        cam2img.append([[70.0, 0.5, 48.0], [0, 72.0, 33.0], [0, 0, 1]])
        pose = np.eye(4)
        pose[:3, :3] = [[np.sin(angle), -np.cos(angle), 0], [0, 0, -1], [np.cos(angle), np.sin(angle), 0]]
        pose[:3, 3] = rng.normal(size=3)
        lidar2cam.append(pose.tolist())
    boxes = rng.uniform(-20, 20, (8, 9))
    boxes[:, 3:6] = rng.uniform(0.5, 5, (8, 3))
    return {
        'img': [rng.uniform(0, 255, (*SIZE, 3)).astype(np.float32) for _ in range(3)],
        'cam2img': cam2img,
        'lidar2cam': lidar2cam,
        'img_shape': SIZE,
        'gt_bboxes_3d': LiDARInstance3DBoxes(torch.tensor(boxes, dtype=torch.float64), box_dim=9),
        'points': LiDARPoints(torch.tensor(rng.uniform(-20, 20, (5, 4)), dtype=torch.float32), points_dim=4),
    }


def project(results: dict, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pixels [cameras, ..., 2] and depths [cameras, ...] of points [..., 3]."""
    homogeneous = np.concatenate((points, np.ones((*points.shape[:-1], 1))), axis=-1)
    matrices = lidar2img_of(results).reshape(-1, *[1] * (points.ndim - 1), 4, 4)
    image = (matrices @ homogeneous[..., None])[..., 0]
    return image[..., :2] / image[..., 2:3], image[..., 2]


def corner_pixels(results: dict, flipped: bool = False) -> np.ndarray:
    """Corner pixels of every camera and box, sorted, where the depth is positive (0 elsewhere)."""
    points = results['gt_bboxes_3d'].corners.numpy().astype(np.float64)
    pixels, depth = project(results, points)
    if flipped:
        pixels[..., 0] = SIZE[1] - pixels[..., 0]
    pixels = np.where(depth[..., None] > 0.5, pixels, 0.0)
    order = np.lexsort((pixels[..., 1].round(3), pixels[..., 0].round(3)), axis=-1)
    return np.take_along_axis(pixels, order[..., None], axis=2)


def assert_consistent(results: dict) -> None:
    for key in ('cam2img', 'lidar2cam', 'lidar2img'):
        assert len(results[key]) == 3
        assert all(matrix.shape == (4, 4) and matrix.dtype == np.float64 for matrix in results[key]), key
    for cam2img, lidar2cam, lidar2img in zip(results['cam2img'], results['lidar2cam'], results['lidar2img']):
        np.testing.assert_allclose(lidar2img, cam2img @ lidar2cam)


WORLD = {
    'rotate': {'type': 'MultiViewGlobalRotScaleTrans', 'rot_range': (-3.0, 3.0), 'scale_ratio_range': (1, 1)},
    'scale': {'type': 'MultiViewGlobalRotScaleTrans', 'rot_range': (0, 0), 'scale_ratio_range': (0.5, 2.0)},
    'translate': {
        'type': 'MultiViewGlobalRotScaleTrans',
        'rot_range': (0, 0),
        'scale_ratio_range': (1, 1),
        'translation_std': (3, 2, 1),
    },
    'all': {
        'type': 'MultiViewGlobalRotScaleTrans',
        'rot_range': (-3.0, 3.0),
        'scale_ratio_range': (0.5, 2.0),
        'translation_std': (3, 2, 1),
    },
    'flip': {'type': 'MultiViewRandomFlip3D', 'flip_images': False},
    'flip_x': {
        'type': 'MultiViewRandomFlip3D',
        'flip_ratio_bev_horizontal': 0,
        'flip_ratio_bev_vertical': 1,
        'flip_images': False,
    },
    'turn': {'type': 'MultiViewRandomFlip3D', 'flip_ratio_bev_horizontal': 1, 'flip_ratio_bev_vertical': 1},
}


@pytest.mark.parametrize('seed', SEEDS)
@pytest.mark.parametrize('name', WORLD)
def test_moving_the_world_leaves_every_corner_at_its_pixel(name: str, seed: int) -> None:
    np.random.seed(seed)
    before, transform = make(seed), TRANSFORMS.build(WORLD[name])
    after = transform(copy.deepcopy(before))
    np.testing.assert_allclose(corner_pixels(after), corner_pixels(before), atol=2e-2)
    assert all(np.array_equal(old, new) for old, new in zip(before['img'], after['img']))
    assert_consistent(after)
    (old, depth), (new, _) = (project(each, each['points'].coord.numpy()) for each in (before, after))
    assert (depth > 0.5).any()
    np.testing.assert_allclose(new[depth > 0.5], old[depth > 0.5], atol=2e-2)


def test_the_world_really_moves() -> None:
    np.random.seed(0)
    for name, config in WORLD.items():
        if name == 'flip':
            config = {**config, 'flip_ratio_bev_horizontal': 1}
        before = make(0)
        after = TRANSFORMS.build(config)(copy.deepcopy(before))
        assert (before['gt_bboxes_3d'].tensor - after['gt_bboxes_3d'].tensor).abs().max() > 0.1, name


def test_rotation_has_the_sense_of_mmdet3d() -> None:
    """One box straight ahead, turned by 0.3 rad: it lies at 0.3 rad, and its yaw grows by 0.3, not by another angle."""
    results = make(0)
    results['gt_bboxes_3d'] = LiDARInstance3DBoxes(torch.tensor([[10.0, 0, 0, 4, 2, 1.5, 0.7, 1, 0]]), box_dim=9)
    config = {'type': 'MultiViewGlobalRotScaleTrans', 'rot_range': (0.3, 0.3), 'scale_ratio_range': (1, 1)}
    box = TRANSFORMS.build(config)(results)['gt_bboxes_3d'].tensor[0]
    torch.testing.assert_close(box[:2], 10 * torch.tensor([np.cos(0.3), np.sin(0.3)], dtype=torch.float32))
    torch.testing.assert_close(box[6:], torch.tensor([1.0, np.cos(0.3), np.sin(0.3)], dtype=torch.float32))


@pytest.mark.parametrize('seed', SEEDS)
def test_flipping_world_and_images_mirrors_every_pixel(seed: int) -> None:
    before = make(seed)
    config = {'type': 'MultiViewRandomFlip3D', 'flip_ratio_bev_horizontal': 1.0}
    after = TRANSFORMS.build(config)(copy.deepcopy(before))
    np.testing.assert_allclose(corner_pixels(after, flipped=True), corner_pixels(before), atol=2e-2)
    assert all(np.array_equal(old[:, ::-1], new) for old, new in zip(before['img'], after['img']))
    assert_consistent(after)
    for cam2img, lidar2cam in zip(after['cam2img'], after['lidar2cam']):
        assert np.linalg.det(cam2img[:3, :3]) * np.linalg.det(lidar2cam[:3, :3]) > 0  # no mirror is left over


def pixel_of(image: np.ndarray) -> np.ndarray:
    """Where the bright spot is: x, y in pixels from the left and upper edge."""
    weight = image[..., 0].astype(np.float64)
    rows, columns = np.mgrid[: image.shape[0], : image.shape[1]] + 0.5
    return np.array([(weight * columns).sum(), (weight * rows).sum()]) / weight.sum()


IMAGE = {
    'resize': {'resize_range': (0.8, 1.4), 'flip_prob': 0.0},
    'flip': {'resize_range': (1.0, 1.0), 'flip_prob': 1.0},
    'rotate': {'resize_range': (1.0, 1.0), 'flip_prob': 0.0, 'rotate_range': (-20, 20)},
    'all': {'resize_range': (0.9, 1.3), 'flip_prob': 0.5, 'rotate_range': (-15, 15), 'bottom_crop': (0.0, 0.1)},
    'test': {'training': False},
}


@pytest.mark.parametrize('seed', SEEDS)
@pytest.mark.parametrize('name', IMAGE)
def test_a_bright_spot_moves_as_the_projection_says(name: str, seed: int) -> None:
    """A 3D point is drawn into each image where it projects to; afterwards it is found where it projects to then."""
    np.random.seed(seed)
    rng = np.random.default_rng(seed)
    results = make(seed)
    points = []
    for i, (cam2img, lidar2cam) in enumerate(zip(results['cam2img'], results['lidar2cam'])):
        pixel = np.array([rng.uniform(48, 52), rng.uniform(36, 44), 1.0])
        ray = np.linalg.inv(np.array(cam2img)) @ pixel * 12.0
        points.append((np.linalg.inv(as_4x4(lidar2cam)) @ [*ray, 1.0])[:3])
        spot = np.zeros((*SIZE, 3), np.float32)
        cv2.circle(spot, tuple((pixel[:2] * 16 - 8).round().astype(int).tolist()), 3 * 16, (200, 200, 200), -1, shift=4)
        results['img'][i] = spot
    after = TRANSFORMS.build({'type': 'MultiViewImageAug', 'image_size': (48, 80), **IMAGE[name]})(results)
    assert after['img_shape'] == after['pad_shape'] == (48, 80)
    assert_consistent(after)
    pixels = project(after, np.array(points))[0]
    for camera, image in enumerate(after['img']):
        assert image.shape == (48, 80, 3) and image.dtype == np.float32
        assert np.abs(pixel_of(image) - pixels[camera, camera]).max() < 0.4, f'camera {camera}'


def test_an_image_that_fits_is_left_alone() -> None:
    before = make(0)
    config = {'type': 'MultiViewImageAug', 'image_size': SIZE, 'training': False}
    after = TRANSFORMS.build(config)(copy.deepcopy(before))
    assert all(np.array_equal(old, new) for old, new in zip(before['img'], after['img']))
    np.testing.assert_allclose(lidar2img_of(after), lidar2img_of(before))


def test_published_test_sizes() -> None:
    """900 x 1600 images become 320 x 800: half the size, the lowest 320 of 450 rows."""
    results = make(0)
    results['img'] = [np.zeros((900, 1600, 3), np.float32)] * 3
    results['img'][0] = np.broadcast_to(np.arange(900, dtype=np.float32)[:, None, None] / 4, (900, 1600, 3))
    old = as_4x4(results['cam2img'][0])
    after = TRANSFORMS.build({'type': 'MultiViewImageAug', 'image_size': (320, 800), 'training': False})(results)
    expected = np.array([[0.5, 0, 0], [0, 0.5, -130], [0, 0, 1]]) @ old[:3, :3]
    np.testing.assert_allclose(after['cam2img'][0][:3, :3], expected)
    assert abs(after['img'][0][0, 0, 0] - 260 / 4) < 1.5 and abs(after['img'][0][-1, 0, 0] - 224) < 1.5


def test_outside_the_image_it_is_black() -> None:
    results = make(0)
    results['img'] = [np.full((*SIZE, 3), 9.0, np.float32)] * 3
    after = TRANSFORMS.build({'type': 'MultiViewImageAug', 'image_size': (80, 100), 'flip_prob': 0.0})(results)
    assert (after['img'][0][:20] == 0).all() and (after['img'][0][20:] == 9).all()


def test_photometric_distortion_touches_nothing_but_colours() -> None:
    np.random.seed(1)
    before = make(0)
    after = TRANSFORMS.build({'type': 'MultiViewPhotoMetricDistortion'})(copy.deepcopy(before))
    assert after['cam2img'] == before['cam2img'] and after['lidar2cam'] == before['lidar2cam']
    changes = [np.abs(new - old).mean() for old, new in zip(before['img'], after['img'])]
    assert len({round(float(change), 3) for change in changes}) == 3 and max(changes) > 1
    assert all(new.dtype == np.float32 and new.min() >= 0 and new.max() <= 255 for new in after['img'])


def test_mmdet3d_loads_and_packs_what_we_need(tmp_path) -> None:
    """Info format 2 -> mmdet3d's loader -> ours -> mmdet3d's packer: matrices and images belong together, in BGR."""
    images = {}
    for i in range(3):
        picture = np.zeros((*SIZE, 3), np.uint8)
        picture[..., 0] = 10 + i  # blue
        cv2.imwrite(str(tmp_path / f'{i}.png'), picture)
        source = make(i)
        images[f'CAM_{i}'] = {
            'img_path': str(tmp_path / f'{i}.png'),
            'cam2img': source['cam2img'][i],
            'lidar2cam': source['lidar2cam'][i],
        }
    loader = TRANSFORMS.build({'type': 'LoadMultiViewImageFromFiles', 'to_float32': True, 'num_views': 3})
    loaded = loader({'images': images})
    augmented = TRANSFORMS.build({'type': 'MultiViewImageAug', 'image_size': (30, 50), 'training': False})(loaded)
    packed = TRANSFORMS.build({'type': 'Pack3DDetInputs', 'keys': ['img']})(augmented)
    assert packed['inputs']['img'].shape == (3, 3, 30, 50)
    assert [int(image[0].max()) for image in packed['inputs']['img']] == [10, 11, 12]
    meta = packed['data_samples'].metainfo
    assert meta['img_shape'] == meta['pad_shape'] == (30, 50)
    for i, camera in enumerate(images.values()):
        expected = np.diag([0.5, 0.5, 1, 1]) @ as_4x4(camera['cam2img']) @ as_4x4(camera['lidar2cam'])
        np.testing.assert_allclose(lidar2img_of(meta)[i], expected)
        np.testing.assert_allclose(meta['lidar2img'][i], expected)
