"""The feature pyramid of the PETR family: one output convolution, at the finest level only."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from mmcv.cnn import ConvModule
from mmdet3d.registry import MODELS
from mmengine.model import BaseModule, ModuleList
from torch import Tensor


@MODELS.register_module()
class PETR3DFPN(BaseModule):
    """A feature pyramid that merges coarse levels into finer ones; only the finest has an output convolution.

    PETR uses no other level than the finest.

    Args:
        in_channels: Channels of the backbone's levels, from fine to coarse.
        out_channels: Channels of all outputs.
        num_outs: Number of outputs; outputs beyond the number of inputs are subsampled from the coarsest level.
        init_cfg: Initialization, as in ``BaseModule``.

    Raises:
        ValueError: If there are fewer outputs than inputs.
    """

    def __init__(
        self, in_channels: Sequence[int], out_channels: int, num_outs: int, init_cfg: dict | None = None
    ) -> None:
        super().__init__(init_cfg or {'type': 'Xavier', 'layer': 'Conv2d', 'distribution': 'uniform'})
        if num_outs < len(in_channels):
            raise ValueError(f'num_outs={num_outs} must be {len(in_channels)}, the number of inputs, or more')
        self.num_outs = num_outs
        self.lateral_convs = ModuleList(ConvModule(channels, out_channels, 1, act_cfg=None) for channels in in_channels)
        self.fpn_convs = ModuleList([ConvModule(out_channels, out_channels, 3, padding=1, act_cfg=None)])

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Merges levels [N, C_i, H_i, W_i], from fine to coarse, to `num_outs` levels with `out_channels`."""
        levels = [convolve(level) for convolve, level in zip(self.lateral_convs, inputs, strict=True)]
        for fine in range(len(levels) - 2, -1, -1):
            coarse = F.interpolate(levels[fine + 1], size=levels[fine].shape[-2:], mode='nearest')
            levels[fine] = levels[fine] + coarse
        levels[0] = self.fpn_convs[0](levels[0])
        while len(levels) < self.num_outs:
            levels.append(F.max_pool2d(levels[-1], 1, stride=2))
        return tuple(levels)
