"""Removing channels and weights from detectors of mmdet3d: MVX-Net can be made slim, others are named with a reason."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.registry import MODELS, init_default_scope

from mmprune3d.cli import main
from mmprune3d.upgrade.channel_settings import ChannelSettings
from mmprune3d.upgrade.channels import slim
from tests.real_data import needs, real_data_root
from tests.test_adapters.test_mvxnet import PIPELINE, small_config

pytest.importorskip('spconv.pytorch')
NO_FUSION = {
    'centerpoint/centerpoint_pillar02_second_secfpn_8xb4-cyclic-20e_nus-3d.py': r'CenterPoint \(with .*\) has no '
    r'pts_voxel_encoder\.fusion_layer: it fuses no sensors, as MVX-Net does\.',
    'pointpillars/pointpillars_hv_secfpn_8xb6-160e_kitti-3d-car.py': r'VoxelNet \(with .*\) has no fusion map: '
    r'it is not known which part belongs to which sensor\.',
}


@pytest.mark.parametrize('target', ['flops=0.5', 'sparsity=0.5', 'channels=0.5 criterion=magnitude'])
@pytest.mark.parametrize('name', NO_FUSION)
def test_detectors_that_fuse_nothing_are_named(name: str, target: str, tmp_path: Path) -> None:
    config = get_config(f'mmdet3d::{name}')
    config.dump(tmp_path / 'config.py')
    torch.save({'state_dict': {'weight': torch.ones(1)}}, tmp_path / 'weights.pth')
    words = [
        str(tmp_path / 'config.py'),
        str(tmp_path / 'weights.pth'),
        *target.split(),
        '--out',
        str(tmp_path / 'out'),
    ]
    with pytest.raises(SystemExit, match=rf'^error: {NO_FUSION[name]} Valid are .*groups=dict.*fused$'):
        main(['prune', *words, '--out', str(tmp_path / 'out')])


@needs('kitti_frames')
@pytest.mark.real_data
def test_mvxnet_loses_channels(tmp_path: Path) -> None:
    source = real_data_root() / 'kitti_frames'
    for name, stored in (('000008.pkl',) * 2, ('000008.png',) * 2, ('000008.bin', '000008_reduced.bin')):
        (tmp_path / name).symlink_to(source / stored)
    init_default_scope('mmdet3d')
    data = dict(
        type='KittiDataset',
        data_root=str(tmp_path),
        ann_file='000008.pkl',
        data_prefix=dict(pts='', img=''),
        pipeline=PIPELINE,
        modality=dict(use_lidar=True, use_camera=True),
        metainfo=dict(classes=['Pedestrian', 'Cyclist', 'Car']),
        box_type_3d='LiDAR',
    )
    loader = dict(batch_size=1, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False), dataset=data)
    config = Config(dict(default_scope='mmdet3d', model=small_config(), train_dataloader=loader))
    torch.manual_seed(0)
    torch.save({'state_dict': MODELS.build(copy.deepcopy(config.model)).state_dict()}, tmp_path / 'dense.pth')
    settings = dict(flops=0.3, criterion='magnitude', tolerance=0.05)
    report = slim(config, tmp_path / 'dense.pth', ChannelSettings.from_dict(settings)).report
    before, after = report['gflops']
    assert after / before == pytest.approx(0.7, abs=0.05) and report['difference'] < 1e-4
    assert set(report['groups']) == {'camera', 'lidar', 'fusion'}
