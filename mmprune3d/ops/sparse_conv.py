"""Sparse convolution and max-pooling in plain torch: exact on a CPU, with any number of threads, differentiable twice.

For every kernel offset the input rows are gathered, multiplied and added to their output rows. The rows of one offset
are distinct and the offsets are processed one after the other, so the order of the sums is always the same.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from .sparse_rulebook import Rulebook

# The rows that are gathered and multiplied at a time fit into the second-level cache of a core.
CHUNK_BYTES = 2**20


def sparse_conv(features: Tensor, weight: Tensor, bias: Tensor | None, rulebook: Rulebook) -> Tensor:
    """Applies the convolution that `rulebook` describes.

    Args:
        features: Features of the input sites [N, C_in].
        weight: [C_out, k_1, ..., k_D, C_in], the layout of spconv 2.
        bias: Bias [C_out], added at active output sites only, or None.
        rulebook: Pairs of input and output rows, from :func:`~mmprune3d.ops.sparse_rulebook.submanifold_rulebook` or
            :func:`~mmprune3d.ops.sparse_rulebook.strided_rulebook`; transposed for an inverse convolution.

    Returns:
        Features of the output sites [M, C_out], in the dtype of `weight` (autocast does not change it). Sums are in
        float32 or better.

    Raises:
        ValueError: If the numbers of rows, channels or kernel cells do not match.
    """
    kernels = weight.flatten(1, -2).permute(1, 2, 0)
    wanted = (rulebook.num_in, len(rulebook.pairs))
    if (len(features), len(kernels)) != wanted or features.shape[1] != kernels.shape[1]:
        raise ValueError(
            f'features {tuple(features.shape)} and weight {tuple(weight.shape)} (out, *kernel, in) do not match each '
            f'other or the rulebook, which has {wanted[0]} rows and {wanted[1]} kernel offsets'
        )
    with torch.autocast(features.device.type, enabled=False):
        # In half precision every kernel offset would round the partial sum again.
        dtype = torch.promote_types(weight.dtype, torch.float32)
        out = _Convolve.apply(features.to(weight.dtype).to(dtype), kernels.to(dtype), rulebook)
        return (out if bias is None else out + bias).to(weight.dtype)


def sparse_max_pool(features: Tensor, rulebook: Rulebook) -> Tensor:
    """Takes the maximum over the input sites in each output site's window.

    Inactive cells are ignored, as if they were minus infinity, and NaN is propagated. The gradient goes to the first
    site that attains the maximum, in the order of the kernel's cells, as in dense max-pooling.

    Args:
        features: Features of the input sites [N, C].
        rulebook: Pairs of input and output rows; every output site must have at least one input site.

    Returns:
        Features of the output sites [M, C].
    """
    return features.gather(0, _largest(features.detach(), rulebook))


def _largest(features: Tensor, rulebook: Rulebook) -> Tensor:
    """The input row that each largest feature comes from: [M, C]."""
    shape = (rulebook.num_out, features.shape[1])
    best, rows = features.new_zeros(shape), torch.full(shape, -1, device=features.device)
    for in_rows, out_rows in rulebook.pairs:
        new, old = features.index_select(0, in_rows), best.index_select(0, out_rows)
        known = rows.index_select(0, out_rows)
        better = (known < 0) | (new > old) | (new.isnan() & ~old.isnan())
        best.index_copy_(0, out_rows, new.where(better, old))
        rows.index_copy_(0, out_rows, in_rows[:, None].where(better, known))
    return rows


class _Convolve(Function):
    """out[o] += features[i] @ kernels[k] for the pairs (i, o) of all offsets k; gathered rows are not saved."""

    @staticmethod
    def forward(features: Tensor, kernels: Tensor, rulebook: Rulebook) -> Tensor:
        out = features.new_zeros(rulebook.num_out, kernels.shape[2])
        rows = _rows_at_once(kernels)
        for offset, (in_rows, out_rows) in enumerate(rulebook.pairs):
            if offset == rulebook.identity:
                for some, sums in zip(features.split(rows), out.split(rows)):
                    sums.addmm_(some, kernels[offset])
                continue
            for i, o in zip(in_rows.split(rows), out_rows.split(rows)):
                out.index_add_(0, o, torch.mm(features.index_select(0, i), kernels[offset]))
        return out

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Rulebook], output: Tensor) -> None:
        features, kernels, ctx.rulebook = inputs
        ctx.save_for_backward(features, kernels)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        features, kernels = ctx.saved_tensors
        grad_features = grad_kernels = None
        if ctx.needs_input_grad[0]:
            grad_features = _Convolve.apply(grad, kernels.transpose(1, 2), ctx.rulebook.transposed())
        if ctx.needs_input_grad[1]:
            grad_kernels = _Correlate.apply(features, grad, ctx.rulebook)
        return grad_features, grad_kernels, None


class _Correlate(Function):
    """kernels[k] = features[i].T @ grad[o], summed over the pairs (i, o) of offset k."""

    @staticmethod
    def forward(features: Tensor, grad: Tensor, rulebook: Rulebook) -> Tensor:
        # Stored in the memory layout of the weight, so that its gradient needs no copy.
        kernels = features.new_zeros(grad.shape[1], len(rulebook.pairs), features.shape[1]).permute(1, 2, 0)
        rows = _rows_at_once(kernels)
        for offset, (in_rows, out_rows) in enumerate(rulebook.pairs):
            if offset == rulebook.identity:
                for some, grads in zip(features.split(rows), grad.split(rows)):
                    kernels[offset].addmm_(some.T, grads)
                continue
            for i, o in zip(in_rows.split(rows), out_rows.split(rows)):
                kernels[offset].addmm_(features.index_select(0, i).T, grad.index_select(0, o))
        return kernels

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Rulebook], output: Tensor) -> None:
        features, grad, ctx.rulebook = inputs
        ctx.save_for_backward(features, grad)

    @staticmethod
    def backward(ctx: Any, grad_kernels: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        features, grad = ctx.saved_tensors
        grad_features = grad_grad = None
        if ctx.needs_input_grad[0]:
            grad_features = _Convolve.apply(grad, grad_kernels.transpose(1, 2), ctx.rulebook.transposed())
        if ctx.needs_input_grad[1]:
            grad_grad = _Convolve.apply(features, grad_kernels, ctx.rulebook)
        return grad_features, grad_grad, None


def _rows_at_once(kernels: Tensor) -> int:
    return max(1, CHUNK_BYTES // (kernels.element_size() * sum(kernels.shape[1:])))
