"""Folding of batch norm in evaluation mode into the convolution before it, which saves one pass over the map."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def folds(norm: nn.Module) -> bool:
    """Whether a norm is a fixed factor and offset per channel: a batch norm that uses its running statistics."""
    return isinstance(norm, _BatchNorm) and norm.affine and norm.track_running_stats and not norm.training


def folded(weight: Tensor, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight [out, ...] and bias [out] of a convolution (without bias) and the norm behind it, which `folds`."""
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    return weight * scale.view(-1, *[1] * (weight.dim() - 1)), norm.bias - norm.running_mean * scale
