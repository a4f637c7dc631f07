from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from mmengine.model import MMDistributedDataParallel
from mmengine.registry import HOOKS
from torch import Tensor, nn

from mmprune3d import adapters
from mmprune3d.layers.attention import Keys
from mmprune3d.layers.key_pruning import make_pruner
from mmprune3d.models.petr import PETR3DDecoder
from mmprune3d.pruning.tggbc import TgGBCPlan


class Detector(nn.Module):
    """A decoder with random keys: what the adapter looks for, and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.decoder = PETR3DDecoder(3, 32, num_heads=4, feedforward_channels=48)
        self.branch = nn.Linear(32, 4)
        self.register_buffer('tokens', torch.randn(2, 30, 32))
        self.register_buffer('query', torch.randn(2, 6, 32))

    def forward(self) -> Tensor:
        keys = Keys(2 * self.tokens + 1, self.tokens)
        return self.decoder(self.query, keys, self.query, score_fn=lambda layer, query: self.branch(query)).queries


@pytest.fixture
def detector() -> Detector:
    return Detector().eval()


def hook(**plan: object) -> object:
    return HOOKS.build(dict(type='TgGBCHook', **plan))


@torch.no_grad()
@pytest.mark.parametrize('phase', ['val', 'test'])
def test_prunes_from_the_start_of_an_epoch_to_its_end(detector: Detector, phase: str) -> None:
    runner, pruning, before = SimpleNamespace(model=detector), hook(r=20, n=2, k=3), detector()
    getattr(pruning, f'before_{phase}_epoch')(runner)
    assert adapters.is_attached(detector)
    assert adapters.keys_per_layer(detector, detector) == [30, 20, 10]
    assert not torch.equal(detector(), before)
    getattr(pruning, f'after_{phase}_epoch')(runner)
    assert not adapters.is_attached(detector)
    assert torch.equal(detector(), before)


def test_state_dict_is_the_same_with_and_without_a_plan(detector: Detector) -> None:
    names = list(detector.state_dict())
    adapters.attach(detector, TgGBCPlan(r=5, n=1))
    assert list(detector.state_dict()) == names


@torch.no_grad()
def test_attaching_twice_is_attaching_once(detector: Detector) -> None:
    adapters.attach(detector, TgGBCPlan(r=20, n=1))
    adapters.attach(detector, TgGBCPlan(r=6, n=1))
    assert adapters.keys_per_layer(detector, detector) == [30, 24, 24]


def test_an_epoch_in_which_nothing_was_pruned_is_an_error(detector: Detector) -> None:
    runner, pruning = SimpleNamespace(model=detector), hook(r=20, n=2)
    pruning.before_test_epoch(runner)
    with pytest.raises(RuntimeError, match='nothing was pruned'):
        pruning.after_test_epoch(runner)


def test_the_plan_travels_with_the_checkpoint() -> None:
    checkpoint: dict = {'meta': {}}
    hook(r=20, n=2).before_save_checkpoint(None, checkpoint)
    assert TgGBCPlan.from_dict(checkpoint['meta']['mmprune3d']['tggbc']) == TgGBCPlan(r=20, n=2)


def test_a_wrapped_model_is_unwrapped(detector: Detector) -> None:
    wrapper = MMDistributedDataParallel.__new__(MMDistributedDataParallel)
    nn.Module.__init__(wrapper)
    wrapper.module = detector
    hook(r=20, n=2).before_val_epoch(SimpleNamespace(model=wrapper))
    assert adapters.is_attached(detector)


def test_an_unknown_setting_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match='unknown setting ratio; valid are r, n, q, k, activation'):
        hook(r=20, ratio=0.5)


@pytest.mark.parametrize(
    ('train', 'message'),
    [
        (dict(warm=3), 'train: unknown setting warm; valid are warmup, heating, by_epoch'),
        (dict(warmup=-1), 'warmup=-1 must be a number from 0'),
        (dict(heating=-1, by_epoch=False), 'heating=-1 must be a number from 0'),
    ],
    ids=str,
)
def test_a_schedule_that_is_none_is_refused(train: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        hook(r=20, train=train)


def test_queries_cannot_be_pruned_while_training() -> None:
    with pytest.raises(ValueError, match='q=3 cannot be trained with'):
        hook(r=20, q=3, train=dict(warmup=1))


def runner_at(model: nn.Module, iteration: int, max_iters: int = 60, per_epoch: int = 10) -> SimpleNamespace:
    return SimpleNamespace(model=model, iter=iteration, max_iters=max_iters, train_dataloader=range(per_epoch))


@pytest.mark.parametrize(
    ('train', 'warmup', 'heating'),
    [
        (dict(warmup=7, heating=5, by_epoch=False), 7, 5),
        (dict(warmup=1, heating=2), 10, 20),
        (dict(), 10, 20),
        (dict(warmup=0.5, heating=0), 5, 0),
        (dict(warmup=0, heating=0), 0, 0),
        (dict(warmup=0, heating=13, by_epoch=False), 0, 13),
    ],
    ids=str,
)
@pytest.mark.parametrize(('r', 'n'), [(20, 2), (13, 1), (0.7, 2), ([9, 4], None)], ids=str)
def test_every_iteration_prunes_what_the_official_hook_would(
    detector: Detector, train: dict, warmup: int, heating: int, r: object, n: int | None
) -> None:
    """A function of the iteration alone: asked in any order, by a hook that has seen nothing before, as on resuming."""
    for iteration in torch.randperm(45, generator=torch.Generator().manual_seed(0)).tolist():
        i = iteration + 1  # as the official hook counts
        grown = 0 if i <= warmup else min((i - warmup) / heating, 1) if heating else 1
        if isinstance(r, list):
            removed = [int(grown * amount) for amount in r]
        else:
            total = int(grown * r) if isinstance(r, int) else int(grown * r * 30)
            step = total // n // 2 * 2
            removed = [step] * (n - 1) + [total - step * (n - 1)]
        pruning, runner = hook(r=r, n=n, train=train), runner_at(detector, iteration)
        pruning.before_train_iter(runner, 0)
        assert adapters.is_attached(detector) == bool(grown if r == 0.7 else any(removed))
        if adapters.is_attached(detector):
            found = detector.decoder.key_pruner.plan.removals(3, 30)
            assert list(found)[: len(removed)] == removed, i
        pruning.after_train_iter(runner, 0)
        assert not adapters.is_attached(detector)


def test_without_a_schedule_training_is_left_alone(detector: Detector) -> None:
    adapters.attach(detector, TgGBCPlan(r=3))
    pruning = hook(r=20)
    for step in (pruning.before_train_iter, pruning.after_train_iter):
        step(runner_at(detector, 50), 0)
        assert detector.decoder.key_pruner.plan.r == 3
    pruning.before_train(runner_at(detector, 0))
    assert detector.decoder.key_pruner.plan.r == 3
    with pytest.raises(ValueError, match='Linear has nothing that can be pruned'):
        pruning.before_train(runner_at(nn.Linear(1, 1), 0))


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (dict(n=3, train=dict()), 'valid are 1 to 2'),
        (dict(train=dict(warmup=6)), '60 iterations of training end before TrainingSchedule.warmup=6'),
        (dict(train=dict(warmup=60, by_epoch=False)), '60 iterations of training end before'),
    ],
    ids=str,
)
def test_what_would_fail_late_fails_before_training(detector: Detector, settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        hook(r=20, **settings).before_train(runner_at(detector, 0))


def test_a_schedule_that_begins_in_the_last_iteration_is_accepted(detector: Detector) -> None:
    hook(r=20, train=dict(warmup=59, by_epoch=False)).before_train(runner_at(detector, 0))
    assert not adapters.is_attached(detector)


def test_a_model_that_prunes_by_itself_is_left_alone(detector: Detector) -> None:
    detector.decoder.key_pruner = own = make_pruner(TgGBCPlan(r=5), 3)
    runner = SimpleNamespace(model=detector)
    with pytest.raises(ValueError, match='the config of the model already sets'):
        hook(r=20).before_test_epoch(runner)
    assert detector.decoder.key_pruner is own


def test_a_model_without_keys_is_refused() -> None:
    with pytest.raises(ValueError, match='Linear has nothing that can be pruned'):
        hook(r=20).before_val_epoch(SimpleNamespace(model=nn.Linear(2, 2)))


def test_a_plan_for_too_many_layers_is_refused(detector: Detector) -> None:
    with pytest.raises(ValueError, match='valid are 1 to 2'):
        hook(r=20, n=3).before_val_epoch(SimpleNamespace(model=detector))
