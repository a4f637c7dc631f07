"""SynFlow: the procedure ("Pruning neural networks without any data", Tanaka et al.), and its scores of a detector."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from mmprune3d.adapters.flow_inputs import flow_outputs
from mmprune3d.adapters.fusion import FusionMap, prunable
from mmprune3d.adapters.linear_flow import flow_through, linear_flow
from mmprune3d.pruning.saliency import keep_ratio
from mmprune3d.pruning.thresholds import keep_masks

from .gradients import Reduce, gradients_or_zeros

Choose = Callable[[Mapping[str, Tensor], float], Mapping[str, Tensor]]


def flow_scores(
    model: nn.Module,
    batch: Mapping[str, Any],
    fusion: FusionMap,
    sparsity: float,
    rounds: int,
    choose: Choose,
    reduce_gradients: Reduce | None = None,
) -> tuple[dict[str, Tensor], dict[str, int]]:
    """SynFlow's scores, in float64, and how many weights no flow reaches.

    Nothing flows through queries, keys and the logits of depths, where softmax is replaced by equal shares. These
    weights would all be removed first. Instead they are ranked among themselves: in every layer, `sparsity` of those
    that no flow reaches are removed, the smallest ones. Their scores are therefore infinite, of either sign.

    Args:
        model: The detector, not wrapped. Sparse convolutions on a GPU have no float64: they are scored on the CPU.
        batch: Arguments of the model; only shapes, places of voxels and calibration matter.
        fusion: The model's map.
        sparsity: Share that is removed in the end.
        rounds: Number of rounds in which it is removed.
        choose: From scores and a sparsity to masks.
        reduce_gradients: Averages over processes, whose batches differ in places of voxels and calibration. The flow of
            a batch is the sum of those of its samples, so that the average ranks weights as the batch of all does.

    Returns:
        Parameter -> scores, and parameter -> number of its weights that no flow reaches, where there are any.
    """
    device = next(model.parameters()).device
    # A copy: parameters that were float64 meanwhile have lost the hooks by which DistributedDataParallel averages.
    model = copy.deepcopy(model)
    if device.type == 'cuda' and any(hasattr(module, 'indice_key') for module in model.modules()):
        model, batch = model.cpu(), _to_cpu(batch)
    weights = {name: parameter.detach().double() for name, parameter in prunable(model).items()}
    apart = _Apart(weights)
    with linear_flow(model, double=True):
        flow = flow_through(model, lambda: flow_outputs(model, batch, fusion))
        found = synflow(
            weights,
            flow,
            sparsity,
            rounds,
            lambda scores, share: choose(apart.settled(scores, share), share),
            reduce_gradients,
        )
    scores = apart.settled(found, sparsity)
    return {name: score.to(device) for name, score in scores.items()}, apart.counts


class _Apart:
    """Weights that no flow reaches: those whose first scores are exactly zero, although they are not."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self.weights = weights
        self.unreached: dict[str, Tensor] | None = None

    @property
    def counts(self) -> dict[str, int]:
        return {name: int(apart.sum()) for name, apart in (self.unreached or {}).items()}

    def settled(self, scores: Mapping[str, Tensor], sparsity: float) -> dict[str, Tensor]:
        """`scores`, in which these weights have infinity, or minus infinity for `sparsity` of them."""
        if self.unreached is None:
            found = {name: (score == 0) & (self.weights[name] != 0) for name, score in scores.items()}
            self.unreached = {name: apart for name, apart in found.items() if apart.any()}
        settled = dict(scores)
        for name, apart in self.unreached.items():
            kept = keep_masks({name: self.weights[name][apart].abs()}, sparsity)[name]
            signs = torch.full(kept.shape, -torch.inf, dtype=scores[name].dtype, device=kept.device)
            settled[name] = scores[name].masked_scatter(apart, signs.masked_fill(kept, torch.inf))
        return settled


def _to_cpu(batch: Any) -> Any:
    # not map_tensors: data samples, too, have to move, and have a method for it
    return tree_map(lambda leaf: leaf.cpu() if hasattr(leaf, 'cpu') else leaf, batch)


def synflow(
    weights: Mapping[str, Tensor],
    flow: Callable[[Mapping[str, Tensor]], Tensor],
    sparsity: float = 0.0,
    rounds: int = 1,
    choose: Choose = keep_masks,
    reduce_gradients: Reduce | None = None,
) -> dict[str, Tensor]:
    """SynFlow: ``|w| x dR/d|w|`` of a network that only adds and multiplies positive numbers (Tanaka et al., Eq. 2).

    Before each round but the first the weights are pruned to `keep_ratio`. What an earlier round removed has the score
    -inf, so that masks of the last scores at `sparsity` are those of the whole procedure.

    Args:
        weights: Name -> weights that are scored; float64 for deep networks, whose flow overflows.
        flow: R, the sum of the outputs for an input of ones, as a function of the absolute values of these weights
            (`adapters.linear_flow` prepares the rest of the network).
        sparsity: Share that is removed in the end; needed for `rounds` of 2 or more.
        rounds: Number of rounds, 100 in the paper; 1 scores once.
        choose: From scores and a sparsity to masks: `keep_masks`, or a partial of it.
        reduce_gradients: Averages over processes.

    Raises:
        FloatingPointError: If the flow is not finite.
        RuntimeError: If nothing flows, because a cut of the network is all zeros.
    """
    masks: Mapping[str, Tensor] = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in weights.items()}
    scores: dict[str, Tensor] = {}
    for done in range(rounds):
        if done:
            masks = choose(scores, 1 - keep_ratio(sparsity, done, rounds))
        left = {name: w.detach().abs() * masks[name] for name, w in weights.items()}
        scores = _flow_scores(left, flow, reduce_gradients)
        scores = {name: score.masked_fill(~masks[name], -torch.inf) for name, score in scores.items()}
    return scores


def _flow_scores(
    weights: Mapping[str, Tensor],
    flow: Callable[[Mapping[str, Tensor]], Tensor],
    reduce_gradients: Reduce | None,
) -> dict[str, Tensor]:
    for weight in weights.values():
        weight.requires_grad_()
    with torch.enable_grad():
        total = flow(weights)
    gradients = gradients_or_zeros(total, list(weights.values()))
    total = total.detach()
    if reduce_gradients is not None:
        # copies: a gradient may be one number in the memory of many. The flow is averaged with them, so that all
        # processes raise the error below, or none; otherwise the others would wait for one that is gone.
        total, *gradients = (one.clone(memory_format=torch.contiguous_format) for one in (total, *gradients))
        reduce_gradients([total, *gradients])
    value = float(total)
    if not math.isfinite(value):
        raise FloatingPointError(f'SynFlow: the flow is {value}; score in float64')
    if not value > 0:
        raise RuntimeError(f'SynFlow: the flow is {value}: nothing reaches the outputs, or they are not made linear')
    return {name: (w.detach() * gradient).abs() for (name, w), gradient in zip(weights.items(), gradients)}
