"""Settings of BEVFusion that must agree with each other and with the batch; and batches of few points or none."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from mmdet3d.registry import MODELS
from mmdet3d.structures import Det3DDataSample, LiDARInstance3DBoxes
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData
from torch import Tensor, nn

from tests.test_coupling.channel_nets import bevfusion_config

from .small_head import small_config
from .test_configs import small_pillars
from .test_view_transform import small, small_inputs

LIDAR = dict(img_backbone=None, img_neck=None, view_transform=None, fusion_layer=None)
CAMERA = dict(pts_voxel_encoder=None, pts_middle_encoder=None, fusion_layer=None)


def config(**changes: Any) -> Config:
    """The small detector; changes by dotted key."""
    found = copy.deepcopy(bevfusion_config())
    if found.img_backbone:
        found.img_backbone.update(depth=18, base_channels=8)
        found.img_neck.in_channels = [16, 32, 64]
    settings = Config(dict(model=found))
    settings.merge_from_dict({f'model.{key}': value for key, value in changes.items()})
    return settings.model


def lidar_config(**changes: Any) -> Config:
    model = config(**changes)
    model.update(LIDAR)
    return model


def built(model: Config) -> nn.Module:
    init_default_scope('mmdet3d')
    torch.manual_seed(0)
    return MODELS.build(copy.deepcopy(model))


def cloud(count: int, columns: int = 5, seed: int = 0) -> Tensor:
    points = torch.rand(count, columns, generator=torch.Generator().manual_seed(seed)) * 40 - 20
    points[:, 2] *= 0.05
    return points


def sample(cameras: int = 6, matrices: int | None = None) -> Det3DDataSample:
    eyes = np.tile(np.eye(4, dtype=np.float32), (cameras if matrices is None else matrices, 1, 1))
    meta = dict(box_type_3d=LiDARInstance3DBoxes, lidar2img=eyes, cam2img=eyes, cam2lidar=eyes)
    made = Det3DDataSample(metainfo=meta)
    boxes = torch.rand(2, 9, generator=torch.Generator().manual_seed(3)) * 5 + 1
    made.gt_instances_3d = InstanceData(
        bboxes_3d=LiDARInstance3DBoxes(boxes, box_dim=9), labels_3d=torch.tensor([0, 3])
    )
    return made


def run(model: nn.Module, mode: str, clouds: list[Tensor], size: tuple[int, int] | None = None, **kwargs: Any) -> Any:
    inputs: dict[str, Any] = dict(points=[points.clone() for points in clouds])
    if size is not None:
        inputs['img'] = [torch.full((6, 3, *size), 100.0) for _ in clouds]
    data = dict(inputs=inputs, data_samples=[sample(**kwargs) for _ in clouds])
    model.train(mode == 'loss')
    with torch.set_grad_enabled(mode == 'loss'):
        return model(**model.data_preprocessor(data, mode == 'loss'), mode=mode)


@pytest.mark.parametrize('axis', [0, 1])
def test_a_padded_canvas_needs_an_image_size_with_padding(axis: int) -> None:
    """Rays for images without their padding went through the features of the whole canvas."""
    size = [64, 96]
    size[axis] -= 8
    features = [side // 8 for side in size]
    model = built(config(**{'view_transform.image_size': size, 'view_transform.feature_size': features}))
    message = (
        rf'images of the batch are 64 x 96 pixels .*pad_size_divisor.*image_size=\[{size[0]}, {size[1]}\].*'
        r'Set view_transform.image_size=\[64, 96\]'
    )
    with pytest.raises(ValueError, match=message):
        run(model, 'predict', [cloud(200)], tuple(size))
    fitting = built(config())
    assert len(run(fitting, 'predict', [cloud(200)], tuple(size))) == 1


def test_an_image_size_that_is_no_multiple_is_refused_when_built() -> None:
    with pytest.raises(ValueError, match=r'image_size=\[58, 96\] must be a multiple of feature_size=\[8, 12\]'):
        built(config(**{'view_transform.image_size': [58, 96]}))


@pytest.mark.parametrize('dbound', [[0.0, 5.0, 1.0], [5.0, 5.0, 1.0], [1.0, 5.0, 0.0], [1.0, 5.0, -1.0]])
def test_depths_must_be_in_front_of_the_camera(dbound: list[float]) -> None:
    with pytest.raises(ValueError, match=r'dbound=.* must be first depth, end and step'):
        small(dbound=dbound)


def test_a_grid_whose_cells_do_not_fill_its_limits_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr('mmprune3d.models.bevfusion.view_transform.print_log', lambda text, **_: said.append(text))
    small()
    assert said == []
    small(xbound=(-4.0, 4.0, 0.3))
    assert len(said) == 1 and 'view_transform.xbound: 26.6667 cells of 0.3' in said[0] and 'end at 3.8' in said[0]


def test_constants_of_a_checkpoint_with_other_settings_are_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr('mmprune3d.models.bevfusion.view_transform.print_log', lambda text, **_: said.append(text))
    same, other = small(), small(dbound=(2.0, 6.0, 1.0))
    expected = other.frustum.clone()
    other.load_state_dict(same.state_dict())
    assert torch.equal(other.frustum, expected) and len(said) == 1 and 'frustum of the checkpoint' in said[0]
    assert torch.equal(other.depthnet[0].weight, same.depthnet[0].weight)
    same.load_state_dict({name: value.half() for name, value in small().state_dict().items()})
    assert len(said) == 1  # rounding is no other setting
    assert all(torch.equal(value, small().state_dict()[name]) for name, value in small().state_dict().items())


def test_depth_needs_points() -> None:
    with pytest.raises(ValueError, match='needs LiDAR points for its depth, and the batch has none'):
        small()(**{**small_inputs(), 'points': None})


@pytest.mark.parametrize('matrices', [5, 7, 1])
def test_as_many_matrices_as_images(matrices: int) -> None:
    with pytest.raises(ValueError, match=rf'sample 0 has 6 images and {matrices} matrices lidar2img'):
        run(built(config()), 'predict', [cloud(200)], (64, 96), matrices=matrices)


PLACES = [
    ('data_preprocessor.voxelize_cfg.point_cloud_range', [-25.6, -25.6, -5.0, 25.6, 24.0, 3.0], 'range along x and y'),
    ('view_transform.xbound', [-25.6, 24.0, 0.8], 'view_transform.xbound and ybound'),
    ('view_transform.ybound', [-24.0, 25.6, 0.8], 'view_transform.xbound and ybound'),
    ('bbox_head.bbox_coder.pc_range', [-24.0, -25.6], 'the origin of the map'),
    ('bbox_head.bbox_coder.voxel_size', [0.2, 0.2], 'size of a cell of the map'),
    ('bbox_head.bbox_coder.out_size_factor', 8, 'size of a cell of the map'),
    ('bbox_head.train_cfg.voxel_size', [0.2, 0.4, 0.4], 'size of a cell of the map'),
    ('bbox_head.test_cfg.pc_range', [-51.2, -25.6], 'the origin of the map'),
    ('bbox_head.train_cfg.grid_size', [256, 128, 21], 'number of voxels along x and y'),
    ('bbox_head.test_cfg.grid_size', [128, 256, 21], 'number of voxels along x and y'),
    ('pts_middle_encoder.sparse_shape', [128, 120, 21], r'sparse_shape=\[128, 120, 21\] is too small'),
    ('pts_middle_encoder.sparse_shape', [128, 128, 19], r'sparse_shape=\[128, 128, 19\] is too small'),
]


@pytest.mark.parametrize(('key', 'value', 'message'), PLACES, ids=[f'{key}={value}' for key, value, _ in PLACES])
def test_settings_about_the_place_agree(key: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        built(config(**{key: value}))


def test_the_message_has_all_settings() -> None:
    with pytest.raises(ValueError) as caught:
        built(config(**{'view_transform.xbound': [-24.0, 27.2, 0.8]}))
    for part in ('voxelize_cfg.point_cloud_range: [-25.6, -25.6, 25.6, 25.6]', 'ybound: [-24, -25.6, 27.2, 25.6]'):
        assert part in str(caught.value)


def test_labels_are_classes_of_the_head() -> None:
    model = built(lidar_config(**{'bbox_head.num_classes': 3, 'bbox_head.test_cfg.dataset': None}))
    with pytest.raises(ValueError, match=r'label 3, but bbox_head.num_classes=3 \(labels 0 to 2\)'):
        run(model, 'loss', [cloud(100), cloud(100)])


def test_velocities_that_are_predicted_must_be_annotated() -> None:
    model, data = built(lidar_config()), sample()
    data.gt_instances_3d.bboxes_3d = LiDARInstance3DBoxes(data.gt_instances_3d.bboxes_3d.tensor[:, :7])
    with pytest.raises(ValueError, match=r'annotated boxes have 7 columns .*code_size=8'):
        model.loss(dict(points=[cloud(100)]), [data])


def test_as_many_code_weights_as_numbers() -> None:
    with pytest.raises(ValueError, match='code_weights has 8 entries, but these common_heads need 10'):
        built(lidar_config(**{'bbox_head.train_cfg.code_weights': [1.0] * 8}))


def test_without_velocities() -> None:
    """Boxes of seven numbers are predicted and learned, with or without velocities in the annotations."""
    changes = {'bbox_head.bbox_coder.code_size': 8, 'bbox_head.train_cfg.code_weights': [1.0] * 8}
    settings = lidar_config(**changes)
    del settings.bbox_head.common_heads['vel']
    model = built(settings)
    for columns in (7, 9):
        data = sample()
        boxes = data.gt_instances_3d.bboxes_3d.tensor[:, :columns]
        data.gt_instances_3d.bboxes_3d = LiDARInstance3DBoxes(boxes, box_dim=columns)
        total, _ = model.parse_losses(model.train().loss(dict(points=[cloud(100)]), [data]))
        assert total.isfinite()
    assert run(model, 'predict', [cloud(100)])[0].pred_instances_3d.bboxes_3d.tensor.shape[1] == 7


def test_heads_alone_are_checked_too() -> None:
    init_default_scope('mmdet3d')
    settings = small_config()
    settings['train_cfg'] = {**settings['train_cfg'], 'out_size_factor': 4}
    from .small_head import built as head_of

    with pytest.raises(ValueError, match='size of a cell of the map'):
        head_of(settings)


def test_voxels_that_do_not_fill_the_range_are_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr('mmprune3d.layers.settings_check.print_log', lambda text, **_: said.append(text))
    built(lidar_config())
    assert said == []
    area = [-25.6, -25.6, -5.0, 25.6, 25.6, 2.9]
    built(lidar_config(**{'data_preprocessor.voxelize_cfg.point_cloud_range': area}))
    assert len(said) == 1
    assert said[0].startswith('data_preprocessor.voxelize_cfg: z from -5 to 2.9 is 19.75 voxels of 0.4; 20 are made')


@pytest.mark.parametrize('columns', [3, 4, 6])
@pytest.mark.parametrize('kind', ['mean', 'pillars'])
def test_points_with_other_columns(columns: int, kind: str) -> None:
    model = built(lidar_config() if kind == 'mean' else pillars_alone())
    setting = 'pts_middle_encoder' if kind == 'mean' else 'pts_voxel_encoder'
    message = rf'points have {columns} columns, but {setting}.in_channels=5: use_dim of LoadPointsFromFile'
    with pytest.raises(ValueError, match=message):
        run(model, 'predict', [cloud(50, columns)])


def pillars_alone() -> Config:
    model = small_pillars().model
    model.update(LIDAR)
    model.pts_backbone.in_channels = 12
    return model


CLOUDS = {
    'second without points': (400, 0),
    'first without points': (0, 400),
    'second with one point': (400, 1),
    'none at all': (0, 0),
    'one point in all': (1, 0),
    'one sample without points': (0,),
    'one sample with one point': (1,),
}


@pytest.mark.parametrize('counts', CLOUDS.values(), ids=CLOUDS)
@pytest.mark.parametrize('far', [False, True], ids=['', 'out of range'])
@pytest.mark.parametrize('kind', ['mean', 'pillars'])
def test_few_points(counts: tuple[int, ...], far: bool, kind: str) -> None:
    """Absent points, or points out of the range: the detector trains and predicts, and every parameter has its part."""
    model = built(lidar_config() if kind == 'mean' else pillars_alone())
    clouds = [cloud(count) * 0.5 for count in counts]
    if far:
        clouds = [points if len(points) else torch.full((4, 5), 500.0) for points in clouds]
    total, _ = model.parse_losses(run(model, 'loss', clouds))
    total.backward()
    assert total.isfinite()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    assert all(value.isfinite().all() for value in model.buffers())
    assert len(run(model, 'predict', clouds)) == len(counts)


def test_a_sample_without_points_does_not_change_the_others() -> None:
    model = built(lidar_config())
    alone, beside = run(model, 'tensor', [cloud(400)]), run(model, 'tensor', [cloud(400), cloud(0)])
    for key, value in alone[0][0].items():
        torch.testing.assert_close(beside[0][0][key][:1], value, rtol=1e-4, atol=1e-4)
