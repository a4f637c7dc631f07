"""What a checkpoint holds, without running anything in it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from mmprune3d.checkpoint.info import describe, text
from mmprune3d.checkpoint.masks import packed_state, save_masks
from mmprune3d.checkpoint.slim import slim_checkpoint
from mmprune3d.cli import main
from mmprune3d.layers.gpq import PrunableEmbedding
from mmprune3d.pruning.channels import ChannelGroup, Member
from mmprune3d.pruning.tggbc import TgGBCPlan

META = {
    'epoch': 8, 'iter': 640, 'seed': 3, 'mmengine_version': '0.10.7', 'cfg': 'model = dict()',
    'dataset_meta': {'classes': ['car', 'bus']},
}  # fmt: skip


def net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))


def saved(path: Path, **parts: object) -> Path:
    torch.save({'state_dict': net().state_dict(), 'meta': dict(META), **parts}, path)
    return path


def test_a_training_checkpoint(tmp_path: Path):
    path = saved(tmp_path / 'a.pth', optimizer={'state': {}}, message_hub={})
    found = describe(path, tensors=True)
    json.dumps(found)
    assert found['framework'] == 'mmengine' and found['format'] == 'torch.save'
    assert found['progress'] == {'epoch': 8, 'iter': 640, 'seed': 3, 'mmengine_version': '0.10.7'}
    assert found['classes'] == ['car', 'bus'] and found['besides'] == ['message_hub', 'optimizer']
    # 12 + 4, 4 + 4 + 4 + 4 and the counter, 8 + 2
    weights = found['weights']
    assert (weights['tensors'], weights['parameters'], weights['shared']) == (9, 42, 0)
    assert weights['types'] == {'float32': 8, 'int64': 1}
    assert weights['zeros'] == pytest.approx(8 / 42)  # bias and running mean of the norm
    assert found['mmprune3d'] == {} and found['tensors']['0.weight'] == [[4, 3, 1, 1], 'float32']
    shown = text(found)
    assert 'pruned           no' in shown and '9 tensors (8 float32, 1 int64)' in shown and '42,' in shown
    assert '0.weight  [4, 3, 1, 1]  float32' in shown


@pytest.mark.parametrize(
    ('data', 'name'),
    [
        ({'state_dict': {'a': torch.ones(2)}, 'meta': {'mmcv_version': '1.7', 'CLASSES': ['car']}}, 'mmcv 1.x'),
        ({'state_dict': {'a': torch.ones(2)}, 'pytorch-lightning_version': '2'}, 'PyTorch Lightning'),
        ({'model_state': {'a': torch.ones(2)}, 'version': 'x', 'epoch': 3}, 'OpenPCDet'),
        ({'state_dict': {'a': torch.ones(2)}, 'meta': {}}, 'not known (weights and meta only)'),
        ({'a': torch.ones(2)}, 'not known (weights only)'),
        ({'state_dict': {'a': torch.ones(2)}, 'meta': {'mmprune3d': {'gpq': {}}}}, 'mmprune3d'),
        ({'state_dict': {'a': torch.ones(2)}, 'meta': {'x': 1}, 'y': 2}, 'not known'),
    ],
)
def test_frameworks_are_told_by_what_they_write(data: dict, name: str, tmp_path: Path):
    torch.save(data, tmp_path / 'a.pth')
    found = describe(tmp_path / 'a.pth')
    assert found['framework'] == name and found['weights']['parameters'] == 2
    assert found['classes'] == (['car'] if name == 'mmcv 1.x' else [])


def test_shared_tensors_count_once(tmp_path: Path):
    one = torch.zeros(5)
    torch.save({'state_dict': {'a': one, 'b': one, 'c': one[:2]}, 'meta': {}}, tmp_path / 'a.pth')
    weights = describe(tmp_path / 'a.pth')['weights']
    assert weights == {'tensors': 3, 'parameters': 7, 'types': {'float32': 3}, 'shared': 1, 'zeros': 1.0}


def test_what_mmprune3d_stored_is_told(tmp_path: Path):
    masks = {'0.weight': torch.arange(12).view(4, 3, 1, 1) < 3}
    embedding = PrunableEmbedding.convert(nn.Embedding(6, 3))
    embedding.remove(torch.tensor([4, 1]))
    weights = {**net().state_dict(), **{f'q.{name}': value for name, value in embedding.state_dict().items()}}
    meta = {**META, 'mmprune3d': {'tggbc': TgGBCPlan(r=12, n=1, k=5).to_dict()}}
    torch.save(
        {'state_dict': weights, 'meta': meta, 'mmprune3d': packed_state(masks, {'plan': {'sparsity': 0.75}})},
        tmp_path / 'a.pth',
    )
    found = describe(tmp_path / 'a.pth')
    pruned = found['mmprune3d']
    assert pruned['plans']['tggbc']['r'] == 12
    assert pruned['masks'] == {'tensors': 1, 'kept': 3, 'total': 12, 'record': {'plan': {'sparsity': 0.75}}}
    assert pruned['queries'] == {'q': {'kept': 4, 'total': 6}} and found['besides'] == []
    shown = text(found)
    assert 'tggbc: r=12, n=1' in shown and '25.00 % of the weights are kept' in shown
    assert '4 of 6 are left in q' in shown and 'pruned           no' not in shown


def test_a_slim_checkpoint(tmp_path: Path):
    group = ChannelGroup(
        '0', 4, (Member('0.weight', 0, 'out'), Member('0.bias', 0, 'out'), Member('2.weight', 1, 'in'))
    )
    data = {'state_dict': net().state_dict(), 'meta': {}}
    torch.save(slim_checkpoint(data, [group], {'0': torch.tensor([True, False, True, True])}), tmp_path / 'slim.pth')
    found = describe(tmp_path / 'slim.pth')
    assert found['mmprune3d'] == {'channels': {'groups': 1, 'kept': 3, 'total': 4}}
    assert '3 of 4 are left, in 1 groups' in text(found)


def test_masks_without_weights_are_described(tmp_path: Path):
    save_masks(tmp_path / 'masks.pth', {'a': torch.tensor([True, False])}, {'plan': {}})
    found = describe(tmp_path / 'masks.pth')
    assert found['framework'] == 'mmprune3d (masks without weights)' and found['weights']['tensors'] == 0
    assert found['mmprune3d']['masks']['kept'] == 1 and 'weights  ' not in text(found)


def test_nothing_in_the_file_is_run(tmp_path: Path, capsys: pytest.CaptureFixture):
    torch.save(net(), tmp_path / 'program.pth')
    with pytest.raises(SystemExit, match='a pickled object of the class'):
        main(['checkpoint', 'info', str(tmp_path / 'program.pth')])


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture):
    path = saved(tmp_path / 'a.pth')
    assert main(['checkpoint', 'info', str(path)]) == 0
    assert capsys.readouterr().out == text(describe(path)) + '\n'
    assert main(['checkpoint', 'info', str(path), '--json', '--tensors']) == 0
    assert json.loads(capsys.readouterr().out) == describe(path, tensors=True)
