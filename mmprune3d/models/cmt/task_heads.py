"""Prediction heads of CMT: the heads of all decoder layers as one grouped convolution over the queries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CLASS_HEAD = 'cls_logits'


class GroupLayerNorm1d(nn.Module):
    """Layer norm of every group of channels at every position, with one weight and bias per channel.

    Args:
        num_channels: Number of channels per group.
        groups: Number of groups.
        eps: Number that is added to the variance.
    """

    def __init__(self, num_channels: int, groups: int = 1, eps: float = 1e-6) -> None:
        super().__init__()
        self.groups = groups
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(groups * num_channels))
        self.bias = nn.Parameter(torch.zeros(groups * num_channels))

    def forward(self, x: Tensor) -> Tensor:
        """Normalizes x [B, groups * channels, N]."""
        return grouped_norm(x, self.groups, self.weight, self.bias, self.eps)


def grouped_norm(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Normalizes x [B, groups * channels, N] over the channels of each group."""
    grouped = x.unflatten(1, (groups, -1))
    centred = grouped - grouped.mean(2, keepdim=True)
    variance = centred.square().mean(2, keepdim=True)
    return (centred / (variance + eps).sqrt()).flatten(1, 2) * weight[:, None] + bias[:, None]


class SeparateTaskHead(nn.Module):
    """The branches of one task, for all decoder layers at once: layer l is group l of every convolution.

    A kernel of 3 (CMT with LiDAR alone) convolves over neighbouring queries: the order of the queries matters, and
    removing a query changes the outputs of its neighbours.

    Args:
        in_channels: Width C of the queries.
        heads: Name -> number of outputs and number of convolutions.
        groups: Number of decoder layers, L.
        head_conv: Hidden width.
        final_kernel: Kernel size of all convolutions; odd.
        init_bias: Initial bias of the class logits.
    """

    def __init__(
        self,
        in_channels: int,
        heads: Mapping[str, Sequence[int]],
        groups: int,
        head_conv: int = 64,
        final_kernel: int = 1,
        init_bias: float = -2.19,
    ) -> None:
        super().__init__()
        self.heads = {name: tuple(sizes) for name, sizes in heads.items()}
        self.groups = groups
        self.init_bias = init_bias
        padding = final_kernel // 2
        for name, (outputs, num_conv) in self.heads.items():
            layers: list[nn.Module] = []
            width = in_channels
            for _ in range(num_conv - 1):
                layers += [
                    nn.Conv1d(
                        width * groups, head_conv * groups, final_kernel, padding=padding, groups=groups, bias=False
                    ),
                    GroupLayerNorm1d(head_conv, groups),
                    nn.ReLU(),
                ]
                width = head_conv
            layers.append(nn.Conv1d(width * groups, outputs * groups, final_kernel, padding=padding, groups=groups))
            setattr(self, name, nn.Sequential(*layers))

    def init_weights(self) -> None:
        """Initializes the class logits with the bias `init_bias`."""
        nn.init.constant_(getattr(self, CLASS_HEAD)[-1].bias, self.init_bias)

    def forward(self, queries: Tensor) -> dict[str, Tensor]:
        """Computes the outputs [L, B, N, outputs] of every branch from queries [L, B, N, C] of all layers."""
        x = queries.permute(1, 0, 3, 2).flatten(1, 2)
        return {name: getattr(self, name)(x).unflatten(1, (self.groups, -1)).permute(1, 0, 3, 2) for name in self.heads}

    def branch(self, name: str, layer: int, queries: Tensor) -> Tensor:
        """Computes one branch of decoder layer `layer` alone: outputs [B, N, outputs] of queries [B, N, C]."""
        x = queries.transpose(1, 2)
        for module in getattr(self, name):
            if isinstance(module, nn.Conv1d):
                bias = None if module.bias is None else self._of_layer(module.bias, layer)
                x = F.conv1d(x, self._of_layer(module.weight, layer), bias, padding=module.padding)
            elif isinstance(module, GroupLayerNorm1d):
                weight, bias = self._of_layer(module.weight, layer), self._of_layer(module.bias, layer)
                x = grouped_norm(x, 1, weight, bias, module.eps)
            else:
                x = module(x)
        return x.transpose(1, 2)

    def _of_layer(self, parameter: Tensor, layer: int) -> Tensor:
        return parameter.chunk(self.groups)[layer]
