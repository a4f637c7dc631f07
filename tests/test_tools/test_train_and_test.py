"""petr_tiny through mmdet3d's own command lines, as a user runs them: the tools inside its wheel, untouched."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import mmdet3d
import pytest
import torch

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / 'configs' / 'petr' / 'petr_tiny.py'
TOOLS = Path(mmdet3d.__file__).parent / '.mim' / 'tools'


def options(data: Path) -> list[str]:
    """The tiny data set in the place of the real one."""
    settings = {
        'train_cfg.max_epochs': 1,
        'train_cfg.val_interval': 1,
        'model.pts_bbox_head.transformer.num_layers': 3,
        'train_dataloader.batch_size': 1,
        'default_hooks.logger.interval': 1,
    }
    for loader, pipeline in (('train', 4), ('val', 1), ('test', 1)):
        settings[f'{loader}_dataloader.num_workers'] = 0
        settings[f'{loader}_dataloader.persistent_workers'] = False
        settings[f'{loader}_dataloader.dataset.data_root'] = f'{data}/'
        settings[f'{loader}_dataloader.dataset.pipeline.{pipeline}.image_size'] = '(64,160)'
    for evaluator in ('val', 'test'):
        settings[f'{evaluator}_evaluator.data_root'] = f'{data}/'
        settings[f'{evaluator}_evaluator.ann_file'] = f'{data}/nuscenes_infos_val.pkl'
    return ['--cfg-options', *(f'{name}={value}' for name, value in settings.items())]


def run(*command: object) -> str:
    environment = os.environ | {'OMP_NUM_THREADS': '1'}
    result = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


@pytest.fixture(scope='module')
def trained(tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp('train')
    run(TOOLS / 'train.py', CONFIG, '--work-dir', work, *options(tiny.root))
    return work


def test_trains_and_validates(trained: Path) -> None:
    lines = [json.loads(line) for line in next(trained.glob('*/vis_data/scalars.json')).read_text().splitlines()]
    losses = [line['loss'] for line in lines if 'loss' in line]
    assert len(losses) == 3 and all(map(torch.isfinite, torch.tensor(losses)))
    assert any(name.endswith('/NDS') for line in lines for name in line)


def test_own_checkpoint_is_tested_with_the_hook_in_the_config(trained: Path, tiny) -> None:
    config = trained / 'pruned.py'
    config.write_text(f"_base_ = ['{CONFIG}']\ncustom_hooks = [dict(type='TgGBCHook', r=100, n=1, k=50)]\n")
    run(TOOLS / 'test.py', config, trained / 'epoch_1.pth', '--work-dir', trained / 'test', *options(tiny.root))
    metrics = json.loads(next((trained / 'test').glob('*/*.json')).read_text())
    assert any(name.endswith('/mAP') for name in metrics)


def test_two_gloo_ranks_share_an_epoch(tiny, tmp_path: Path) -> None:
    wrapper = ['type=MMDistributedDataParallel', 'device_ids=None', 'broadcast_buffers=False']
    launch = ['-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', 2]
    extra = [f'model_wrapper_cfg.{item}' for item in wrapper]
    extra += ['default_hooks.checkpoint.save_last=True', 'train_cfg.val_interval=5']
    output = run(
        *launch, ROOT / 'tools' / 'train.py', CONFIG, '--launcher', 'pytorch', '--work-dir', tmp_path,
        *options(tiny.root), *extra,
    )  # fmt: skip
    # three samples on two ranks make two steps, one on a single rank would make three
    assert 'Epoch(train) [1][2/2]' in output
    checkpoint = torch.load(tmp_path / 'epoch_1.pth', weights_only=True)
    assert checkpoint['meta']['iter'] == 2
    assert not any(name.startswith('module.') for name in checkpoint['state_dict'])
