"""MVX-Net on a CPU with samples of few points or none, and a detector of points alone; on random data."""

from __future__ import annotations

import copy

import pytest
import torch
from mmdet3d.registry import MODELS
from mmdet3d.structures import Det3DDataSample, LiDARInstance3DBoxes
from mmengine.hub import get_config
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData
from torch import Tensor, nn

from mmprune3d.adapters.dynamic_voxels import make_cpu_ready

from .test_mvxnet import VOXEL_SIZE, build

SIZE = (128, 416)
SECOND = 'mmdet3d::second/second_hv_secfpn_8xb6-80e_kitti-3d-3class.py'
"""Its dynamic sibling shares everything but the voxels."""


@pytest.fixture(scope='module')
def mvx() -> nn.Module:
    model = build()
    make_cpu_ready(model)
    model.test_cfg.pts.score_thr = 0.0
    return model


@pytest.fixture(scope='module')
def points_alone() -> nn.Module:
    """Dynamic voxels without images (DV-SECOND)."""
    init_default_scope('mmdet3d')
    model = get_config(SECOND).model
    area = model.data_preprocessor.voxel_layer.point_cloud_range
    model.type = 'DynamicVoxelNet'
    model.data_preprocessor.update(voxel_type='dynamic')
    model.data_preprocessor.voxel_layer.update(max_num_points=-1, max_voxels=(-1, -1), voxel_size=VOXEL_SIZE)
    model.voxel_encoder = dict(type='DynamicSimpleVFE', voxel_size=VOXEL_SIZE, point_cloud_range=area)
    model.middle_encoder.update(
        sparse_shape=[41, 400, 352],
        base_channels=4,
        output_channels=8,
        encoder_channels=((4,), (4, 4, 4), (8, 8, 8), (8, 8, 8)),
    )
    model.backbone.update(in_channels=16, layer_nums=[1, 1], out_channels=[8, 8])
    model.neck.update(in_channels=[8, 8], out_channels=[8, 8])
    model.bbox_head.update(in_channels=16, feat_channels=16)
    model.test_cfg.score_thr = 0.0
    torch.manual_seed(0)
    built = MODELS.build(model)
    assert make_cpu_ready(built) > 1
    return built


def cloud(count: int, seed: int = 0) -> Tensor:
    points = torch.rand(count, 4, generator=torch.Generator().manual_seed(seed))
    return points * torch.tensor([40.0, 30, 2, 1]) + torch.tensor([5.0, -15, -2, 0])


def batch(clouds: list[Tensor], images: bool) -> dict:
    camera = torch.tensor([[200.0, 0, 208, 0], [0, 200, 64, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    pose = torch.tensor([[0.0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1]])
    samples = []
    for number in range(len(clouds)):
        meta = dict(box_type_3d=LiDARInstance3DBoxes, lidar2img=(camera @ pose).numpy(), img_shape=SIZE)
        sample = Det3DDataSample(metainfo=meta)
        boxes = torch.tensor([[15.0, 2.0 * number, -1.5, 4, 1.8, 1.6, 0.2]])
        sample.gt_instances_3d = InstanceData(bboxes_3d=LiDARInstance3DBoxes(boxes), labels_3d=torch.tensor([2]))
        samples.append(sample)
    inputs: dict = dict(points=[points.clone() for points in clouds])
    if images:
        generator = torch.Generator().manual_seed(1)
        inputs['img'] = [torch.randint(0, 255, (3, *SIZE), dtype=torch.uint8, generator=generator) for _ in clouds]
    return dict(inputs=inputs, data_samples=samples)


FAR = torch.full((3, 4), 500.0)
CLOUDS = {
    'last without points': [cloud(500), cloud(0)],
    'first without points': [cloud(0), cloud(500)],
    'last out of range': [cloud(500), FAR],
    'last with one point': [cloud(500), cloud(1)],
    'one point in all': [cloud(1), cloud(0)],
    'none at all': [cloud(0), cloud(0)],
    'all out of range': [FAR, FAR],
    'one point, out of range': [FAR[:1], cloud(0)],
}


@pytest.mark.parametrize('kind', ['mvx', 'points_alone'])
@pytest.mark.parametrize('clouds', CLOUDS.values(), ids=CLOUDS)
def test_training_and_prediction(kind: str, clouds: list[Tensor], request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(kind)
    before = copy.deepcopy(model.state_dict())
    model.train()
    data = model.data_preprocessor(batch(clouds, kind == 'mvx'), training=True)
    total, _ = model.parse_losses(model(**data, mode='loss'))
    total.backward()
    assert total.isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    assert all(value.isfinite().all() for value in model.buffers())
    model.zero_grad()
    model.load_state_dict(before)
    model.eval()
    data = model.data_preprocessor(batch(clouds, kind == 'mvx'), training=False)
    with torch.no_grad():
        found = model(**data, mode='predict')
    assert len(found) == len(clouds)
    assert all(sample.pred_instances_3d.bboxes_3d.tensor.isfinite().all() for sample in found)


@pytest.mark.parametrize('kind', ['mvx', 'points_alone'])
@pytest.mark.parametrize('other', [cloud(0), FAR], ids=['none', 'out of range'])
def test_a_sample_without_points_leaves_the_first_alone(
    kind: str, other: Tensor, request: pytest.FixtureRequest
) -> None:
    model = request.getfixturevalue(kind).eval()
    maps = []
    for clouds in ([cloud(500)], [cloud(500), other]):
        data = model.data_preprocessor(batch(clouds, kind == 'mvx'), training=False)
        with torch.no_grad():
            if kind == 'mvx':
                metas = [sample.metainfo for sample in data['data_samples']]
                maps.append(model.extract_feat(data['inputs'], metas)[1][0])
            else:
                maps.append(model.extract_feat(data['inputs'])[0])
    assert len(maps[0]) == 1 and len(maps[1]) == 2
    torch.testing.assert_close(maps[1][:1], maps[0], rtol=1e-4, atol=1e-5)


def test_the_usual_batch_is_what_it_was(mvx: nn.Module) -> None:
    """The class that is laid over the detector changes nothing where mmdet3d counts right."""
    plain = build()
    make_cpu_ready(plain)
    plain.__class__ = type(plain).__mro__[2]
    plain.load_state_dict(mvx.state_dict())
    found = []
    for model in (mvx.eval(), plain.eval()):
        data = model.data_preprocessor(batch([cloud(300), cloud(400, 1)], True), training=False)
        with torch.no_grad():
            metas = [sample.metainfo for sample in data['data_samples']]
            found.append(model.extract_feat(data['inputs'], metas)[1][0])
    assert type(plain).__name__ == 'DynamicMVXFasterRCNN' and torch.equal(*found)


def test_voxels_that_do_not_fill_the_range_are_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr('mmprune3d.layers.settings_check.print_log', lambda text, **_: said.append(text))
    model = build()
    make_cpu_ready(model)
    assert said == []
    model = build()
    model.data_preprocessor.voxel_layer.voxel_size = [0.3, 0.2, 0.1]
    for _ in range(2):
        make_cpu_ready(model)
    assert len(said) == 1 and 'data_preprocessor.voxel_layer: x from 0 to 70.4 is 234.67 voxels of 0.3' in said[0]
