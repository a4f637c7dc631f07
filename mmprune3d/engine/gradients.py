"""Gradients over several batches, some steps of training, and a model that is afterwards what it was before."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim import Optimizer

Reduce = Callable[[list[Tensor]], None]
"""Averages tensors over all processes, in place; every process calls it with the same shapes in the same order."""

BatchLoss = Callable[[Any], Tensor]
"""From a batch to the training loss, a scalar."""


@dataclass(frozen=True)
class MeanGradients:
    """The gradient of a mean loss.

    Attributes:
        values: Parameter name -> gradient in float32 or better; zero where there is none.
        missing: Names of the parameters that had no gradient in any batch: frozen ones, and those of skipped branches.
        loss: The mean loss of this process.
    """

    values: dict[str, Tensor]
    missing: tuple[str, ...]
    loss: float


def mean_gradients(
    parameters: Mapping[str, nn.Parameter],
    loss: BatchLoss,
    batches: Iterable[Any],
    reduce_gradients: Reduce | None = None,
    where: str = 'scoring',
) -> MeanGradients:
    """The gradient of the mean of `loss` over `batches`, neither clipped nor scaled.

    Args:
        parameters: Name -> parameter; their `grad` is None afterwards.
        loss: See `BatchLoss`.
        batches: One or more.
        reduce_gradients: Averages over processes.
        where: What is going on, for messages.

    Raises:
        ValueError: If there is no batch.
        FloatingPointError: If a gradient is not finite; the message names the parameters.
    """
    sums = {
        name: torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32)) for name, p in _data(parameters)
    }
    seen, losses = dict.fromkeys(parameters, 0.0), []
    for batch in batches:
        _clear(parameters.values())
        value = loss(batch)
        value.backward()
        losses.append(value.detach())
        for name, parameter in parameters.items():
            if parameter.grad is not None:
                sums[name] += parameter.grad
                seen[name] = 1.0
    if not losses:
        raise ValueError(f'{where}: there is no batch to compute gradients with')
    _clear(parameters.values())
    for total in sums.values():
        total /= len(losses)
    _average(sums, seen, reduce_gradients)
    check_finite(sums, where)
    missing = tuple(name for name, share in seen.items() if share == 0)
    return MeanGradients(sums, missing, float(sum(losses) / len(losses)))


def train_steps(
    parameters: Mapping[str, nn.Parameter],
    loss: BatchLoss,
    batches: Iterable[Any],
    optimizer: Optimizer,
    reduce_gradients: Reduce | None = None,
    where: str = 'training',
) -> tuple[list[float], Any]:
    """One step of `optimizer` per batch.

    Args:
        parameters: Name -> parameter, all that the optimizer has.
        loss: See `BatchLoss`.
        batches: Any number.
        optimizer: Steps after each batch.
        reduce_gradients: Averages over processes before each step.
        where: What is going on, for messages.

    Returns:
        The loss of each batch before its step, and the last batch (None if there was none).

    Raises:
        FloatingPointError: If a gradient is not finite; the message names the parameters.
    """
    losses, batch = [], None
    for batch in batches:
        _clear(parameters.values())
        value = loss(batch)
        value.backward()
        losses.append(value.detach())
        seen = {name: float(p.grad is not None) for name, p in parameters.items()}
        if reduce_gradients is not None:
            full = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in parameters.items()}
            _average(full, seen, reduce_gradients)
            for name, parameter in parameters.items():
                parameter.grad = full[name] if seen[name] else None
        check_finite({name: parameters[name].grad for name, share in seen.items() if share}, where)
        optimizer.step()
    _clear(parameters.values())
    return [float(value) for value in losses], batch


def _data(parameters: Mapping[str, nn.Parameter]) -> Iterator[tuple[str, Tensor]]:
    return ((name, parameter.detach()) for name, parameter in parameters.items())


def _clear(parameters: Iterable[nn.Parameter]) -> None:
    for parameter in parameters:
        parameter.grad = None


def _average(tensors: Mapping[str, Tensor], seen: dict[str, float], reduce_gradients: Reduce | None) -> None:
    """Averages over processes; which parameters have a gradient is shared too, so that all processes do the same."""
    if reduce_gradients is None or not tensors:
        return
    flags = next(iter(tensors.values())).new_tensor([seen[name] for name in tensors])
    reduce_gradients([*tensors.values(), flags])
    seen.update(zip(tensors, flags.tolist()))


def gradients_or_zeros(output: Tensor, inputs: Sequence[Tensor], create_graph: bool = False) -> list[Tensor]:
    """Gradients of a scalar; zeros for inputs that it does not depend on (torch 2.0 has no `materialize_grads`)."""
    found = torch.autograd.grad(output, inputs, create_graph=create_graph, allow_unused=True)
    return [torch.zeros_like(tensor) if gradient is None else gradient for tensor, gradient in zip(inputs, found)]


def check_finite(gradients: Mapping[str, Tensor], where: str) -> None:
    """Raises FloatingPointError if a gradient is not finite; the message names the parameters."""
    if not gradients:
        return
    finite = torch.stack([gradient.isfinite().all() for gradient in gradients.values()]).tolist()
    bad = [name for name, good in zip(gradients, finite) if not good]
    if bad:
        raise FloatingPointError(
            f'{where}: the gradients of {len(bad)} of {len(gradients)} parameters are not finite: {shortened(bad)}'
        )


def shortened(names: Iterable[str], most: int = 8) -> str:
    """The first names of a list, and how many more there are."""
    names = list(names)
    rest = len(names) - most
    return ', '.join(names[:most]) + (f' and {rest} more' if rest > 0 else '')


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


class Snapshot:
    """What training changes in a model, and the random numbers.

    Parameters, all buffers, the flags `training` and `requires_grad`, the generators of torch (on the CPU and the GPUs
    of the model) and of `random`. Other attributes of modules, and numpy's generator, are not part of it.
    """

    def __init__(self, module: nn.Module) -> None:
        self._parts = list(module.named_modules())
        self._training = [part.training for _, part in self._parts]
        self._stores = [(store, dict(store)) for _, part in self._parts for store in (part._parameters, part._buffers)]
        tensors = [t for _, saved in self._stores for t in saved.values() if t is not None]
        self._copies = {id(tensor): (tensor, tensor.detach().clone(), tensor.requires_grad) for tensor in tensors}
        self._devices = sorted({tensor.device for tensor in tensors if tensor.is_cuda}, key=str)
        self._generators = (torch.get_rng_state(), [torch.cuda.get_rng_state(d) for d in self._devices])
        self._python = random.getstate()

    def restore_random(self) -> None:
        """Puts the random generators back."""
        torch.set_rng_state(self._generators[0])
        for device, state in zip(self._devices, self._generators[1]):
            torch.cuda.set_rng_state(state, device)
        random.setstate(self._python)

    @torch.no_grad()
    def restore(self) -> None:
        """Puts everything back, bit for bit, in the same tensors.

        Raises:
            RuntimeError: If a tensor still differs, such as one whose memory another one shares.
        """
        for store, saved in self._stores:
            store.clear()
            store.update(saved)
        for tensor, copy, requires_grad in self._copies.values():
            tensor.copy_(copy)
            if tensor.is_leaf:
                tensor.requires_grad_(requires_grad)
        for (_, part), training in zip(self._parts, self._training):
            part.training = training
        self.restore_random()
        self.check()

    def check(self) -> None:
        """Raises RuntimeError, with the names, if a parameter or a buffer is not what it was."""
        names = [prefix for prefix, _ in self._parts for _ in range(2)]
        changed = [
            f'{prefix}.{name}'.lstrip('.')
            for prefix, (store, saved) in zip(names, self._stores)
            for name, tensor in saved.items()
            if store.get(name) is not tensor
            or (tensor is not None and not _same_bits(tensor, self._copies[id(tensor)][1]))
        ]
        if changed:
            raise RuntimeError(f'the model is not what it was before: {shortened(changed)}')


def _same_bits(first: Tensor, second: Tensor) -> bool:
    first, second = (tensor.detach().contiguous().flatten().view(torch.uint8) for tensor in (first, second))
    return torch.equal(first, second)


@contextmanager
def preserved(module: nn.Module) -> Iterator[Snapshot]:
    """A model that may be trained inside, without gradients at first, and is put back at the end with its gradients."""
    snapshot = Snapshot(module)
    gradients = [(parameter, parameter.grad) for parameter in module.parameters()]
    _clear(module.parameters())
    try:
        yield snapshot
    finally:
        snapshot.restore()
        for parameter, gradient in gradients:
            parameter.grad = gradient
