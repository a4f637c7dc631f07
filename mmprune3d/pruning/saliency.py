"""Scores that AlterMOMA is compared with: magnitude (IMP), SNIP, SynFlow, ProsPr, random.

All return name -> scores shaped like the weights; `keep_masks` makes masks of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .alter_eva import contribution
from .gradients import BatchLoss, Reduce, call_with, gradients_or_zeros, mean_gradients, preserved, train_steps
from .thresholds import keep_masks

ORDERS = ('first', 'full')


def keep_ratio(sparsity: float, done: int, rounds: int) -> float:
    """Share that is left after `done` of `rounds` rounds: (1 - sparsity)^(done / rounds).

    The schedule of IMP ("The Lottery Ticket Hypothesis"; every round trains, prunes by magnitude and rewinds) and of
    SynFlow.

    Raises:
        ValueError: If `done` lies outside 0..rounds.
    """
    if not 0 <= done <= rounds or rounds < 1:
        raise ValueError(f'round {done} of {rounds}; valid are 0 to the number of rounds, which is 1 or more')
    return (1 - sparsity) ** (done / rounds)


@torch.no_grad()
def magnitude(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Absolute values, the score of IMP."""
    return {name: weight.detach().abs() for name, weight in weights.items()}


@torch.no_grad()
def snip(weights: Mapping[str, Tensor], gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """SNIP: ``|weight x gradient|``, divided by the sum over all weights (Lee et al., Eq. 6).

    DeCI without groups.

    Args:
        weights: Name -> weights.
        gradients: Name -> gradient of the loss, mean or sum over batches; see `mean_gradients`.
    """
    scores = contribution(weights, gradients)
    total = sum(float(score.sum(dtype=torch.float64)) for score in scores.values())
    return {name: score / (total or 1.0) for name, score in scores.items()}


def random_scores(weights: Mapping[str, Tensor], seed: int = 0) -> dict[str, Tensor]:
    """Uniform scores on the CPU that depend on the seed, names and shapes only."""
    generator = torch.Generator().manual_seed(seed)
    drawn = {name: torch.rand(weights[name].shape, generator=generator) for name in sorted(weights)}
    return {name: drawn[name] for name in weights}


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
) -> dict[str, Tensor]:
    """ProsPr ("Prospect Pruning"): the absolute derivative of the loss after some SGD steps for a mask on the weights.

    Args:
        parameters: Name in `modules` -> parameter that is scored.
        modules: The model, in the mode to train in; put back at the end.
        loss: From a batch to the training loss, computed with `modules`.
        batches: One per step and one for the outer loss; with `new_data=False` the first serves for all of them.
        steps: Inner steps M, of all parameters that require gradients.
        lr: Of the inner SGD.
        momentum: Of the inner SGD.
        new_data: Whether every step has a batch of its own.
        order: 'first' drops second derivatives: ``|theta0 x dL/dtheta_M|``, AlterMOMA's unmasked Z. 'full' has them
            (with momentum all but those of the first gradient, as the authors' code); it holds the graphs of all steps,
            and needs operators that can be differentiated twice.
        reduce_gradients: Averages over processes; only for 'first'.

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
            return _full_prospr(parameters, trained, partial(_loss_at, modules, loss), inner, outer, lr, momentum)
        initial = {name: parameter.detach().clone() for name, parameter in parameters.items()}
        optimizer = torch.optim.SGD(trained.values(), lr=lr, momentum=momentum)
        train_steps(trained, loss, inner, optimizer, reduce_gradients, 'ProsPr')
        return contribution(initial, mean_gradients(parameters, loss, [outer], reduce_gradients, 'ProsPr').values)


def _loss_at(modules: nn.Module, loss: BatchLoss, weights: Mapping[str, Tensor], batch: Any) -> Tensor:
    return call_with(modules, weights, loss, batch)


def _full_prospr(
    parameters: Mapping[str, nn.Parameter],
    trained: Mapping[str, nn.Parameter],
    loss_at: Callable[[Mapping[str, Tensor], Any], Tensor],
    inner: Sequence[Any],
    outer: Any,
    lr: float,
    momentum: float,
) -> dict[str, Tensor]:
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
    found = gradients_or_zeros(loss_at(weights, outer), list(masks.values()))
    return {name: gradient.abs() for name, gradient in zip(masks, found)}


def synflow(
    weights: Mapping[str, Tensor],
    flow: Callable[[Mapping[str, Tensor]], Tensor],
    sparsity: float = 0.0,
    rounds: int = 1,
    choose: Callable[[Mapping[str, Tensor], float], Mapping[str, Tensor]] = keep_masks,
) -> dict[str, Tensor]:
    """SynFlow: ``|w| x dR/d|w|`` of a network that only adds and multiplies positive numbers (Tanaka et al., Eq. 2).

    Before the last round the weights are pruned to `keep_ratio` again and again. What went in an earlier round has the
    score -inf, so that masks of the last scores at `sparsity` are those of the whole procedure.

    Args:
        weights: Name -> weights that are scored; float64 for deep networks, whose flow overflows.
        flow: R, the sum of the outputs for an input of ones, as a function of the absolute values that are given to it
            (all other parameters: `adapters.linear_flow`).
        sparsity: Share that goes in the end; for `rounds` of 2 or more.
        rounds: 100 in the paper; 1 scores once.
        choose: From scores and a sparsity to masks: `keep_masks`, or a partial of it.

    Raises:
        FloatingPointError: If the flow is not finite.
        RuntimeError: If nothing flows, because a cut of the network is all zeros.
    """
    masks: Mapping[str, Tensor] = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in weights.items()}
    scores: dict[str, Tensor] = {}
    for done in range(rounds):
        if done:
            masks = choose(scores, 1 - keep_ratio(sparsity, done, rounds))
        scores = _flow_scores({name: w.detach().abs() * masks[name] for name, w in weights.items()}, flow)
        scores = {name: score.masked_fill(~masks[name], -torch.inf) for name, score in scores.items()}
    return scores


def _flow_scores(weights: Mapping[str, Tensor], flow: Callable[[Mapping[str, Tensor]], Tensor]) -> dict[str, Tensor]:
    for weight in weights.values():
        weight.requires_grad_()
    with torch.enable_grad():
        total = flow(weights)
    value = float(total.detach())
    if not math.isfinite(value):
        raise FloatingPointError(f'SynFlow: the flow is {value}; score in float64')
    if not value > 0:
        raise RuntimeError(f'SynFlow: the flow is {value}: nothing reaches the outputs, or they are not made linear')
    gradients = gradients_or_zeros(total, list(weights.values()))
    return {name: (w.detach() * gradient).abs() for (name, w), gradient in zip(weights.items(), gradients)}
