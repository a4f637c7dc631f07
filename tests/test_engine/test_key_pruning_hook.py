from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from mmengine.model import MMDistributedDataParallel
from mmengine.registry import HOOKS
from torch import Tensor, nn

from mmprune3d import adapters
from mmprune3d.layers.attention import Keys
from mmprune3d.models.petr import PETR3DDecoder
from mmprune3d.pruning.plan import TgGBCPlan


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
    with pytest.raises(ValueError, match='unknown setting ratio; valid are r, n, k, activation'):
        hook(r=20, ratio=0.5)


def test_a_model_without_keys_is_refused() -> None:
    with pytest.raises(ValueError, match='Linear has nothing that can be pruned'):
        hook(r=20).before_val_epoch(SimpleNamespace(model=nn.Linear(2, 2)))


def test_a_plan_for_too_many_layers_is_refused(detector: Detector) -> None:
    with pytest.raises(ValueError, match='valid are 1 to 2'):
        hook(r=20, n=3).before_val_epoch(SimpleNamespace(model=detector))
