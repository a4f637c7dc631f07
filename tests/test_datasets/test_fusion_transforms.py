"""After `RecordAugmentation` the cameras stay as recorded, and two matrices say what happened to pixels and world."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmdet3d.registry import DATASETS, TRANSFORMS
from mmengine.config import Config
from mmengine.registry import init_default_scope

import mmprune3d
from mmprune3d.ops.cameras import as_4x4, lidar2img_of
from tests.real_data import each_frame, frame_folder

from .test_transforms import SIZE, make, pixel_of

CAMERAS = ('cam2img', 'lidar2cam', 'lidar2img', 'cam2lidar')
IMAGES = {
    'type': 'MultiViewImageAug',
    'image_size': (48, 80),
    'resize_range': (0.9, 1.3),
    'rotate_range': (-15, 15),
    'per_image': True,
}
WORLD = {
    'type': 'MultiViewGlobalRotScaleTrans',
    'rot_range': (-3.0, 3.0),
    'scale_ratio_range': (0.5, 2.0),
    'translation_std': (3, 2, 1),
}
FLIP = {'type': 'MultiViewRandomFlip3D', 'flip_ratio_bev_vertical': 0.5, 'flip_images': False}
RECORD = {'type': 'RecordAugmentation'}
SEEDS = range(8)


def run(steps: list[dict], results: dict, seed: int = 0) -> dict:
    np.random.seed(seed)
    for step in steps:
        results = TRANSFORMS.build(step)(results)
    return results


def moved(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Points [..., 3] moved by a 4x4 (or one per camera, [cameras, 4, 4]: then [cameras, ..., 3])."""
    homogeneous = np.concatenate((points, np.ones((*points.shape[:-1], 1))), axis=-1)
    return np.einsum('...ij,...j->...i', matrix, homogeneous)[..., :3]


def seen_at(results: dict, points: np.ndarray) -> np.ndarray:
    """u, v, depth [cameras, N, 3] of points [N, 3] of the augmented world, by the documented chain."""
    recorded = moved(np.linalg.inv(results['lidar_aug_matrix']), points)
    u, v, depth = np.moveaxis(moved(np.stack(results['lidar2img'])[:, None], recorded), -1, 0)
    return moved(np.stack(results['img_aug_matrix'])[:, None], np.stack((u / depth, v / depth, depth), axis=-1))


@pytest.mark.parametrize('seed', SEEDS)
def test_the_same_pixels_as_with_augmented_cameras(seed: int) -> None:
    """The oracle: without `RecordAugmentation` the same draws end up in lidar2img (tested in test_transforms)."""
    steps = [IMAGES, WORLD, FLIP]
    folded, recorded = run(steps, make(seed), seed), run([RECORD, *steps], make(seed), seed)
    assert all(np.array_equal(a, b) for a, b in zip(folded['img'], recorded['img'], strict=True))
    assert torch.equal(folded['gt_bboxes_3d'].tensor, recorded['gt_bboxes_3d'].tensor)
    assert torch.equal(folded['points'].tensor, recorded['points'].tensor)
    points = np.concatenate((folded['gt_bboxes_3d'].corners.flatten(0, 1).numpy(), folded['points'].coord.numpy()))
    u, v, depth = np.moveaxis(moved(lidar2img_of(folded)[:, None], points.astype(np.float64)), -1, 0)
    expected = np.stack((u / depth, v / depth, depth), axis=-1)
    visible = depth > 0.5
    assert visible.any()
    np.testing.assert_allclose(seen_at(recorded, points)[visible], expected[visible], rtol=1e-7, atol=1e-6)


@pytest.mark.parametrize('seed', SEEDS)
def test_cameras_stay_and_the_world_can_be_put_back(seed: int) -> None:
    before = run([RECORD], make(seed))
    assert all(np.array_equal(each, np.eye(4)) for each in (*before['img_aug_matrix'], before['lidar_aug_matrix']))
    after = run([IMAGES, WORLD, FLIP], copy.deepcopy(before), seed)
    for key in CAMERAS:
        assert all(np.array_equal(a, b) for a, b in zip(before[key], after[key], strict=True)), key
        assert all(each.shape == (4, 4) and each.dtype == np.float64 for each in after[key]), key
    for cam2lidar, lidar2cam in zip(after['cam2lidar'], after['lidar2cam']):
        np.testing.assert_allclose(cam2lidar @ lidar2cam, np.eye(4), atol=1e-12)
    back = np.linalg.inv(after['lidar_aug_matrix'])
    old, new = before['points'].coord.double().numpy(), after['points'].coord.double().numpy()
    assert np.abs(new - old).max() > 0.1
    np.testing.assert_allclose(moved(back, new), old, atol=1e-4)
    # a flip renumbers the corners of a box, so their sums and spreads are compared
    old, new = (each['gt_bboxes_3d'].corners.double().numpy() for each in (before, after))
    new = moved(back, new)
    np.testing.assert_allclose(new.mean(axis=1), old.mean(axis=1), atol=1e-4)
    np.testing.assert_allclose(np.sort(new, axis=1), np.sort(old, axis=1), atol=1e-4)


@pytest.mark.parametrize('resample', ['pillow', 'opencv'])
@pytest.mark.parametrize('seed', SEEDS)
def test_a_bright_spot_moves_as_the_matrices_say(seed: int, resample: str) -> None:
    rng = np.random.default_rng(seed)
    results = run([RECORD], make(seed))
    points = []
    for i in range(3):
        pixel = np.array([rng.uniform(48, 52), rng.uniform(36, 44), 1.0])
        points.append(moved(np.linalg.inv(results['lidar2img'][i]), pixel * 12.0))
        spot = np.zeros((*SIZE, 3), np.uint8)
        cv2.circle(spot, tuple((pixel[:2] * 16 - 8).round().astype(int).tolist()), 3 * 16, (200, 200, 200), -1, shift=4)
        results['img'][i] = spot
    after = run([{**IMAGES, 'resize_range': (0.7, 1.3), 'resample': resample}, WORLD, FLIP], results, seed)
    assert len({each.tobytes() for each in after['img_aug_matrix']}) == 3  # every image has its own draw
    pixels = seen_at(after, moved(after['lidar_aug_matrix'], np.array(points)))
    for camera, image in enumerate(after['img']):
        assert image.shape == (48, 80, 3) and image.dtype == np.uint8
        assert np.abs(pixel_of(image) - pixels[camera, camera, :2]).max() < 0.4, f'camera {camera}'


def test_resample_methods_are_checked_and_agree() -> None:
    with pytest.raises(ValueError, match='pillow, opencv'):
        TRANSFORMS.build({**IMAGES, 'resample': 'nearest'})
    smooth = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 255, (90, 160, 3)).astype(np.uint8), (0, 0), 4)
    for factor in (0.5, 1.4):
        config = {'type': 'MultiViewImageAug', 'image_size': (40, 70), 'training': False, 'test_resize': factor}
        images = [
            run([{**config, 'resample': each}], {**make(0), 'img': [smooth] * 3})['img'][0].astype(float)
            for each in ('pillow', 'opencv')
        ]
        assert np.abs(images[0] - images[1]).max() <= 3 and images[0].std() > 3


def test_published_test_sizes() -> None:
    """900 x 1600 pixels at 0.48, the lowest 256 of 432 rows, the middle 704 of 768 columns."""
    results = run([RECORD], make(0))
    results['img'] = [np.zeros((900, 1600, 3), np.uint8)] * 3
    config = {'type': 'MultiViewImageAug', 'image_size': (256, 704), 'training': False, 'test_resize': 0.48}
    after = run([config], results)
    expected = np.array([[0.48, 0, 0, -32], [0, 0.48, 0, -176], [0, 0, 1, 0], [0, 0, 0, 1]])
    np.testing.assert_allclose(after['img_aug_matrix'][0], expected)


def fusion_config() -> Config:
    init_default_scope('mmdet3d')
    return Config.fromfile(Path(mmprune3d.__file__).parents[1] / 'configs/_base_/datasets/nuscenes_fusion.py')


@pytest.mark.parametrize('name', each_frame())
def test_a_real_frame_shows_the_same_things_at_the_same_points(name: str, tmp_path: Path) -> None:
    """The grey value under every LiDAR point before and after; a shift of a few pixels would be noticed."""
    config = fusion_config()
    root = frame_folder(name, tmp_path)
    dataset = config.train_dataloader.dataset
    dataset.update(data_root=str(root), ann_file='infos.pkl', data_prefix=dict.fromkeys(dataset.data_prefix, ''))
    dataset.update(use_valid_flag=False, filter_empty_gt=False)
    loaders, rest = dataset.pipeline[:4], dataset.pipeline[4:]
    dataset.pipeline = loaders
    plain = DATASETS.build(dataset)[0]
    assert len(plain['points']) > 200_000  # no sweeps: the frame stands in for all nine

    np.random.seed(1)
    packed = copy.deepcopy(plain)
    for step in rest:
        packed = TRANSFORMS.build(step)(packed)
    assert packed['inputs']['img'].dtype == torch.uint8 and packed['inputs']['img'].shape == (6, 3, 256, 704)
    sample = packed['data_samples']
    meta, points = sample.metainfo, packed['inputs']['points'][::300, :3].double().numpy()
    assert set(config.meta_keys) <= set(meta)
    assert len(sample.gt_instances_3d.bboxes_3d) > 20 and len(points) > 500

    recorded = moved(np.linalg.inv(meta['lidar_aug_matrix']), points)
    u, v, depth = np.moveaxis(moved(lidar2img_of(run([RECORD], plain))[:, None], recorded), -1, 0)
    before = np.stack((u / depth, v / depth), axis=-1)
    after = seen_at(meta, points)[..., :2]
    old = [cv2.GaussianBlur(image, (0, 0), 6).mean(axis=-1) for image in plain['img']]
    new = [
        cv2.GaussianBlur(image.permute(1, 2, 0).numpy(), (0, 0), 3).mean(axis=-1) for image in packed['inputs']['img']
    ]
    visible = (depth > 1) & within(before, 1600, 900) & within(after, 704, 256)
    assert (visible.sum(axis=1) > 5).all()

    def agreement(shift: int) -> float:
        greys = [
            (value(old[camera], before[camera][seen]), value(new[camera], after[camera][seen] + [shift, 0]))
            for camera, seen in enumerate(visible)
        ]
        return np.corrcoef(np.concatenate(greys, axis=1))[0, 1]

    assert agreement(0) > 0.99
    assert max(agreement(-12), agreement(12)) < 0.96


def within(pixels: np.ndarray, width: int, height: int, margin: int = 30) -> np.ndarray:
    low, high = np.array([margin, margin]), np.array([width - margin, height - margin])
    return ((pixels > low) & (pixels < high)).all(axis=-1)


def value(image: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    return image[pixels[:, 1].astype(int), pixels[:, 0].astype(int)]


def test_the_synthetic_data_goes_through_the_pipelines(tiny) -> None:
    """Boxes, points, images and matrices of the shipped pipelines, through a data loader's pickling."""
    config = fusion_config()
    for loader, seed in ((config.train_dataloader, 3), (config.test_dataloader, 4)):
        loader.dataset.data_root = str(tiny.root)
        np.random.seed(seed)
        packed = pickle.loads(pickle.dumps(DATASETS.build(loader.dataset)[0]))
        assert packed['inputs']['img'].shape == (6, 3, *config.image_size)
        assert packed['inputs']['points'].shape[1] == 5
        low, high = np.split(np.array(config.point_cloud_range), 2)
        points = packed['inputs']['points'][:, :3].numpy()
        assert ((points >= low) & (points <= high)).all() and len(points) > 1000
        meta = packed['data_samples'].metainfo
        for key in (*CAMERAS, 'img_aug_matrix'):
            assert np.stack([as_4x4(each) for each in meta[key]]).shape == (6, 4, 4)
        moves = np.abs(meta['lidar_aug_matrix'] - np.eye(4)).max() > 1e-3
        assert moves == (loader is config.train_dataloader)
