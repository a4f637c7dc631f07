"""The view transforms, with and without the depth of lidar points."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mmprune3d.models.bevfusion.depth_view_transform import BEVFusion3DDepthLSSTransform, depth_image
from mmprune3d.models.bevfusion.view_transform import BEVFusion3DLSSTransform
from tests.reference import load, reference_files

from .recorded import assert_leaves_close

CLASSES = {'LSSTransform': BEVFusion3DLSSTransform, 'DepthLSSTransform': BEVFusion3DDepthLSSTransform}
FILES = reference_files('bevfusion', '*lss_transform*.pt')
GEOMETRY = ('camera_intrinsics', 'camera2lidar', 'img_aug_matrix', 'lidar_aug_matrix')
SMALL = dict(
    in_channels=4,
    out_channels=5,
    image_size=(32, 48),
    feature_size=(4, 6),
    xbound=(-4.0, 4.0, 1.0),
    ybound=(-3.0, 3.0, 1.0),
    zbound=(-2.0, 2.0, 4.0),
    dbound=(1.0, 5.0, 1.0),
)


def turn(angle: float) -> Tensor:
    sine, cosine = torch.tensor(angle).sin(), torch.tensor(angle).cos()
    return torch.tensor([[cosine, -sine, 0, 0], [sine, cosine, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])


def small_inputs(seed: int = 0) -> dict[str, Any]:
    """Two samples with two cameras that look along +x and -x, and augmentations of both kinds."""
    generator = torch.Generator().manual_seed(seed)
    forward = torch.tensor([[0, 0, 1, 0.2], [-1, 0, 0, 0.1], [0, -1, 0, 0.3], [0, 0, 0, 1.0]])
    camera2lidar = torch.stack((forward, turn(3.1) @ forward)).expand(2, 2, 4, 4)
    intrinsics = torch.eye(4).repeat(2, 2, 1, 1)
    intrinsics[..., 0, 0], intrinsics[..., 1, 1] = 30.0, 28.0
    intrinsics[..., 0, 2], intrinsics[..., 1, 2] = 25.0, 15.0
    image = turn(0.1).repeat(2, 2, 1, 1)
    image[..., :2, 3] = torch.tensor([3.0, -2.0])
    lidar = torch.stack((torch.eye(4), turn(0.5)))
    lidar[1, :3, :3] *= 1.1
    lidar[1, :3, 3] = torch.tensor([0.3, -0.2, 0.1])
    return dict(
        img_feats=torch.randn(2, 2, 4, 4, 6, generator=generator),
        points=[torch.randn(count, 5, generator=generator) * 3 for count in (300, 200)],
        lidar2image=intrinsics @ camera2lidar.inverse(),
        camera_intrinsics=intrinsics,
        camera2lidar=camera2lidar,
        img_aug_matrix=image,
        lidar_aug_matrix=lidar,
    )


def small(with_depth: bool = True, **changes: Any) -> BEVFusion3DLSSTransform:
    torch.manual_seed(0)
    return (BEVFusion3DDepthLSSTransform if with_depth else BEVFusion3DLSSTransform)(**{**SMALL, **changes})


def depth_image_by_hand(
    points: Tensor, lidar2image: Tensor, img_aug: Tensor, lidar_aug: Tensor, size: tuple[int, int]
) -> Tensor:
    images = torch.zeros(len(lidar2image), 1, *size)
    for camera in range(len(lidar2image)):
        for point in points[:, :3].double():
            original = lidar_aug[:3, :3].double().inverse() @ (point - lidar_aug[:3, 3])
            u, v, depth = (lidar2image[camera, :3, :3].double() @ original + lidar2image[camera, :3, 3]).tolist()
            near = min(max(depth, 1e-5), 1e5)
            moved = img_aug[camera, :3, :3].double() @ torch.tensor([u / near, v / near, near]).double()
            column, row = (moved + img_aug[camera, :3, 3])[:2].tolist()
            if 0 <= row < size[0] and 0 <= column < size[1]:
                images[camera, 0, int(row), int(column)] = depth
    return images


@pytest.mark.parametrize('path', FILES)
def test_recorded_view_transform(path: Path) -> None:
    data = load(path)
    inputs, outputs = data['inputs'], data['outputs']
    transform = CLASSES[data['meta']['class']](**data['meta']['constructor'])
    own = transform.state_dict()
    assert set(own) == set(data['state_dict'])
    assert all(torch.equal(own[key], data['state_dict'][key]) for key in ('dx', 'bx', 'nx', 'frustum'))
    assert own['nx'].tolist() == data['meta']['nx']
    geometry = transform.geometry(*(inputs[key] for key in GEOMETRY))
    assert_leaves_close({'geometry': geometry}, {'geometry': outputs['geometry']}, 1e-5, 'geometry')
    if 'depth_map' in outputs:
        names = ('points', 'lidar2image', 'img_aug_matrix', 'lidar_aug_matrix')
        images = transform.depth_images(*(inputs[name] for name in names))
        assert_leaves_close({'depth_map': images}, {'depth_map': outputs['depth_map']}, 1e-5, 'depth_map')
    for mode in ('eval', 'train'):
        transform.load_state_dict(data['state_dict'])
        transform.train(mode == 'train')
        feats = inputs['img_feats'].clone().requires_grad_()
        bev = transform(feats, inputs['points'], *(inputs[key] for key in ('lidar2image', *GEOMETRY)), metas=None)
        assert_leaves_close({'bev': bev}, {'bev': outputs[mode]['bev']}, 1e-5, f'{mode}/bev')
    (bev * inputs['projection']).sum().backward()
    grads = {name: parameter.grad for name, parameter in transform.named_parameters() if parameter.requires_grad}
    assert set(grads) == set(outputs['train']['grads'])
    assert_leaves_close(grads, outputs['train']['grads'], 1e-4, 'train/grads')
    assert_leaves_close({'x': feats.grad}, {'x': outputs['train']['grad_img_feats']}, 1e-4, 'train/grad_img_feats')
    if outputs['train']['buffers_after']:
        buffers = dict(transform.named_buffers())
        assert_leaves_close(buffers, outputs['train']['buffers_after'], 1e-5, 'train/buffers_after')


@pytest.mark.parametrize('path', reference_files('bevfusion', 'keys_lidar_cam.json'))
def test_keys_of_the_official_config(path: Path) -> None:
    prefix = 'view_transform.'
    official = {key: shape for key, shape in json.loads(path.read_text()).items() if key.startswith(prefix)}
    transform = BEVFusion3DDepthLSSTransform(
        256,
        80,
        image_size=(256, 704),
        feature_size=(32, 88),
        xbound=(-54.0, 54.0, 0.3),
        ybound=(-54.0, 54.0, 0.3),
        zbound=(-10.0, 10.0, 20.0),
        dbound=(1.0, 60.0, 0.5),
        downsample=2,
    )
    assert {prefix + key: list(value.shape) for key, value in transform.state_dict().items()} == official
    assert transform.nx.dtype == torch.int64
    frozen = {name for name, parameter in transform.named_parameters() if not parameter.requires_grad}
    assert frozen == {'dx', 'bx', 'nx', 'frustum'}


@pytest.mark.parametrize('with_depth', [False, True])
def test_inputs_are_only_read(with_depth: bool) -> None:
    given, kept = small_inputs(), small_inputs()
    small(with_depth)(**given)
    for name, value in given.items():
        for ours, original in zip(value, kept[name], strict=True):
            assert torch.equal(ours, original), name


def test_geometry_projects_back_to_the_frustum() -> None:
    transform, inputs = small(), small_inputs()
    places = transform.geometry(*(inputs[key] for key in GEOMETRY)).double()
    plain = (places - inputs['lidar_aug_matrix'][:, None, None, None, None, :3, 3]).unsqueeze(-1)
    plain = inputs['lidar_aug_matrix'][:, None, None, None, None, :3, :3].double().inverse() @ plain
    project = inputs['lidar2image'][:, :, None, None, None].double()
    seen = (project[..., :3, :3] @ plain).squeeze(-1) + project[..., :3, 3]
    seen = torch.cat((seen[..., :2] / seen[..., 2:], seen[..., 2:]), -1).unsqueeze(-1)
    image = inputs['img_aug_matrix'][:, :, None, None, None].double()
    seen = (image[..., :3, :3] @ seen).squeeze(-1) + image[..., :3, 3]
    torch.testing.assert_close(seen, transform.frustum.double().expand_as(seen), rtol=0, atol=1e-4)


def test_depth_images_by_hand() -> None:
    transform, inputs = small(), small_inputs()
    names = ('points', 'lidar2image', 'img_aug_matrix', 'lidar_aug_matrix')
    images = transform.depth_images(*(inputs[name] for name in names))
    expected = [depth_image_by_hand(*sample, (32, 48)) for sample in zip(*(inputs[name] for name in names))]
    assert (images > 0).sum() > 50
    torch.testing.assert_close(images, torch.stack(expected))


@pytest.mark.parametrize('order', [[0, 1, 2], [2, 0, 1], [1, 2, 0]])
def test_the_last_point_of_a_pixel_is_kept(order: list[int]) -> None:
    depths = torch.tensor([2.0, 5.0, 3.0])[order]
    points = torch.tensor([[0.51, 0.26, 1.0]]) * depths[:, None]  # one ray
    focal = torch.diag(torch.tensor([4.0, 4.0, 1.0, 1.0]))[None]
    image = depth_image(points, focal, torch.eye(4)[None], torch.eye(4), (2, 4))
    assert image[0, 0, 1, 2] == depths[-1]
    assert image.count_nonzero() == 1


def test_no_points_at_all() -> None:
    inputs = small_inputs()
    image = depth_image(
        torch.zeros(0, 5), inputs['lidar2image'][0], inputs['img_aug_matrix'][0], torch.eye(4), (32, 48)
    )
    assert image.shape == (2, 1, 32, 48)
    assert not image.any()


def test_masked_points_are_not_seen() -> None:
    transform, inputs = small().eval(), small_inputs()
    seeing = transform(**inputs)
    transform.mask_points = True
    blind = transform(**inputs)
    assert not torch.allclose(blind, seeing)
    assert torch.equal(blind, transform(**{**inputs, 'points': None}))
    far = [points + 1e4 for points in inputs['points']]
    transform.mask_points = False
    assert torch.equal(blind, transform(**{**inputs, 'points': far}))


@pytest.mark.parametrize('with_depth', [False, True])
def test_autocast_does_not_reach_geometry(with_depth: bool) -> None:
    transform, inputs = small(with_depth).eval(), small_inputs()
    matrices = [inputs[key] for key in GEOMETRY]
    exact = transform.geometry(*matrices)
    plain = transform(**inputs)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert torch.equal(transform.geometry(*matrices), exact)
        if with_depth:
            names = ('points', 'lidar2image', 'img_aug_matrix', 'lidar_aug_matrix')
            images = transform.depth_images(*(inputs[name] for name in names))
        low = transform(**inputs)
    if with_depth:
        assert torch.equal(images, transform.depth_images(*(inputs[name] for name in names)))
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, plain, rtol=0, atol=0.02 * plain.abs().max().item())


def test_several_cells_in_z_become_channels() -> None:
    bev = small(False, zbound=(-2.0, 2.0, 1.0))(**small_inputs())
    assert bev.shape == (2, 20, 8, 6)
    flat = small(False)(**small_inputs())
    torch.testing.assert_close(bev.view(2, 4, 5, 8, 6).sum(1), flat)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(downsample=4), 'downsample=4 must be 1 or 2'),
        (dict(ybound=(3.0, -3.0, 1.0)), r'a grid of \(8, -6, 1\) cells'),
        (dict(feature_size=(2, 3)), r'feature_size must be \[4, 6\], an eighth of image_size=\[32, 48\]'),
    ],
)
def test_arguments_that_cannot_be(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**changes)


def test_features_of_another_size() -> None:
    inputs = small_inputs()
    with pytest.raises(ValueError, match=r'\[4, 5\] do not match feature_size=\[4, 6\]'):
        small()(**{**inputs, 'img_feats': inputs['img_feats'][..., :5]})
