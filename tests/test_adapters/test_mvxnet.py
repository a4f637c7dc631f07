"""mmdet3d's MVX-Net, with small widths, trains and predicts on a CPU on a real KITTI frame."""

from __future__ import annotations

import copy

import pytest
import torch
from mmdet3d.registry import DATASETS, MODELS
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.hub import get_config
from mmengine.registry import init_default_scope
from torch import Tensor, nn

from mmprune3d.adapters.dynamic_voxels import make_cpu_ready
from mmprune3d.ops.dynamic_scatter import dynamic_scatter
from tests.real_data import needs, real_data_root

pytest.importorskip('spconv.pytorch')
CONFIG = 'mmdet3d::mvxnet/mvxnet_fpn_dv_second_secfpn_8xb2-80e_kitti-3d-3class.py'
VOXEL_SIZE = [0.2, 0.2, 0.1]
PIPELINE = [
    {'type': 'LoadPointsFromFile', 'coord_type': 'LIDAR', 'load_dim': 4, 'use_dim': 4},
    {'type': 'LoadImageFromFile'},
    {'type': 'LoadAnnotations3D', 'with_bbox_3d': True, 'with_label_3d': True},
    {'type': 'Resize', 'scale': (416, 128), 'keep_ratio': True},
    {'type': 'GlobalRotScaleTrans', 'rot_range': [0.1, 0.1], 'scale_ratio_range': [1.02, 1.02]},
    {'type': 'PointsRangeFilter', 'point_cloud_range': [0, -40, -3, 70.4, 40, 1]},
    {'type': 'Pack3DDetInputs', 'keys': ['points', 'img', 'gt_bboxes_3d', 'gt_labels_3d']},
]


def small_config() -> Config:
    """The model of the shipped config; only widths, depths and the size of a voxel are smaller."""
    init_default_scope('mmdet3d')
    model = get_config(CONFIG).model
    model.data_preprocessor.voxel_layer.voxel_size = VOXEL_SIZE
    model.img_backbone.update(depth=18, base_channels=8)
    model.img_neck.update(in_channels=[8, 16, 32, 64], out_channels=8)
    encoder = model.pts_voxel_encoder
    encoder.update(feat_channels=[8, 8], voxel_size=VOXEL_SIZE)
    encoder.fusion_layer.update(img_channels=8, pts_channels=8, mid_channels=12, out_channels=12)
    model.pts_middle_encoder.update(
        in_channels=12,
        sparse_shape=[41, 400, 352],
        base_channels=4,
        output_channels=8,
        encoder_channels=((4,), (4, 4, 4), (8, 8, 8), (8, 8, 8)),
    )
    model.pts_backbone.update(in_channels=16, layer_nums=[1, 1], out_channels=[8, 8])
    model.pts_neck.update(in_channels=[8, 8], out_channels=[8, 8])
    model.pts_bbox_head.update(in_channels=16, feat_channels=16)
    return model


def build() -> nn.Module:
    """The model of `small_config`."""
    model = small_config()
    torch.manual_seed(0)
    return MODELS.build(model)


@pytest.fixture(scope='module')
def frame(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """Two copies of one frame, the second with fewer points."""
    source, root = real_data_root() / 'kitti_frames', tmp_path_factory.mktemp('kitti')
    for name, stored in (('000008.pkl',) * 2, ('000008.png',) * 2, ('000008.bin', '000008_reduced.bin')):
        (root / name).symlink_to(source / stored)
    init_default_scope('mmdet3d')
    dataset = DATASETS.build(
        {
            'type': 'KittiDataset',
            'data_root': str(root),
            'ann_file': '000008.pkl',
            'data_prefix': {'pts': '', 'img': ''},
            'pipeline': PIPELINE,
            'modality': {'use_lidar': True, 'use_camera': True},
            'metainfo': {'classes': ['Pedestrian', 'Cyclist', 'Car']},
            'box_type_3d': 'LiDAR',
        }
    )
    batch = pseudo_collate([dataset[0], dataset[0]])
    batch['inputs']['points'][1] = batch['inputs']['points'][1][::2]
    return batch


@needs('kitti_frames')
@pytest.mark.real_data
def test_loss_and_predictions(frame: dict) -> None:
    model = build()
    keys = list(model.state_dict())
    with pytest.raises((RuntimeError, AssertionError), match=r'(?i)cuda|implementation|device'):
        model(**model.data_preprocessor(copy.deepcopy(frame), training=True), mode='loss')
    # twice: the scatter of the voxels and that of the cluster centres, the encoder itself, and the convolutions
    assert make_cpu_ready(model) > 3 and make_cpu_ready(model) == 0
    assert list(model.state_dict()) == keys

    model.train()
    losses = model(**model.data_preprocessor(copy.deepcopy(frame), training=True), mode='loss')
    total, logged = model.parse_losses(losses)
    assert {'loss_cls', 'loss_bbox', 'loss_dir'} <= set(logged) and float(total.detach()) > 0
    total.backward()
    trained = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    silent = [name for name, grad in trained.items() if grad is None or not grad.isfinite().all() or not grad.any()]
    assert silent == []

    model.eval()
    model.test_cfg.pts.score_thr = 0.0
    with torch.no_grad():
        found = model(**model.data_preprocessor(copy.deepcopy(frame), training=False), mode='predict')
    for sample in found:
        assert len(sample.pred_instances_3d) == 50 and sample.pred_instances_3d.bboxes_3d.tensor.isfinite().all()


@needs('kitti_frames')
@pytest.mark.real_data
def test_voxel_features_of_the_frame(frame: dict) -> None:
    """Against a dense array of the grid, as mmdet3d looks voxels up, and means computed point by point."""
    model = build()
    make_cpu_ready(model)
    inputs = model.data_preprocessor(copy.deepcopy(frame), training=False)['inputs']
    points, coords = inputs['voxels']['voxels'], inputs['voxels']['coors']
    encoder = model.pts_voxel_encoder
    means, cells = encoder.cluster_scatter(points, coords)
    original = type(encoder).__mro__[2].map_voxel_center_to_point
    expected = original(encoder, coords, means, cells)
    assert torch.equal(encoder.map_voxel_center_to_point(coords, means, cells), expected)
    chosen = torch.arange(0, len(points), 401)
    slow = torch.stack([points[(coords == coords[i]).all(dim=1)].double().mean(dim=0) for i in chosen])
    torch.testing.assert_close(expected[chosen].double(), slow, rtol=1e-5, atol=1e-5)
    assert (cells[:, 0].diff() >= 0).all() and set(cells[:, 0].tolist()) == {0, 1}


class DynamicScatter(nn.Module):
    """Named as mmcv's; says which way was taken."""

    average_points = True

    def forward_single(self, points: Tensor, coors: Tensor) -> str:
        return 'theirs'


class PretendGPU:
    """What a tensor on a GPU says of itself."""

    is_cuda = True


def test_on_a_gpu_nothing_changes() -> None:
    model = nn.Sequential(DynamicScatter(), nn.Linear(2, 2))
    assert make_cpu_ready(model) == 1
    scatter = copy.deepcopy(model)[0]  # as the EMA hook does
    assert isinstance(scatter, DynamicScatter) and scatter.forward_single(PretendGPU(), None) == 'theirs'
    points, coords = torch.randn(4, 2), torch.tensor([[0, 0, 1], [0, 0, 0], [0, 0, 1], [2, 0, 0]])
    for found, expected in zip(scatter.forward_single(points, coords), dynamic_scatter(points, coords, 'mean')):
        assert torch.equal(found, expected)
