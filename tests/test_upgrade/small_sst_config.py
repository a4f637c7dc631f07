"""A small SST that predicts in a fraction of a second, with a config for the tiny data set."""

from __future__ import annotations

from pathlib import Path

from mmengine.config import Config

from tests.test_coupling.channel_nets import ROOT

GRID, WIDTH, BLOCKS = 64, 16, 3
VOXEL = 1.6


def small_sst_config(root: Path, work_dir: Path) -> Config:
    """Three samples to train on, in one epoch; three to test on."""
    config = Config.fromfile(ROOT / 'configs/sst/sst_tiny.py')
    model, voxel = config.model, [VOXEL, VOXEL, 8.0]
    model.data_preprocessor.voxel_layer.voxel_size = voxel
    model.voxel_encoder.update(feat_channels=[8, WIDTH], voxel_size=voxel)
    model.middle_encoder.update(window_shape=(6, 6, 1), sparse_shape=(GRID, GRID, 1))
    model.backbone.update(
        d_model=[WIDTH] * BLOCKS,
        nhead=[2] * BLOCKS,
        num_blocks=BLOCKS,
        dim_feedforward=[WIDTH] * BLOCKS,
        output_shape=[GRID, GRID],
        num_attached_conv=1,
        conv_kwargs=dict(kernel_size=3, padding=1),
        conv_in_channel=WIDTH,
        conv_out_channel=WIDTH,
    )
    model.neck.update(in_channels=[WIDTH], out_channels=[WIDTH])
    model.bbox_head.update(in_channels=WIDTH, share_conv_channel=8)
    model.bbox_head.separate_head.update(head_conv=8)
    model.bbox_head.bbox_coder.update(voxel_size=voxel[:2])
    model.train_cfg.update(grid_size=[GRID, GRID, 1], voxel_size=voxel)
    model.test_cfg.update(voxel_size=voxel[:2])
    for name in ('train', 'val', 'test'):
        config[f'{name}_dataloader'].batch_size = 1
        config[f'{name}_dataloader'].dataset.data_root = f'{root}/'
    for name in ('val', 'test'):
        config[f'{name}_evaluator'].update(data_root=f'{root}/', ann_file=f'{root}/nuscenes_infos_val.pkl')
    config.optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-3))
    config.param_scheduler = []
    config.train_cfg = dict(by_epoch=True, max_epochs=1, val_interval=9)
    config.default_hooks.update(checkpoint=dict(type='CheckpointHook', interval=1))
    config.work_dir, config.log_level = str(work_dir), 'ERROR'
    return config
