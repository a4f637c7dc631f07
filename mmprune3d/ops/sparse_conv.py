"""Sparse convolution and max-pooling in plain torch: exact on a CPU, with any number of threads, differentiable twice.

For every kernel offset the input rows are gathered, multiplied and added to their output rows. The rows of one offset
are distinct and the offsets follow each other, so that the order of the sums is always the same.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from .sparse_rulebook import Rulebook

# What is gathered and multiplied at once stays in a core's second-level cache.
CHUNK_BYTES = 2**20


def sparse_conv(features: Tensor, weight: Tensor, bias: Tensor | None, rulebook: Rulebook) -> Tensor:
    """The convolution that `rulebook` describes.

    Args:
        features: One row for each input site [N, C_in].
        weight: [C_out, k_1, ..., k_D, C_in], the layout of spconv 2.
        bias: [C_out], added at active output sites only, or None.
        rulebook: Of :func:`~mmprune3d.ops.sparse_rulebook.submanifold_rulebook`,
            :func:`~mmprune3d.ops.sparse_rulebook.strided_rulebook`, or one of them transposed (inverse convolution).

    Returns:
        One row for each output site [M, C_out], in the dtype of `weight`; autocast changes nothing. Sums are in float32
        or better.

    Raises:
        ValueError: When rows, channels or kernel do not belong together.
    """
    kernels = weight.flatten(1, -2).permute(1, 2, 0)
    wanted = (rulebook.num_in, len(rulebook.pairs))
    if (len(features), len(kernels)) != wanted or features.shape[1] != kernels.shape[1]:
        raise ValueError(
            f'features {tuple(features.shape)} and weight {tuple(weight.shape)} (out, *kernel, in) do not fit each '
            f'other and a rulebook of {wanted[0]} rows and {wanted[1]} kernel offsets'
        )
    with torch.autocast(features.device.type, enabled=False):
        # In half precision every kernel offset would round the sum once more.
        dtype = torch.promote_types(weight.dtype, torch.float32)
        out = _Convolve.apply(features.to(weight.dtype).to(dtype), kernels.to(dtype), rulebook)
        return (out if bias is None else out + bias).to(weight.dtype)


def sparse_max_pool(features: Tensor, rulebook: Rulebook) -> Tensor:
    """The largest feature of the input sites in each output site's window.

    Cells that are not active do not count, as if they were minus infinity, and NaN wins. The gradient goes to the first
    of the sites that attain the maximum, in the order of the kernel's cells, as in dense max-pooling.

    Args:
        features: One row for each input site [N, C].
        rulebook: Gives every output site one input site or more.

    Returns:
        One row for each output site [M, C].
    """
    return features.gather(0, _largest(features.detach(), rulebook))


def _largest(features: Tensor, rulebook: Rulebook) -> Tensor:
    """Rows [M, C] of the input that the largest features are in."""
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
    """out[o] += features[i] @ kernels[k] for the pairs (i, o) of all offsets k; keeps nothing that was gathered."""

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
    """kernels[k] = features[i].T @ grad[o] with the pairs (i, o) of offset k."""

    @staticmethod
    def forward(features: Tensor, grad: Tensor, rulebook: Rulebook) -> Tensor:
        # Laid out in memory like the weight, whose gradient then needs no copy.
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
