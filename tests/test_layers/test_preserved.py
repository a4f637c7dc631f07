"""One meaning of "unchanged": everything a model holds, and every generator of random numbers, bit for bit."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mmprune3d.layers.preserved import call_with, evaluating, preserved, random_states, same_bits


class Careless(nn.Module):
    """Changes whatever a module can change while it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.norm = nn.BatchNorm1d(3)
        self.register_buffer('calls', torch.zeros(1, dtype=torch.int64), persistent=False)
        self.register_buffer('unknown', torch.tensor([float('nan'), -0.0]))
        self.note = 'before'

    def forward(self, x: Tensor) -> Tensor:
        self.calls = self.calls + 1  # a new tensor under the old name
        self.note, self.new = 'while', object()
        if not hasattr(self, 'handle'):
            self.handle = self.norm.register_forward_hook(lambda *_: None)
            self.register_buffer('late', torch.ones(1))
            self.child = nn.Linear(1, 1)
        self.linear.bias.requires_grad_(False)
        self.norm.eval()
        noise = np.random.rand() + random.random() + torch.rand(())
        return self.norm(self.linear(x)) * noise.float()


def everything(model: nn.Module) -> tuple[list, list[Tensor]]:
    """What can be compared with ==, identities among it, and the values of all tensors."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    plain: list[Any] = [(name, id(t), t.data_ptr(), t.dtype, t.requires_grad) for name, t in tensors]
    for name, module in model.named_modules():
        attributes = {key: id(value) for key, value in vars(module).items()}
        stores = {key: list(value) for key, value in vars(module).items() if isinstance(value, (dict, set))}
        plain.append((name, module.training, attributes, stores))
    values = [t.detach().clone() for _, t in tensors]
    for parameter in model.parameters():
        plain.append(id(parameter.grad))
        values += [] if parameter.grad is None else [parameter.grad.clone()]
    return plain, values


def generators() -> list:
    state = np.random.get_state()
    return [random.getstate(), state[0], state[1].tolist(), state[2:], torch.get_rng_state().tolist()]


def assert_untouched(model: nn.Module, before: tuple[list, list[Tensor]], numbers: list) -> None:
    plain, values = everything(model)
    assert plain == before[0]
    for ours, theirs in zip(values, before[1], strict=True):
        assert same_bits(ours, theirs)
    assert generators() == numbers


@pytest.fixture
def model() -> nn.Module:
    """With gradients of earlier, a module in evaluation mode and a hook."""
    torch.manual_seed(0), np.random.seed(0), random.seed(0)
    model = nn.Sequential(Careless(), nn.Dropout(0.5), nn.Linear(3, 1))
    model[2].weight.sum().backward()
    model[1].eval()
    model[0].linear.register_forward_pre_hook(lambda *_: None)
    return model


@pytest.mark.parametrize('fails', [False, True])
def test_everything_is_put_back_after_a_training(model, fails):
    before, numbers = everything(model), generators()

    def train() -> None:
        assert all(parameter.grad is None for parameter in model.parameters())
        model.train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
        for _ in range(3):
            model(torch.randn(4, 3)).sum().backward()
            optimizer.step()
        model.double()  # other memory
        del model[0].norm._forward_hooks[next(iter(model[0].norm._forward_hooks))], model[2].bias
        model[0].unknown.fill_(1)
        if fails:
            raise KeyboardInterrupt

    try:
        with preserved(model):
            train()
    except KeyboardInterrupt:
        assert fails
    assert_untouched(model, before, numbers)
    assert model[0].note == 'before' and not hasattr(model[0], 'late')


def test_going_back_in_the_middle(model):
    draws, before = [], everything(model)
    with preserved(model) as snapshot:
        for _ in range(2):
            draws.append((model(torch.ones(2, 3)).tolist(), random.random(), np.random.rand(), float(torch.rand(()))))
            snapshot.restore()
    assert draws[0] == draws[1]
    assert everything(model)[0] == before[0]


def test_evaluation_in_the_middle_of_a_forward_pass_breaks_no_backward_pass(model):
    inner = model[2]
    before, numbers = everything(model), generators()
    x = torch.randn(4, 3, requires_grad=True)
    hidden = inner(x).square()
    with evaluating(model):
        assert not any(module.training for module in model.modules())
        model(x.detach())
    hidden.sum().backward()
    assert inner.weight.grad is not None and x.grad is not None
    inner.weight.grad = model[2].bias.grad = None
    assert [entry for entry in everything(model)[0] if isinstance(entry, tuple)] == [
        entry for entry in before[0] if isinstance(entry, tuple)
    ]
    assert generators() != numbers  # x was drawn outside


def test_tensors_that_share_memory():
    model = nn.Linear(2, 2)
    model.register_buffer('view', model.weight.detach()[0])
    before, numbers = everything(model), generators()
    with preserved(model):
        model.view.fill_(9)
    assert_untouched(model, before, numbers)


def test_same_bits():
    nan, zeros = torch.tensor([float('nan')]), torch.zeros(())
    assert same_bits(nan, nan.clone()) and same_bits(zeros, zeros.clone()) and not same_bits(zeros, -zeros)


def test_random_states_alone():
    numbers = generators()
    with random_states() as states:
        first = random.random(), np.random.rand(), float(torch.rand(()))
        states.restore()
        assert first == (random.random(), np.random.rand(), float(torch.rand(())))
    assert generators() == numbers


def test_call_with_other_tensors():
    model = nn.Sequential(nn.Linear(2, 1), nn.ReLU())
    weight = torch.ones(1, 2, requires_grad=True)
    call_with(
        model, {'0.weight': weight, '0.bias': torch.zeros(1)}, lambda x: model[0](x).sum(), torch.ones(3, 2)
    ).backward()
    assert weight.grad.tolist() == [[3, 3]] and model[0].weight.grad is None


def test_gpus_in_use(monkeypatch):
    """Played by a list: there need be no GPU here."""
    states = [1, 2]
    monkeypatch.setattr(torch.cuda, 'is_initialized', lambda: True)
    monkeypatch.setattr(torch.cuda, 'get_rng_state_all', lambda: list(states))
    monkeypatch.setattr(torch.cuda, 'set_rng_state_all', lambda saved: states.__setitem__(slice(None), saved))
    with random_states():
        states[1] = 3
    assert states == [1, 2]
