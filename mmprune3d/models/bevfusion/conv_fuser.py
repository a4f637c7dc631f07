"""Camera and LiDAR maps in bird's-eye view become one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mmdet3d.registry import MODELS
from torch import Tensor, nn


@MODELS.register_module()
class BEVFusion3DConvFuser(nn.Sequential):
    """BEVFusion's fuser: the maps side by side, then convolution 3x3, batch norm and ReLU.

    Args:
        in_channels: Channels of every map, in the order of the inputs (camera, LiDAR).
        out_channels: Channels of the fused map.
    """

    def __init__(self, in_channels: Sequence[int], out_channels: int) -> None:
        self.in_channels = list(in_channels)
        self.out_channels = out_channels
        super().__init__(
            nn.Conv2d(sum(in_channels), out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
        )

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """The fused map [B, out_channels, x, y] of one map [B, C_i, x, y] per modality.

        Raises:
            ValueError: If the number of maps, their channels or their grids are not as announced.
        """
        grids = {(item.shape[0], *item.shape[2:]) for item in inputs}
        widths = [item.shape[1] for item in inputs]
        # the total is asked of the convolution: removing channels narrows it, and says nothing of the single maps
        if len(widths) != len(self.in_channels) or sum(widths) != self[0].in_channels or len(grids) != 1:
            got = [tuple(item.shape) for item in inputs]
            raise ValueError(
                f'expected {len(self.in_channels)} maps with {self[0].in_channels} channels together on one grid, got '
                f'{got}; a modality that is left out is a map of zeros'
            )
        return super().forward(torch.cat(tuple(inputs), dim=1))
