"""Trainings that prune, killed at any moment and resumed; in two processes; from the command line's config."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from mmprune3d.adapters.modality_masking import ModalityMasker
from mmprune3d.checkpoint.masks import load_masks
from mmprune3d.engine.loops import altermoma_loop
from mmprune3d.pruning.altermoma import AlterMOMAPlan
from tests.kills import FORK, assert_same, in_process

from .small_fusion import GROUPS, INTERFACES, RADAR_GROUPS, RADAR_INTERFACES, fusion_config, write_config

PLANS = dict(
    altermoma=dict(sparsity=0.6, eval_batches=2, reactivation_steps=2, recalibrate=2),
    imp=dict(criterion='magnitude', sparsity=0.75, rounds=2, epochs_per_round=1, rewind='init'),
)
EPOCHS = 4


def changes_of(name: str) -> dict[str, Any]:
    """The settings of a run that is killed or not."""
    return dict(
        runner_type='AlterMOMARunner',
        pruning=dict(PLANS[name], groups=GROUPS, interfaces=INTERFACES),
        model=dict(type='SmallFusion', dropout=0.3),
        train_cfg=dict(by_epoch=True, max_epochs=EPOCHS, val_interval=2),
    )


def train(config: Path, resume: bool = False, killer: dict | None = None, scoring: int = 0) -> Runner:
    """As mmdet3d's ``tools/train.py CONFIG [--resume]``.

    Args:
        config: The file.
        resume: Whether ``--resume`` is given, which forgets load_from.
        killer: A hook that ends the process.
        scoring: Ends the process after the scoring of this round, counted from 1.
    """
    cfg = Config.fromfile(config)
    cfg.launcher = 'none'
    if resume:
        cfg.resume, cfg.load_from = True, None
    cfg.custom_hooks = [
        dict(type='IterationSeedHook'),
        dict(type='EMAHook', momentum=0.1),
        *([killer] if killer else []),
    ]
    runner = RUNNERS.build(cfg)
    if scoring:
        die_after_scoring(scoring)
    runner.train()
    return runner


def die_after_scoring(number: int) -> None:
    score, calls = altermoma_loop.score_model, []

    def score_and_die(*args: Any) -> Any:
        found = score(*args)
        calls.append(found)
        if len(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return found

    altermoma_loop.score_model = score_and_die


@pytest.fixture(scope='module')
def dense(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A converged detector, as it were."""
    folder = tmp_path_factory.mktemp('dense')
    Runner.from_cfg(fusion_config(folder, train_cfg=dict(type='EpochBasedTrainLoop', max_epochs=1))).train()
    return str(folder / 'epoch_1.pth')


@pytest.fixture(scope='module', params=PLANS)
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, dense: str) -> tuple[str, dict]:
    """An uninterrupted run: its plan, its last checkpoint."""
    folder = tmp_path_factory.mktemp(request.param)
    train(write_config(folder / 'from' / 'config.py', folder, load_from=dense, **changes_of(request.param)))
    return request.param, torch.load(folder / f'epoch_{EPOCHS}.pth', weights_only=True)


POINTS: list[dict[str, Any]] = [
    dict(scoring=1),  # before anything is saved, by AlterMOMA; IMP has trained an epoch
    dict(killer=dict(type='SigKillHook', point='before', iteration=0, priority=0)),  # AlterMOMA has pruned
    dict(killer=dict(type='SigKillHook', point='after', iteration=2, priority=45)),  # between masks and average
    dict(killer=dict(type='SigKillHook', point='after', iteration=5, priority=0)),  # the optimizer has stepped
    dict(killer=dict(type='SigKillHook', point='saving', iteration=8, priority=99)),  # while epoch 2 is saved
    dict(killer=dict(type='SigKillHook', point='before', iteration=8, priority=0)),  # IMP has pruned twice
    dict(killer=dict(type='SigKillHook', point='after', iteration=14, priority=95)),
]


@pytest.mark.parametrize('point', POINTS, ids=str)
def test_a_killed_run_goes_on_as_if_nothing_had_happened(whole, dense, tmp_path, point):
    name, expected = whole
    config = write_config(tmp_path / 'from' / 'config.py', tmp_path, load_from=dense, **changes_of(name))
    assert in_process(train, config, **point) == -signal.SIGKILL
    assert not (tmp_path / f'epoch_{EPOCHS}.pth').exists()
    train(config, resume=True)
    found = torch.load(tmp_path / f'epoch_{EPOCHS}.pth', weights_only=True)
    for part in ('state_dict', 'ema_state_dict', 'optimizer', 'mmprune3d', 'param_schedulers'):
        assert_same(found.get(part), expected.get(part), part)


def test_a_second_death_while_imp_scores(dense, tmp_path):
    """After its first round, before its second."""
    folders = [tmp_path / name for name in ('whole', 'killed')]
    for folder in folders:
        folder.mkdir()
    configs = [write_config(f / 'from' / 'config.py', f, load_from=dense, **changes_of('imp')) for f in folders]
    train(configs[0])
    assert in_process(train, configs[1], scoring=2) == -signal.SIGKILL
    assert in_process(train, configs[1], resume=True, scoring=1) == -signal.SIGKILL
    train(configs[1], resume=True)
    ours, theirs = (torch.load(folder / f'epoch_{EPOCHS}.pth', weights_only=True) for folder in folders)
    for part in ('state_dict', 'optimizer', 'mmprune3d'):
        assert_same(ours[part], theirs[part], part)
    (folders[1] / 'rewind.pth').unlink()
    (folders[1] / 'last_checkpoint').write_text(str(folders[1] / 'epoch_1.pth'))
    with pytest.raises(ValueError, match=r'rewind.pth, written when the training began, is gone'):
        train(configs[1], resume=True)


def test_a_resumed_run_does_not_score_and_refuses_another_plan(dense, tmp_path, monkeypatch):
    config = write_config(tmp_path / 'from' / 'config.py', tmp_path, load_from=dense, **changes_of('altermoma'))
    assert in_process(train, config, killer=dict(type='SigKillHook', point='after', iteration=5, priority=0)) < 0
    monkeypatch.setattr(altermoma_loop, 'score_model', None)
    assert load_masks(tmp_path / 'epoch_1.pth')
    train(config, resume=True)
    other = dict(changes_of('altermoma'), pruning=dict(sparsity=0.7, groups=GROUPS, interfaces=INTERFACES))
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'epoch_1.pth'))
    config = write_config(tmp_path / 'from' / 'config.py', tmp_path, load_from=dense, **other)
    with pytest.raises(ValueError, match=r"pruned by the plan .*'sparsity': 0.6.*the config has .*'sparsity': 0.7"):
        train(config, resume=True)


def test_without_a_checkpoint_scores_are_of_random_weights_and_the_log_says_so(tmp_path):
    """--resume of a config without load_from, before anything was saved, begins anew as well."""
    config = write_config(tmp_path / 'from' / 'config.py', tmp_path, **changes_of('altermoma'), log_level='WARNING')
    for resume in (False, True):
        runner = train(config, resume=resume)
        log = (Path(runner.log_dir) / f'{runner.timestamp}.log').read_text()
        assert 'the scores are those of initial weights' in log
        (tmp_path / 'last_checkpoint').unlink()


def two_ranks(rank: int, work_dir: Path, criterion: str, results: Any) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE='2', MASTER_ADDR='127.0.0.1')
    torch.distributed.init_process_group('gloo', f'file://{work_dir}/{criterion}', rank=rank, world_size=2)
    wrapper = dict(type='MMDistributedDataParallel', device_ids=None, broadcast_buffers=False)
    results.put((rank, trained_masks(work_dir, criterion, 2, launcher='pytorch', model_wrapper_cfg=wrapper)))
    torch.distributed.destroy_process_group()


def trained_masks(work_dir: Path, criterion: str, batch_size: int, **changes: Any) -> tuple[dict, dict]:
    """Masks and weights after a training; plain lists, for a queue."""
    settings = dict(criterion=criterion, sparsity=0.6, eval_batches=2, reactivation_steps=3, lr=0.05, optimizer='sgd')
    if criterion == 'synflow':
        settings['rounds'] = 4
    config = fusion_config(
        work_dir,
        runner_type='AlterMOMARunner',
        pruning=dict(settings, groups=RADAR_GROUPS, interfaces=RADAR_INTERFACES),
        model=dict(type='SmallFusion', norm=False, radar=True),
        train_cfg=dict(type='EpochBasedTrainLoop', max_epochs=2, val_interval=9),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.01)),
        **changes,
    )
    config.train_dataloader.batch_size = batch_size
    config.train_dataloader.dataset.num = 16
    runner = RUNNERS.build(config)
    runner.train()
    masks = next(hook for hook in runner.hooks if type(hook).__name__ == 'MaskHook').masks
    weights = {name.removeprefix('module.'): p.tolist() for name, p in runner.model.named_parameters()}
    return {name: mask.tolist() for name, mask in masks.items()}, weights


@pytest.mark.parametrize('criterion', AlterMOMAPlan.criteria)
def test_two_processes_prune_as_one_with_their_common_batch(tmp_path, criterion):
    results = FORK.Queue()
    processes = [FORK.Process(target=two_ranks, args=(rank, tmp_path, criterion, results)) for rank in range(2)]
    for process in processes:
        process.start()
    found = dict(results.get(timeout=60) for _ in processes)
    for process in processes:
        process.join()
        assert process.exitcode == 0
    alone = tmp_path / 'alone'
    alone.mkdir()
    masks, weights = trained_masks(alone, criterion, 4)
    assert found[0] == found[1]
    assert found[0][0] == masks
    for name, values in weights.items():
        torch.testing.assert_close(torch.tensor(found[0][1][name]), torch.tensor(values), rtol=1e-4, atol=1e-6)
        if name in masks:
            assert not torch.tensor(values)[~torch.tensor(masks[name])].any()


def test_every_modality_of_three_is_masked_once(tmp_path, monkeypatch):
    seen: list[str | None] = []
    masked = ModalityMasker.masked

    def noted(self: Any, modality: str | None) -> Any:
        seen.append(modality)
        return masked(self, modality)

    monkeypatch.setattr(ModalityMasker, 'masked', noted)
    trained_masks(tmp_path, 'altermoma', 2)
    assert list(dict.fromkeys(seen)) == [None, 'camera', 'lidar', 'radar']
    assert [seen.count(name) for name in (None, 'camera', 'lidar', 'radar')] == [2, 7, 7, 7]  # K; K + B + K
