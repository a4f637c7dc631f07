"""A tiny halting detector trained by mmengine's Runner: in two processes, killed and resumed, tested."""

from __future__ import annotations

import os
import signal
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.registry import DATASETS, HOOKS, METRICS
from mmengine.runner import Runner
from torch import Tensor
from torch.utils.data import Dataset

from mmprune3d.engine.unwrap import unwrap
from mmprune3d.models.sst.halting_backbone import HaltingSST
from tests.kills import FORK, assert_same, in_process
from tests.test_models.test_sst.small_sst import GATES, UNET, cloud, detector_config

ITERATIONS = 5
NUMBER = count()  # mmengine wants a name per run
DROP = {0: dict(max_tokens=6, drop_range=(0, 1000))}
SHARES = (0.5, 0.75)
EXACT = tuple(dict(gate, bounds=(share, share)) for gate, share in zip(GATES, SHARES))


@DATASETS.register_module()
class HaltingClouds(Dataset):
    """Every sample has as many tokens, and one object for each of the head's tasks."""

    metainfo = dict(classes=('car', 'pedestrian', 'cyclist'))

    def __init__(self, num: int, lazy_init: bool = False) -> None:
        self.num = num

    def __len__(self) -> int:
        return self.num

    def __getitem__(self, index: int) -> dict:
        sample = cloud(index, cells=80)
        sample['data_samples'].gt_instances_3d.labels_3d = torch.tensor([0, 1 + index % 2])
        return sample


@METRICS.register_module()
class HaltingCloudsMetric(BaseMetric):
    def process(self, data_batch: Any, data_samples: list) -> None:
        self.results += [float(sample['pred_instances_3d']['scores_3d'].sum()) for sample in data_samples]

    def compute_metrics(self, results: list) -> dict:
        return dict(samples=len(results), scores=sum(results))


@HOOKS.register_module()
class GradientsHook(Hook):
    """Which parameters had a gradient in each iteration, the losses, and the weights before."""

    seen: list[set[str]] = []
    losses: list[dict[str, float]] = []
    first: dict[str, Tensor] = {}

    def before_train(self, runner: Runner) -> None:
        self.seen.clear(), self.losses.clear(), self.first.clear()
        for name, value in unwrap(runner.model).named_parameters():
            self.first[name] = value.detach().clone()
            value.register_hook(lambda gradient, name=name: self.seen[-1].add(name))

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        self.seen.append(set())

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        self.losses.append({key: value.item() for key, value in outputs.items()})


def config(work_dir: Path, *hooks: dict, model: dict | None = None, batch_size: int = 2, **changes: Any) -> Config:
    """Batches in order; a checkpoint after each iteration."""
    loader = dict(
        batch_size=batch_size,
        num_workers=0,
        sampler=dict(type='DefaultSampler', shuffle=False),
        dataset=dict(type='HaltingClouds', num=2 * ITERATIONS),
        collate_fn=dict(type='pseudo_collate'),
    )
    tested = loader | dict(dataset=dict(type='HaltingClouds', num=3))
    settings = dict(
        default_scope='mmdet3d',
        experiment_name=f'halting-training-{next(NUMBER)}',
        work_dir=str(work_dir),
        model=model or detector_config(),
        train_dataloader=loader,
        val_dataloader=tested,
        test_dataloader=tested,
        train_cfg=dict(type='IterBasedTrainLoop', max_iters=ITERATIONS, val_interval=100),
        val_cfg=dict(),
        test_cfg=dict(),
        val_evaluator=dict(type='HaltingCloudsMetric'),
        test_evaluator=dict(type='HaltingCloudsMetric'),
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=1e-3), clip_grad=dict(max_norm=10)),
        param_scheduler=[dict(type='OneCycleLR', eta_max=1e-2, total_steps=ITERATIONS, by_epoch=False)],
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=1, by_epoch=False)),
        custom_hooks=[dict(type='IterationSeedHook'), dict(type='GradientsHook'), *hooks],
        randomness=dict(seed=0),
        log_level='ERROR',
    )
    return Config({**settings, **changes})


def train(work_dir: Path, *hooks: dict, **changes: Any) -> Runner:
    work_dir.mkdir(exist_ok=True)
    runner = Runner.from_cfg(config(work_dir, *hooks, **changes))
    runner.train()
    return runner


def saved(work_dir: Path, iteration: int = ITERATIONS) -> dict:
    return torch.load(work_dir / f'iter_{iteration}.pth', weights_only=True)


def random_model() -> dict:
    """Tokens are dropped and dropout is on; norms use the statistics of batches."""
    own = dict(dropout=0.1, norm_cfg=dict(type='BN2d'), checkpoint_blocks=(0,), unet_to_bev=True)
    gates = (dict(GATES[0], module={**UNET, 'norm_cfg': None}), GATES[1])
    config = detector_config(halting=gates, **own)
    config['middle_encoder']['drop_info'] = (DROP, None)
    config['voxel_encoder']['norm_cfg'] = dict(type='BN1d')
    return config


@pytest.fixture(scope='module')
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run."""
    work_dir = tmp_path_factory.mktemp('whole')
    runner = train(work_dir, model=random_model())
    names = {name for name, _ in runner.model.named_parameters()}
    assert GradientsHook.seen == [names] * ITERATIONS
    return work_dir


PARTS = ('state_dict', 'optimizer', 'param_schedulers')


@pytest.mark.parametrize(('point', 'iteration'), [('before', 0), ('before', 3), ('after', 3), ('saving', 2)])
def test_a_killed_run_goes_on_as_if_nothing_had_happened(
    whole: Path, tmp_path: Path, point: str, iteration: int
) -> None:
    """Bit for bit, with tokens dropped at random."""
    killer = dict(type='SigKillHook', point=point, iteration=iteration, priority=60)
    assert in_process(train, tmp_path, killer, model=random_model()) == -signal.SIGKILL
    assert not (tmp_path / f'iter_{ITERATIONS}.pth').exists()
    train(tmp_path, model=random_model(), resume=True)
    ours, theirs = saved(tmp_path), saved(whole)
    for part in PARTS:
        assert_same(ours[part], theirs[part], part)


def test_validation_in_between_changes_nothing(whole: Path, tmp_path: Path) -> None:
    """It runs on the other path and drops nothing, and leaves no trace."""
    loop = dict(type='IterBasedTrainLoop', max_iters=ITERATIONS, val_interval=2)
    train(tmp_path, model=random_model(), train_cfg=loop)
    for part in PARTS:
        assert_same(saved(tmp_path)[part], saved(whole)[part], part)


def test_training_is_differentiable_and_testing_sparse(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths, computed = [], []
    forward = HaltingSST.forward_with_record

    def noted(self: HaltingSST, tokens: Any, path: str) -> Any:
        paths.append((path, self.training))
        maps, record = forward(self, tokens, path)
        computed.append(record)
        return maps, record

    monkeypatch.setattr(HaltingSST, 'forward_with_record', noted)
    settings = dict(model=random_model(), load_from=str(whole / f'iter_{ITERATIONS}.pth'))
    runner = Runner.from_cfg(config(tmp_path, **settings))
    metrics = runner.test()
    assert metrics['samples'] == 3 and paths == [('sparse', False)] * 2
    assert all(0 < record.mean_sparsity() < 1 for record in computed)
    monkeypatch.setattr(HaltingSST, 'forward_with_record', lambda self, tokens, path: forward(self, tokens, 'edf'))
    assert runner.test()['scores'] == pytest.approx(metrics['scores'], rel=1e-5)
    paths.clear()
    monkeypatch.setattr(HaltingSST, 'forward_with_record', noted)
    train(tmp_path, model=random_model(), train_cfg=dict(type='IterBasedTrainLoop', max_iters=1, val_interval=1))
    assert paths == [('edf', True)] + [('sparse', False)] * 2


def two_ranks(rank: int, work_dir: Path, results: Any) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE='2', MASTER_ADDR='127.0.0.1')
    torch.distributed.init_process_group('gloo', f'file://{work_dir}/rendezvous', rank=rank, world_size=2)
    wrapper = dict(type='MMDistributedDataParallel', device_ids=None, find_unused_parameters=False)
    changes = dict(launcher='pytorch', model_wrapper_cfg=wrapper, batch_size=1)
    results.put((rank, *trained(work_dir, **changes)))
    torch.distributed.destroy_process_group()


def trained(work_dir: Path, **changes: Any) -> tuple[dict[str, list], list[dict[str, float]], bool]:
    """What weights changed by in plain gradient descent, the losses, and whether all parameters took part."""
    slow = dict(optimizer=dict(type='SGD', lr=1e-3))  # steps at which small differences stay small
    runner = train(work_dir, model=detector_config(halting=EXACT), optim_wrapper=slow, param_scheduler=[], **changes)
    values = dict(unwrap(runner.model).named_parameters())
    whole = GradientsHook.seen == [set(values)] * ITERATIONS
    changes = {name: (value.detach() - GradientsHook.first[name]).tolist() for name, value in values.items()}
    return changes, list(GradientsHook.losses), whole


def test_two_processes_train_as_one_with_their_common_batch(tmp_path: Path) -> None:
    """No parameter goes without a gradient, so that processes need not look for such ones."""
    results = FORK.Queue()
    processes = [FORK.Process(target=two_ranks, args=(rank, tmp_path, results)) for rank in range(2)]
    for process in processes:
        process.start()
    found = {rank: rest for rank, *rest in (results.get(timeout=120) for _ in processes)}
    for process in processes:
        process.join()
        assert process.exitcode == 0
    steps, losses, everything = trained(tmp_path / 'alone')
    assert everything and found[0][2] and found[1][2]
    assert found[0][0] == found[1][0]
    assert found[0][1] != found[1][1]  # they had different data
    # CenterHead adds 1e-4 to its number of boxes, which is not the same share of one box and of two
    for key in ('loss', 'loss_halting'):
        both = [(one[key] + other[key]) / 2 for one, other in zip(found[0][1], found[1][1])]
        assert both == pytest.approx([each[key] for each in losses], rel=1e-3)
    for name, step in steps.items():
        ours, theirs = torch.tensor(found[0][0][name]), torch.tensor(step)
        assert (ours - theirs).norm() <= 1e-2 * theirs.norm() + 1e-6, name


def test_half_precision(tmp_path: Path) -> None:
    """Weights stay float32; attention and scores are computed in half precision."""
    wrapper = dict(type='BFloat16OptimWrapper', optimizer=dict(type='AdamW', lr=1e-3))
    runner = train(tmp_path, optim_wrapper=wrapper)
    assert all(value.dtype == torch.float32 and value.isfinite().all() for value in runner.model.parameters())
    assert all(torch.tensor(list(losses.values())).isfinite().all() for losses in GradientsHook.losses)
    names = {name for name, _ in runner.model.named_parameters()}
    assert GradientsHook.seen == [names] * ITERATIONS


def shares_halted(runner: Runner) -> Tensor:
    records = []
    runner.model.record_listeners.append(lambda record, boxes: records.append(record.sparsity()))
    runner.test()
    return torch.stack(records).mean(0)


def test_bounds_hold_before_and_after_training(tmp_path: Path) -> None:
    runner = Runner.from_cfg(config(tmp_path, model=detector_config(halting=EXACT)))
    for _ in range(2):
        expected = torch.tensor(SHARES).repeat_interleave(2)
        torch.testing.assert_close(shares_halted(runner), expected, rtol=0, atol=0.01)
        if runner.iter == 0:
            runner.train()
