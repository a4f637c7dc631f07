"""Conversion of detectors to the homogeneous networks that SynFlow needs, with non-negative weights.

SynFlow scores weights by the flow of ones from the input to the outputs. This flow is conserved from layer to layer
only if layers are homogeneous, which norm layers, softmax and sigmoid are not. Inside of `linear_flow` these functions
are replaced, in all modules that call them::

    with linear_flow(model, double=True):
        scores = synflow(weights, flow_through(model, lambda: sum(output.sum() for output in model(ones))))
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mmprune3d.layers.preserved import call_with, evaluating

GEOMETRY = ('frustum', 'dx', 'bx', 'nx')
"""Parameters of lift-splat view transforms that are coordinates and not weights."""


def _same(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return input


def _rectified(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return F.relu(input)


def _scaled(input: Tensor, weight: Tensor | None) -> Tensor:
    """Multiplies each channel (dim 1) by its weight; without weights the input is returned."""
    return input if weight is None else input * weight.view(-1, *[1] * (input.dim() - 2))


def _batch_norm(input: Tensor, running_mean: Any, running_var: Any, weight: Any = None, *_: Any, **__: Any) -> Tensor:
    return _scaled(input, weight)


def _group_norm(input: Tensor, num_groups: int, weight: Tensor | None = None, *args: Any, **kwargs: Any) -> Tensor:
    return _scaled(input, weight)


def _uniform(input: Tensor, dim: int = -1, *args: Any, **kwargs: Any) -> Tensor:
    """Equal shares for all entries that are not masked by -inf."""
    shares = (input != -torch.inf).to(input.dtype)
    return shares / shares.sum(dim, keepdim=True).clamp(min=1)


def _mean_value(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Attention with equal weights for all keys."""
    return value.mean(-2, keepdim=True).expand(*value.shape[:-2], query.shape[-2], value.shape[-1])


def _mean_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim_to_check: int,
    num_heads: int,
    in_proj_weight: Tensor | None,
    in_proj_bias: Tensor | None,
    bias_k: Tensor | None,
    bias_v: Tensor | None,
    add_zero_attn: bool,
    dropout_p: float,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    *,
    need_weights: bool = True,
    use_separate_proj_weight: bool = False,
    v_proj_weight: Tensor | None = None,
    average_attn_weights: bool = True,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """`F.multi_head_attention_forward` with equal weights for all keys, including masked ones."""
    start = 2 * embed_dim_to_check
    weight = v_proj_weight if use_separate_proj_weight else in_proj_weight[start:]
    mean = F.linear(value.mean(0, keepdim=True), weight, None if in_proj_bias is None else in_proj_bias[start:])
    output = F.linear(mean, out_proj_weight, out_proj_bias).expand(*query.shape[:-1], -1)
    if not need_weights:
        return output, None
    heads = () if average_attn_weights else (num_heads,)
    shape = (*query.shape[1:-1], *heads, query.shape[0], key.shape[0])
    return output, query.new_full(shape, 1 / key.shape[0])


_STAND_INS: dict[Callable, Callable] = {
    **dict.fromkeys((F.layer_norm, torch.layer_norm, F.normalize, F.local_response_norm), _same),
    **dict.fromkeys((torch.sigmoid, torch.sigmoid_, Tensor.sigmoid, Tensor.sigmoid_, F.sigmoid, F.hardsigmoid), _same),
    **dict.fromkeys((torch.tanh, torch.tanh_, Tensor.tanh, Tensor.tanh_, F.tanh, F.hardtanh), _same),
    **dict.fromkeys((F.gelu, F.silu, F.mish, F.hardswish, F.elu, F.softplus, F.relu6), _rectified),
    **dict.fromkeys((F.batch_norm, F.instance_norm, torch.batch_norm, torch.instance_norm), _batch_norm),
    **dict.fromkeys((F.group_norm, torch.group_norm), _group_norm),
    **dict.fromkeys((F.softmax, torch.softmax, Tensor.softmax), _uniform),
    F.scaled_dot_product_attention: _mean_value,
    F.multi_head_attention_forward: _mean_attention,
}
"""Functions of torch that are not homogeneous, under all names by which modules call them -> their replacement."""

if hasattr(F, 'rms_norm'):  # torch 2.4
    _STAND_INS[F.rms_norm] = _same


class _Homogeneous(TorchFunctionMode):
    """Calls the replacements, in this thread only, without changing torch or any module."""

    def __torch_function__(
        self, func: Callable, types: Sequence[type], args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return _STAND_INS.get(func, func)(*args, **(kwargs or {}))


@contextmanager
def linear_flow(model: nn.Module, double: bool = False, untouched: Collection[str] = GEOMETRY) -> Iterator[None]:
    """Makes `model` homogeneous in this context; afterwards it is restored, in the same tensors.

    * Parameters and buffers are replaced by their absolute values (except `untouched`).
    * Batch, group and instance norms only multiply by their weights; layer norms, sigmoid and tanh become identities;
      GELU and similar activations become ReLU.
    * Softmax gives equal shares, attention the mean of the values. So no flow passes through queries and keys, or
      through the logits of a depth distribution: their weights score zero, and should not be ranked with the others.
    * The model is in evaluation mode, without activation checkpointing, which would recompute outside of the context.

    Args:
        model: The model, without a wrapper.
        double: Whether parameters and buffers are float64 in the context; inputs must be float64, too. The flow of deep
            networks overflows float32. Sparse convolutions on GPUs do not support float64: move the model to the CPU.
        untouched: Last parts of the names of parameters and buffers that are not changed. Integer tensors are never
            changed.
    """
    with evaluating(model), _Homogeneous():
        for module in model.modules():
            if getattr(module, 'with_cp', False) is True:
                module.with_cp = False
        _make_absolute(model, torch.float64 if double else None, untouched)
        yield


def flow_through(model: nn.Module, forward: Callable[[], Tensor]) -> Callable[[Mapping[str, Tensor]], Tensor]:
    """Creates the argument `flow` of `synflow`: ``forward()``, a scalar, computed with the given weights in `model`."""
    return lambda weights: call_with(model, weights, forward)


def _make_absolute(model: nn.Module, dtype: torch.dtype | None, untouched: Collection[str]) -> None:
    """Gives parameters and buffers other memory, which `preserved` undoes: the original values are not written to."""
    for name, parameter in model.named_parameters():
        if _changes(name, parameter, untouched):
            parameter.data = parameter.data.abs().to(dtype or parameter.dtype)
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and _changes(name, buffer, untouched):
                module._buffers[name] = buffer.abs().to(dtype or buffer.dtype)


def _changes(name: str, tensor: Tensor, untouched: Collection[str]) -> bool:
    return tensor.is_floating_point() and name.rpartition('.')[2] not in untouched
