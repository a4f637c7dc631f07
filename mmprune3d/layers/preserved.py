"""Models that are used for a while and are afterwards what they were, and the generators of random numbers with them.

Everything in the package that runs a model for a purpose of its own (scoring, masking a modality, following channels,
comparing outputs) does so inside of :func:`preserved` or :func:`evaluating`, so that "unchanged" means the same
everywhere.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

_REGISTRIES = tuple(name for name, value in vars(nn.Module()).items() if isinstance(value, (dict, set)))
"""Attributes in which every module keeps its parameters, buffers, children and hooks."""


class RandomStates:
    """The states of the generators of random numbers: Python's, NumPy's and torch's on the CPU and on all GPUs.

    The GPUs' are left out where CUDA was not used so far: asking for them would take memory on every GPU.
    """

    def __init__(self) -> None:
        self._python = random.getstate()
        self._numpy = np.random.get_state()
        self._torch = torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []

    def restore(self) -> None:
        """Puts all generators into these states."""
        random.setstate(self._python)
        np.random.set_state(self._numpy)
        torch.set_rng_state(self._torch)
        if self._cuda:
            torch.cuda.set_rng_state_all(self._cuda)


class _Kept:
    """One parameter or buffer: its memory, a copy of its values, and whether it requires gradients."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self.memory = tensor, tensor.data
        self.copy, self.requires_grad = tensor.detach().clone(), tensor.requires_grad

    def restore(self) -> None:
        if _place(self.tensor) != _place(self.memory):
            self.tensor.data = self.memory  # it was given other memory, perhaps of another dtype
        if not same_bits(self.tensor, self.copy):
            # Only then: even a copy of equal values counts as a change in place, and would break the backward pass of
            # a forward pass that is still going on, such as the one in which ModalityMasker learns a shape.
            self.tensor.copy_(self.copy)
        if self.tensor.is_leaf and self.tensor.requires_grad != self.requires_grad:
            self.tensor.requires_grad_(self.requires_grad)


def _place(tensor: Tensor) -> tuple:
    return tensor.dtype, tensor.shape, tensor.stride(), tensor.data_ptr()


def same_bits(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors of one dtype are equal bit for bit: NaN equals NaN, 0.0 and -0.0 differ."""
    first, second = (tensor.detach().contiguous().flatten().view(torch.uint8) for tensor in (first, second))
    return torch.equal(first, second)


class Snapshot:
    """Everything that running or training a model may change in it, and the random states.

    For every module these are its parameters and buffers (the tensors and their values), `requires_grad`, all hooks,
    and all attributes, the flag `training` among them. An attribute becomes the object again that it was; a list or
    dict that is not part of torch's own bookkeeping, and was changed in place, stays changed. Gradients are the task of
    `preserved`.
    """

    def __init__(self, module: nn.Module) -> None:
        self._parts = list(module.modules())
        self._attributes = [dict(vars(part)) for part in self._parts]
        stores = (store for part in self._parts for store in map(vars(part).get, _REGISTRIES))
        self._registries = [(store, copy.copy(store)) for store in stores if store is not None]
        tensors = {id(t): t for part in self._parts for t in (*part._parameters.values(), *part._buffers.values())}
        self._kept = [_Kept(tensor) for tensor in tensors.values() if tensor is not None]
        self._random = RandomStates()

    def restore_random(self) -> None:
        """Puts the generators of random numbers back."""
        self._random.restore()

    @torch.no_grad()
    def restore(self) -> None:
        """Puts everything back, bit for bit, in the same tensors."""
        for part, attributes in zip(self._parts, self._attributes):
            _put_back(vars(part), attributes)
        for store, saved in self._registries:
            if isinstance(store, set):
                store.intersection_update(saved)
                store.update(saved)
            else:
                _put_back(store, saved)
        for kept in self._kept:
            kept.restore()
        self.restore_random()


def _put_back(store: dict[str, Any], saved: Mapping[str, Any]) -> None:
    """Makes `store` hold the objects of `saved` in their order; untouched if it does, for somebody may iterate it."""
    same = len(store) == len(saved) and all(
        ours == theirs and store[ours] is saved[theirs] for ours, theirs in zip(store, saved)
    )
    if not same:
        store.clear()
        store.update(saved)


@contextmanager
def random_states() -> Iterator[RandomStates]:
    """A context that may draw and seed random numbers; all generators are afterwards what they were."""
    states = RandomStates()
    try:
        yield states
    finally:
        states.restore()


@contextmanager
def preserved(module: nn.Module) -> Iterator[Snapshot]:
    """A context in which a model may be run, trained and changed; afterwards it is what it was, bit for bit.

    Its parameters have no gradients at first, so that backward passes inside do not add to those from before, which are
    put back at the end. What else is put back says `Snapshot`; generators of random numbers are, too.

    Args:
        module: The model, not wrapped.

    Yields:
        The snapshot, to go back in the middle as well.
    """
    snapshot = Snapshot(module)
    gradients = [(parameter, parameter.grad) for parameter in module.parameters()]
    clear_gradients(module.parameters())
    try:
        yield snapshot
    finally:
        snapshot.restore()
        for parameter, gradient in gradients:
            parameter.grad = gradient


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """`preserved`, with the model in evaluation mode."""
    with preserved(module):
        module.eval()
        yield


def clear_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Removes the gradients of `parameters`: afterwards each `grad` is None."""
    for parameter in parameters:
        parameter.grad = None


class _Closure(nn.Module):
    def __init__(self, module: nn.Module, call: Callable[..., Tensor]) -> None:
        super().__init__()
        self.module, self.call = module, call

    def forward(self, *args: Any) -> Tensor:
        return self.call(*args)


def call_with(module: nn.Module, tensors: Mapping[str, Tensor], call: Callable[..., Tensor], *args: Any) -> Tensor:
    """``call(*args)``, during which `module` has `tensors` (name -> tensor) instead of its parameters and buffers.

    Unlike `torch.func.functional_call`, `call` may be any function that uses `module`.
    """
    return functional_call(_Closure(module, call), {f'module.{name}': value for name, value in tensors.items()}, args)
