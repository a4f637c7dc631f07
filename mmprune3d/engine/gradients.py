"""Gradients of the mean loss over several batches and processes, and some steps of training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from mmengine.dist import all_reduce, get_world_size
from torch import Tensor, nn
from torch.optim import Optimizer

from mmprune3d.layers.preserved import clear_gradients
from mmprune3d.pruning.alter_eva import MeanGradients
from mmprune3d.pruning.checks import shortened

Reduce = Callable[[list[Tensor]], None]
"""Averages tensors over all processes, in place; every process calls it with the same shapes in the same order."""

BatchLoss = Callable[[Any], Tensor]
"""From a batch to the training loss, a scalar."""


def average(tensors: list[Tensor]) -> None:
    """The `Reduce` of a training that mmengine started in several processes; with one it does nothing."""
    if get_world_size() > 1:
        for tensor in tensors:
            all_reduce(tensor, 'mean')


def mean_gradients(
    parameters: Mapping[str, nn.Parameter],
    loss: BatchLoss,
    batches: Iterable[Any],
    reduce_gradients: Reduce | None = None,
    where: str = 'scoring',
) -> MeanGradients:
    """The gradient of the mean of `loss` over `batches` and processes, neither clipped nor scaled.

    Args:
        parameters: Name -> parameter; their `grad` is None afterwards.
        loss: The training loss of a batch.
        batches: One batch or more.
        reduce_gradients: Averages over processes; None if there is only one.
        where: The step that this is part of, with which messages begin.

    Raises:
        ValueError: If there is no batch.
        FloatingPointError: If a gradient is not finite; the message names the parameters.
    """
    # In float32 at least: in half precision a sum loses what is added late.
    sums = {
        name: torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32)) for name, p in _data(parameters)
    }
    # 1 for a parameter that had a gradient in any batch, 0 for the others. With several processes `_average` turns it
    # into the share of the processes in which the parameter had one; it is missing only if that share is 0. A loss may
    # leave out a branch in one process and not in another, as that of boxes does where there is no object.
    seen, losses = dict.fromkeys(parameters, 0.0), []
    for batch in batches:
        clear_gradients(parameters.values())
        value = loss(batch)
        value.backward()
        losses.append(value.detach())
        for name, parameter in parameters.items():
            if parameter.grad is not None:
                sums[name] += parameter.grad
                seen[name] = 1.0
    if not losses:
        raise ValueError(f'{where}: there is no batch to compute gradients with')
    clear_gradients(parameters.values())
    for total in sums.values():
        total /= len(losses)
    _average(sums, seen, reduce_gradients)
    check_finite(sums, where)  # after averaging: all processes stop, instead of waiting for the one with the bad batch
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
        loss: The training loss of a batch.
        batches: Any number of batches.
        optimizer: The optimizer.
        reduce_gradients: Averages over processes before each step; None if there is only one.
        where: The step that this is part of, with which messages begin.

    Returns:
        The loss of each batch before its step, and the last batch (None if there was none).

    Raises:
        FloatingPointError: If a gradient is not finite; the message names the parameters.
    """
    losses, batch = [], None
    for batch in batches:
        clear_gradients(parameters.values())
        value = loss(batch)
        value.backward()
        losses.append(value.detach())
        seen = {name: float(p.grad is not None) for name, p in parameters.items()}
        if reduce_gradients is not None:
            # A parameter that any process used takes the averaged step in all of them, or their weights would drift
            # apart. One that none used keeps no gradient: with zeros, AdamW would still decay it.
            full = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in parameters.items()}
            _average(full, seen, reduce_gradients)
            for name, parameter in parameters.items():
                parameter.grad = full[name] if seen[name] else None
        check_finite({name: parameters[name].grad for name, share in seen.items() if share}, where)
        optimizer.step()
    clear_gradients(parameters.values())
    return [float(value) for value in losses], batch


def _data(parameters: Mapping[str, nn.Parameter]) -> Iterator[tuple[str, Tensor]]:
    return ((name, parameter.detach()) for name, parameter in parameters.items())


def _average(tensors: Mapping[str, Tensor], seen: dict[str, float], reduce_gradients: Reduce | None) -> None:
    """Averages `tensors` over processes, and in `seen` the flags of the parameters that have a gradient."""
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
