"""A tiny PETR trained with GPQHook: against the authors' loop, killed and resumed, averaged, in two processes."""

from __future__ import annotations

import copy
import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmdet.utils import register_all_modules
from mmdet3d.apis import init_model
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import DATASETS, HOOKS, init_default_scope
from mmengine.runner import Runner
from mmengine.runner.checkpoint import load_checkpoint
from mmengine.structures import InstanceData
from torch import Tensor
from torch.utils.data import Dataset

from mmprune3d.adapters.learned_queries import learned_queries
from mmprune3d.engine.unwrap import unwrap
from tests.kills import FORK, assert_same, in_process
from tests.test_adapters import small_detr
from tests.test_models.test_petr.small import batch, build, detector_config

from .blink import training_config

QUERIES, GROUPS, ITERATIONS = 12, 2, 13
GPQ = dict(type='GPQHook', target=7, interval=2)
LEFT = [12, 11, 11, 10, 10, 9, 9, 8, 8, 7, 7, 7, 7]
"""Queries after each iteration."""


class Logbook:
    """What happened in the last run in this process, by iteration."""

    logits: dict[int, Tensor]
    kept: dict[int, list[int]]
    averaged: dict[int, list[int]]
    rows: dict[int, Tensor]
    gradients: dict[int, Tensor]


LOG = Logbook()


@HOOKS.register_module()
class LogbookHook(Hook):
    """Comes after GPQHook and EMAHook."""

    priority = 'LOW'

    def before_train(self, runner: Runner) -> None:
        for name in Logbook.__annotations__:
            setattr(LOG, name, {})
        self.model = unwrap(runner.model)
        self.points = self.model.pts_bbox_head.reference_points
        self.model.pts_bbox_head.register_forward_hook(self._heard)
        self.points.all_rows.register_hook(self._arrived)  # they are gone when an iteration ends

    def _heard(self, head: Any, inputs: Any, outputs: Any) -> None:
        if head.training:
            self.outputs = outputs['all_cls_scores'][-1].detach()

    def _arrived(self, gradient: Tensor) -> None:
        self.gradient = gradient.clone()

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        LOG.logits[runner.iter] = self.outputs
        LOG.kept[runner.iter] = self.points.kept.tolist()
        LOG.rows[runner.iter] = self.points.all_rows.detach().clone()
        LOG.gradients[runner.iter] = self.gradient
        for hook in runner.hooks:
            if hasattr(hook, 'ema_model'):
                LOG.averaged[runner.iter] = hook.ema_model.module.pts_bbox_head.reference_points.kept.tolist()


def config(work_dir: Path, hooks: tuple[dict, ...] = (), gpq: dict = GPQ, **changes: Any) -> Config:
    custom = [gpq, dict(type='IterationSeedHook'), dict(type='EMAHook', momentum=0.1), dict(type='LogbookHook'), *hooks]
    name = f'run-{len(list(work_dir.iterdir()))}'
    return training_config(
        work_dir, ITERATIONS, 2 * ITERATIONS, GROUPS, **{'custom_hooks': custom, 'experiment_name': name, **changes}
    )


def train(work_dir: Path, *hooks: dict, **changes: Any) -> Runner:
    runner = Runner.from_cfg(config(work_dir, hooks, **changes))
    runner.train()
    return runner


def checkpoint(work_dir: Path, iteration: int = ITERATIONS) -> dict:
    return torch.load(work_dir / f'iter_{iteration}.pth', weights_only=True)


@pytest.fixture(scope='module')
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict]]:
    """An uninterrupted run: its folder and its logbook."""
    work_dir = tmp_path_factory.mktemp('whole')
    train(work_dir)
    return work_dir, {name: dict(getattr(LOG, name)) for name in Logbook.__annotations__}


def test_queries_go_as_in_the_authors_loop(whole):
    """Every logit that the head gave for learned queries, fed to the loop as it is published."""
    alive, records = list(range(QUERIES)), []
    for iteration in range(ITERATIONS):
        logits = whole[1]['logits'][iteration]
        denoising = GROUPS * max(5, 2) if iteration % 3 == 0 else logits.shape[1] - len(alive)
        assert logits.shape[1] - denoising == len(alive)  # the forward pass really has that few
        records.append(logits[:, denoising:].max(-1)[0].mean(0))
        if (iteration + 1) % 2 == 0 and len(alive) > 7:
            del alive[torch.stack(records).mean(0).argmin().item()]
            records = []
        assert whole[1]['kept'][iteration] == alive
        assert len(alive) == LEFT[iteration]


def test_rows_that_are_gone_stay_as_they_were_and_have_no_gradient(whole):
    log = whole[1]
    for iteration in range(1, ITERATIONS):
        gone = sorted(set(range(QUERIES)) - set(log['kept'][iteration - 1]))
        stayed = log['kept'][iteration - 1]
        assert torch.equal(log['rows'][iteration][gone], log['rows'][iteration - 1][gone])
        assert (log['rows'][iteration][stayed] != log['rows'][iteration - 1][stayed]).all()
        assert not log['gradients'][iteration][gone].any()
        assert log['gradients'][iteration][stayed].any(1).all()


def test_the_average_has_the_same_queries(whole):
    assert whole[1]['averaged'] == whole[1]['kept']
    saved = checkpoint(whole[0])
    name = 'pts_bbox_head.reference_points.removal_rank'
    assert torch.equal(saved['state_dict'][name], saved['ema_state_dict'][f'module.{name}'])


@pytest.mark.parametrize('ema', [dict(update_buffers=True), dict(begin_iter=6), dict(interval=3)], ids=str)
def test_other_averages_have_the_same_queries(tmp_path, ema):
    train(tmp_path, custom_hooks=[GPQ, dict(type='EMAHook', **ema), dict(type='LogbookHook')])
    assert LOG.averaged == LOG.kept and [len(kept) for kept in LOG.kept.values()] == LEFT


def test_the_history_says_what_went_and_why(whole):
    lines = [json.loads(line) for line in (whole[0] / 'gpq_history.jsonl').read_text().splitlines()]
    assert [line['iter'] for line in lines] == [2, 4, 6, 8, 10]
    alive = set(range(QUERIES))
    for line in lines:
        assert set(map(int, line['scores'])) == alive
        (victim,) = line['removed']
        assert line['scores'][str(victim)] == min(line['scores'].values())
        alive.remove(victim)
    assert sorted(alive) == whole[1]['kept'][ITERATIONS - 1]


POINTS = [
    ('before', 0, 0),  # before anything is saved
    ('before', 3, 0),
    ('after', 3, 0),  # the optimizer has stepped, no query has gone
    ('after', 3, 45),  # a query has gone, the average does not know
    ('after', 4, 95),  # after saving, in the middle of an interval
    ('saving', 7, 99),  # while the checkpoint of an iteration with a removal is made
    ('after', 9, 60),  # the last removal
    ('after', 11, 60),
]


@pytest.mark.parametrize('point, iteration, priority', POINTS, ids=str)
def test_a_killed_run_goes_on_as_if_nothing_had_happened(whole, tmp_path, point, iteration, priority):
    killer = dict(type='SigKillHook', point=point, iteration=iteration, priority=priority)
    assert in_process(train, tmp_path, killer) == -signal.SIGKILL
    assert not (tmp_path / f'iter_{ITERATIONS}.pth').exists()
    train(tmp_path, resume=True)
    for i, kept in LOG.kept.items():
        assert kept == whole[1]['kept'][i]
    ours, theirs = checkpoint(tmp_path), checkpoint(whole[0])
    for part in ('state_dict', 'ema_state_dict', 'optimizer', 'gpq', 'param_schedulers'):
        assert_same(ours.get(part), theirs.get(part), part)
    assert (tmp_path / 'gpq_history.jsonl').read_text() == (whole[0] / 'gpq_history.jsonl').read_text()


def test_epochs_that_are_killed_begin_again(tmp_path):
    """Four epochs of four shuffled iterations; mmengine resumes at the beginning of an epoch."""
    settings = config(tmp_path)
    loader = {**settings.train_dataloader, 'sampler': dict(type='DefaultSampler', shuffle=True)}
    loader['dataset'] = dict(type='BlinkDataset', num=8)
    changes = dict(
        train_dataloader=loader,
        train_cfg=dict(type='EpochBasedTrainLoop', max_epochs=4, val_interval=9),
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=1)),
        gpq=dict(type='GPQHook', target=7, epochs=3.5),  # one query after every second iteration
    )
    folders = [tmp_path / name for name in ('whole', 'killed')]
    for folder in folders:
        folder.mkdir()
    train(folders[0], **changes)
    expected = dict(LOG.kept)
    assert [len(kept) for kept in expected.values()] == [12, 11, 11, 10, 10, 9, 9, 8, 8, 7] + [7] * 6
    killer = dict(type='SigKillHook', point='after', iteration=6, priority=60)
    assert in_process(train, folders[1], killer, **changes) == -signal.SIGKILL
    train(folders[1], resume=True, **changes)
    assert LOG.kept == {i: kept for i, kept in expected.items() if i >= 4}
    ours, theirs = (torch.load(folder / 'epoch_4.pth', weights_only=True) for folder in reversed(folders))
    for part in ('state_dict', 'ema_state_dict', 'optimizer', 'gpq'):
        assert_same(ours[part], theirs[part], part)


def test_a_checkpoint_of_any_moment_loads_into_the_original_model(whole):
    for iteration in (1, 2, 7, ITERATIONS):
        model = build(detector_config())
        load_checkpoint(model, str(whole[0] / f'iter_{iteration}.pth'), strict=True)
        assert model.pts_bbox_head.reference_points.kept.tolist() == whole[1]['kept'][iteration - 1]
        data = model.data_preprocessor(batch(), False)
        assert model(**data, mode='tensor')['all_cls_scores'].shape[2] == LEFT[iteration - 1]


def test_init_model_with_the_original_config(whole, tmp_path):
    """It builds no hooks."""
    settings = config(tmp_path)
    settings.test_dataloader = settings.val_dataloader
    model = init_model(settings, str(whole[0] / 'iter_7.pth'), device='cpu')
    found = model.test_step(batch())
    assert model.pts_bbox_head.reference_points.num_kept == LEFT[6]
    assert len(found[0].pred_instances_3d) == 20


def test_validation_in_between_and_testing_afterwards(whole, tmp_path):
    loop = dict(type='IterBasedTrainLoop', max_iters=ITERATIONS, val_interval=3)
    train(tmp_path, train_cfg=loop)
    assert_same(checkpoint(tmp_path)['state_dict'], checkpoint(whole[0])['state_dict'], 'state_dict')
    loader = config(tmp_path).val_dataloader
    for hooks in ([GPQ], []):  # with and without the hook in the config
        tested = Runner.from_cfg(
            config(
                tmp_path,
                custom_hooks=hooks,
                load_from=str(whole[0] / 'iter_6.pth'),
                test_dataloader=loader,
                test_cfg=dict(),
                test_evaluator=dict(type='BlinkMetric'),
            )
        )
        assert tested.test() == {'samples': 2}
        assert tested.model.pts_bbox_head.reference_points.num_kept == LEFT[5]


@pytest.mark.parametrize(
    'wrapper',
    [
        dict(type='BFloat16OptimWrapper', optimizer=dict(type='AdamW', lr=1e-3)),
        dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-3), accumulative_counts=3),
    ],
    ids=lambda wrapper: wrapper['type'],
)
def test_half_precision_and_accumulated_gradients(tmp_path, wrapper):
    train(tmp_path, optim_wrapper=wrapper)
    assert [len(kept) for kept in LOG.kept.values()] == LEFT
    lines = [json.loads(line) for line in (tmp_path / 'gpq_history.jsonl').read_text().splitlines()]
    for line in lines:
        assert line['scores'][str(line['removed'][0])] == min(line['scores'].values())
    assert np.isfinite(list(LOG.rows[ITERATIONS - 1].flatten())).all()


def test_scores_before_the_first_interval_do_not_count(tmp_path):
    train(tmp_path, gpq=dict(type='GPQHook', target=10, interval=4, begin=3))
    first, last = (json.loads(line) for line in (tmp_path / 'gpq_history.jsonl').read_text().splitlines())
    assert (first['iter'], last['iter']) == (7, 11)
    heard = [LOG.logits[i][:, -12:].double().max(-1).values for i in range(3, 7)]
    expected = torch.cat(heard).mean(0).tolist()
    assert list(first['scores'].values()) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize('criterion', ['highest', 'cost', 'random'])
def test_the_ablations(tmp_path, criterion):
    train(tmp_path, gpq={**GPQ, 'criterion': criterion})
    lines = [json.loads(line) for line in (tmp_path / 'gpq_history.jsonl').read_text().splitlines()]
    ranks = [sorted(line['scores'], key=line['scores'].get).index(str(line['removed'][0])) for line in lines]
    if criterion == 'random':
        assert set(ranks) != {0}
    else:
        assert ranks == ([0] * 5 if criterion == 'cost' else [11, 10, 9, 8, 7])
    if criterion == 'cost':
        assert all(score < 0 for score in lines[0]['scores'].values())


def test_all_at_once_and_from_a_pruned_checkpoint(whole, tmp_path):
    gpq = dict(type='GPQHook', target=4, interval=5, per_step='all', score='probability')
    train(tmp_path, gpq=gpq, load_from=str(whole[0] / f'iter_{ITERATIONS}.pth'))
    assert [len(kept) for kept in LOG.kept.values()] == [7] * 4 + [4] * 9
    model = build(detector_config())
    load_checkpoint(model, str(tmp_path / f'iter_{ITERATIONS}.pth'))
    assert model.pts_bbox_head.reference_points.removal_rank.max() == 8


@pytest.mark.parametrize(
    'gpq, message',
    [
        (dict(target=12, interval=1), 'target=12 of 12 queries; valid are 1 to 11'),
        (dict(target=7, interval=3), 'the last query would go after 15 iterations, but training has 13'),
        (dict(target=7), 'the last query would go after 75 iterations, but training has 13'),
    ],
)
def test_what_would_fail_late_fails_before_training(tmp_path, gpq, message):
    LOG.kept = {}
    with pytest.raises(ValueError, match=message):
        train(tmp_path, gpq=dict(type='GPQHook', **gpq))
    assert LOG.kept == {} and not list(tmp_path.glob('*.pth'))


def test_a_head_that_never_runs_is_an_error(tmp_path):
    model = detector_config(aux_head=None)
    init_default_scope('mmdet3d')
    runner = Runner.from_cfg(config(tmp_path, model=model, custom_hooks=[GPQ]))
    queries = learned_queries(runner.model)
    runner.model.pts_bbox_head.loss = lambda *args: {'loss': queries.embedding.weight.sum()}
    with pytest.raises(RuntimeError, match='no query has a score'):
        runner.train()


def test_resuming_with_another_plan_or_without_one_is_refused(whole, tmp_path):
    for source, gpq, message in (
        (whole[0], {**GPQ, 'target': 5}, 'the resumed run has the plan'),
        (tmp_path, GPQ, 'the resumed run had no GPQHook; to prune its result, use load_from'),
    ):
        if source is tmp_path:
            train(tmp_path, custom_hooks=[], train_cfg=dict(type='IterBasedTrainLoop', max_iters=2, val_interval=9))
        latest = sorted(source.glob('iter_*.pth'), key=lambda path: path.stat().st_mtime)[-1]
        with pytest.raises(ValueError, match=message):
            train(tmp_path, gpq=gpq, resume=True, load_from=str(latest))


def rank_main(rank: int, work_dir: Path, results: Any) -> None:
    """One of two processes with different data."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE='2', MASTER_ADDR='127.0.0.1')
    torch.distributed.init_process_group('gloo', f'file://{work_dir}/rendezvous', rank=rank, world_size=2)
    wrapper = dict(type='MMDistributedDataParallel', device_ids=None, broadcast_buffers=False)
    settings = config(
        work_dir, launcher='pytorch', model_wrapper_cfg=wrapper, experiment_name='two', gpq={**GPQ, 'interval': 1}
    )
    settings.train_dataloader.dataset.num = 4 * ITERATIONS
    Runner.from_cfg(settings).train()
    learned = {i: logits[:, -12:].double().max(-1).values for i, logits in LOG.logits.items()}
    results.put((rank, dict(LOG.kept), {i: scores.tolist() for i, scores in learned.items()}))
    torch.distributed.destroy_process_group()


def test_two_processes_with_different_data_remove_the_same_queries(tmp_path):
    results = FORK.Queue()
    processes = [FORK.Process(target=rank_main, args=(rank, tmp_path, results)) for rank in range(2)]
    for process in processes:
        process.start()
    found = {rank: (kept, scores) for rank, kept, scores in (results.get(timeout=300) for _ in processes)}
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert found[0][0] == found[1][0]

    alive, local = list(range(QUERIES)), set()
    for iteration in range(5):
        scores = [torch.tensor(found[rank][1][iteration])[:, -len(alive) :] for rank in range(2)]
        local |= {tuple(part.mean(0).argmin().item() for part in scores)}
        del alive[torch.cat(scores).mean(0).argmin().item()]
        assert found[0][0][iteration] == alive
    assert any(one != other for one, other in local)  # alone, the processes would have chosen differently


@DATASETS.register_module()
class BlinkImages(Dataset):
    """For the small DETRs: images of one size, two boxes each."""

    metainfo = dict(classes=tuple('abcde'))

    def __len__(self) -> int:
        return 2 * ITERATIONS

    def __getitem__(self, index: int) -> dict:
        generator = torch.Generator().manual_seed(index)
        sample = DetDataSample(metainfo=dict(img_shape=(48, 64), ori_shape=(48, 64), scale_factor=(1.0, 1.0)))
        corners = torch.rand(2, 2, 2, generator=generator).sort(1).values * torch.tensor([63.0, 47.0])
        labels = torch.randint(0, 5, (2,), generator=generator)
        sample.gt_instances = InstanceData(bboxes=corners.flatten(1), labels=labels)
        return dict(inputs=torch.rand(3, 48, 64, generator=generator) * 255, data_samples=sample)


@pytest.mark.parametrize('conditional', [False, True], ids=['DETR', 'ConditionalDETR'])
def test_detrs_of_mmdet(tmp_path, conditional):
    """Trained, validated while queries go, resumed, tested; the original model has as many results as queries."""
    register_all_modules(init_default_scope=False)
    cost = dict(type='FocalLossCost' if conditional else 'ClassificationCost', weight=1.0)
    costs = [cost, dict(type='BBoxL1Cost', weight=5.0, box_format='xywh'), dict(type='IoUCost', weight=2.0)]
    model = small_detr.config(conditional) | dict(
        data_preprocessor=dict(type='DetDataPreprocessor', pad_size_divisor=1),
        train_cfg=dict(assigner=dict(type='HungarianAssigner', match_costs=costs)),
        test_cfg=dict(max_per_img=12),
    )
    loader = dict(
        batch_size=2,
        num_workers=0,
        sampler=dict(type='DefaultSampler', shuffle=False),
        dataset=dict(type='BlinkImages'),
        collate_fn=dict(type='pseudo_collate'),
    )
    settings = dict(
        default_scope='mmdet',
        model=model,
        train_dataloader=loader,
        val_dataloader=loader,
        custom_hooks=[GPQ, dict(type='IterationSeedHook')],
        train_cfg=dict(type='IterBasedTrainLoop', max_iters=ITERATIONS, val_interval=5),
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=1e-4)),
    )
    runner = train(tmp_path, **copy.deepcopy(settings))
    embedding = runner.model.query_embedding
    assert type(embedding).__name__ == 'PrunableEmbedding' and embedding.num_kept == 7
    assert runner.model.bbox_head.test_cfg.max_per_img == (12 if conditional else 7)

    again = tmp_path / 'again'
    again.mkdir()
    changes = dict(resume=True, load_from=str(tmp_path / 'iter_5.pth'))
    train(again, **copy.deepcopy(settings), **changes)
    for part in ('state_dict', 'optimizer', 'gpq'):
        assert_same(checkpoint(again)[part], checkpoint(tmp_path)[part], part)
