"""ProsPr ("Prospect Pruning"): the loss after some steps of training, differentiated for a mask on the weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mmprune3d.layers.preserved import call_with, preserved
from mmprune3d.pruning.alter_eva import Measure, contribution, per_weight

from .gradients import BatchLoss, Reduce, gradients_or_zeros, mean_gradients, train_steps

ORDERS = ('first', 'full')


def prospr(
    parameters: Mapping[str, nn.Parameter],
    modules: nn.Module,
    loss: BatchLoss,
    batches: Sequence[Any],
    steps: int = 3,
    lr: float = 1e-4,
    momentum: float = 0.0,
    new_data: bool = True,
    order: str = 'first',
    reduce_gradients: Reduce | None = None,
    measure: Measure = per_weight,
) -> dict[str, Tensor]:
    """The absolute derivative of the loss after some SGD steps for a mask on the initial weights.

    Args:
        parameters: Name in `modules` -> parameter that is scored.
        modules: The model, in the mode to train in; it is put back at the end.
        loss: From a batch to the training loss, computed with `modules`.
        batches: One batch per step and one for the outer loss; with `new_data=False` the first is used for all.
        steps: Number M of inner steps, which train all parameters that require gradients.
        lr: Learning rate of the inner SGD.
        momentum: Momentum of the inner SGD.
        new_data: Whether every step has a batch of its own.
        order: 'first' drops second derivatives: ``|theta0 x dL/dtheta_M|``, AlterMOMA's unmasked Z. 'full' has them
            (with momentum all but those of the first gradient, as the authors' code); it holds the graphs of all steps,
            and needs operators that can be differentiated twice.
        reduce_gradients: Averages over processes; only for 'first'.
        measure: `per_weight` or a `PerChannel`.

    Returns:
        Name -> scores shaped like the parameter; or group name -> [C].

    Raises:
        ValueError: If there are too few batches, or a setting is invalid.
    """
    needed = steps + 1 if new_data else 1
    if order not in ORDERS or steps < 0 or len(batches) < needed:
        raise ValueError(
            f'ProsPr: order={order!r} (valid are {", ".join(ORDERS)}), steps={steps}, {len(batches)} batches, of which '
            f'{needed} are needed'
        )
    if order == 'full' and reduce_gradients is not None:
        raise ValueError("ProsPr: order='full' cannot average over processes")
    inner, outer = batches[:steps] if new_data else [batches[0]] * steps, batches[needed - 1]
    trained = {name: parameter for name, parameter in modules.named_parameters() if parameter.requires_grad}
    with preserved(modules):
        if order == 'full':
            return measure(
                _full_terms(parameters, trained, partial(_loss_at, modules, loss), inner, outer, lr, momentum)
            )
        initial = {name: parameter.detach().clone() for name, parameter in parameters.items()}
        optimizer = torch.optim.SGD(trained.values(), lr=lr, momentum=momentum)
        train_steps(trained, loss, inner, optimizer, reduce_gradients, 'ProsPr')
        found = mean_gradients(parameters, loss, [outer], reduce_gradients, 'ProsPr')
        return contribution(initial, found.values, measure)


def _loss_at(modules: nn.Module, loss: BatchLoss, weights: Mapping[str, Tensor], batch: Any) -> Tensor:
    return call_with(modules, weights, loss, batch)


def _full_terms(
    parameters: Mapping[str, nn.Parameter],
    trained: Mapping[str, nn.Parameter],
    loss_at: Callable[[Mapping[str, Tensor], Any], Tensor],
    inner: Sequence[Any],
    outer: Any,
    lr: float,
    momentum: float,
) -> dict[str, Tensor]:
    """The signed derivatives for masks on the initial weights: at first order they would be ``weight x gradient``."""
    masks = {name: torch.ones_like(parameter, requires_grad=True) for name, parameter in parameters.items()}
    weights = {name: p.detach() * masks[name] if name in masks else p for name, p in trained.items()}
    velocity: dict[str, Tensor] = {}
    for batch in inner:
        found = gradients_or_zeros(loss_at(weights, batch), list(weights.values()), create_graph=True)
        gradients = dict(zip(weights, found))
        if not momentum:
            velocity = gradients
        elif not velocity:
            velocity = {name: gradient.detach() for name, gradient in gradients.items()}
        else:
            velocity = {name: momentum * velocity[name] + gradient for name, gradient in gradients.items()}
        weights = {name: weight - lr * velocity[name] for name, weight in weights.items()}
    return dict(zip(masks, gradients_or_zeros(loss_at(weights, outer), list(masks.values()))))
