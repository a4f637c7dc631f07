from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from mmprune3d.checkpoint.publish import half_weights, publish


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        branch = nn.Linear(64, 64)
        self.branches = nn.ModuleList([branch] * 6)
        self.norm = nn.BatchNorm1d(4)


def test_published_weights_load_and_are_close(tmp_path: Path) -> None:
    model, fresh = Shared(), Shared()
    source, target = tmp_path / 'epoch_1.pth', tmp_path / 'published' / 'model.pth'
    optimizer = torch.optim.AdamW(model.parameters())
    meta = {'epoch': 1, 'seed': 0, 'cfg': 'long text'}
    torch.save({'meta': meta, 'state_dict': model.state_dict(), 'optimizer': optimizer.state_dict()}, source)
    publish(source, target, {'mAP': 0.5})
    data = torch.load(target, weights_only=True)
    assert data['meta'] == {'epoch': 1, 'seed': 0, 'metrics': {'mAP': 0.5}}
    assert set(data) == {'meta', 'state_dict'}
    fresh.load_state_dict(data['state_dict'])
    for name, value in fresh.state_dict().items():
        torch.testing.assert_close(value, model.state_dict()[name], atol=1e-3, rtol=1e-3)
    assert fresh.norm.num_batches_tracked.dtype == torch.int64


def test_shared_branches_are_stored_once(tmp_path: Path) -> None:
    source, target = tmp_path / 'source.pth', tmp_path / 'target.pth'
    torch.save({'state_dict': Shared().state_dict()}, source)
    publish(source, target)
    assert target.stat().st_size < 2 * 64 * 64 * 2


def test_weights_that_overflow_are_refused() -> None:
    with pytest.raises(ValueError, match='scale has values that are too large for float16'):
        half_weights({'scale': torch.tensor([1e6])})
