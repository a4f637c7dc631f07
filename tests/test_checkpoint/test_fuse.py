from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from mmprune3d.checkpoint.fuse import fuse_checkpoints

COMMAND = (sys.executable, '-m', 'mmprune3d', 'checkpoint', 'fuse')


def detector(*children: str) -> nn.ModuleDict:
    return nn.ModuleDict({child: nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3)) for child in children})


CAMERA = ('img_backbone', 'img_neck', 'view_transform', 'pts_backbone', 'bbox_head')
LIDAR = ('pts_middle_encoder', 'pts_backbone', 'bbox_head')


def test_each_stream_comes_from_its_own_checkpoint(tmp_path: Path) -> None:
    camera, lidar = detector(*CAMERA), detector(*LIDAR)
    paths = [tmp_path / name for name in ('camera.pth', 'lidar.pth', 'made/fused.pth')]
    torch.save({'meta': {'epoch': 4}, 'state_dict': camera.state_dict()}, paths[0])
    torch.save({'meta': {'dataset_meta': {'classes': ['car']}}, 'state_dict': lidar.state_dict()}, paths[1])
    subprocess.run([*COMMAND, *map(str, paths)], check=True)
    data = torch.load(paths[2], weights_only=True)
    assert data['meta'] == {'dataset_meta': {'classes': ['car']}}
    fused = detector(*dict.fromkeys((*CAMERA, *LIDAR)))
    fused.load_state_dict(data['state_dict'])
    for child in fused:
        source = camera if child in CAMERA[:3] else lidar
        for name, value in source[child].state_dict().items():
            assert torch.equal(fused[child].state_dict()[name], value)
    # the versions of modules: without them mmdet3d permutes the weights of sparse convolutions
    assert data['state_dict']._metadata['img_backbone.1']['version'] == 2
    assert data['state_dict']._metadata['pts_middle_encoder.1']['version'] == 2


def test_what_is_missing_or_twice_is_an_error() -> None:
    camera, lidar = detector(*CAMERA).state_dict(), detector(*LIDAR).state_dict()
    with pytest.raises(ValueError, match='has no img_neck, view_transform; it has bbox_head, img_backbone'):
        fuse_checkpoints(detector('img_backbone', 'bbox_head').state_dict(), lidar)
    with pytest.raises(ValueError, match='img_backbone, img_neck, view_transform is in the LiDAR checkpoint as well'):
        fuse_checkpoints(camera, camera)
    with pytest.raises(ValueError, match='has no radar_encoder'):
        fuse_checkpoints(camera, lidar, ('radar_encoder',))
