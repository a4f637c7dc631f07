"""Two processes, of which one has no points: both train on, with norms over all processes."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from .small_sst import built, cloud
from .test_agreement import changed

FORK = multiprocessing.get_context('fork')
SYNC = dict(type='naiveSyncBN1d', eps=1e-3, momentum=0.01)


def rank_main(rank: int, kind: str, folder: Path, results: Any) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE='2', MASTER_ADDR='127.0.0.1')
    torch.distributed.init_process_group('gloo', f'file://{folder}/rendezvous', rank=rank, world_size=2)
    torch.manual_seed(0)
    model = built(changed(kind, voxel_encoder__norm_cfg=SYNC)).train()
    parallel = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    for step in range(3):
        sample = cloud(step)
        points = sample['inputs']['points'][: 0 if rank and step < 2 else 200]
        data = dict(inputs=dict(points=[points]), data_samples=[sample['data_samples']])
        total, _ = model.parse_losses(parallel(**model.data_preprocessor(data, True), mode='loss'))
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    found = [value.double().sum().item() for value in model.voxel_encoder.state_dict().values()]
    results.put((rank, bool(total.isfinite()), found))
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize('kind', ['SSTDetector', 'HaltingSSTDetector'])
def test_both_go_on_and_stay_alike(kind: str, tmp_path: Path) -> None:
    results = FORK.Queue()
    processes = [FORK.Process(target=rank_main, args=(rank, kind, tmp_path, results)) for rank in range(2)]
    for process in processes:
        process.start()
    found = {rank: rest for rank, *rest in (results.get(timeout=180) for _ in processes)}
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert found[0][0] and found[1][0]
    assert found[0][1] == found[1][1] and all(value == value for value in found[0][1])
