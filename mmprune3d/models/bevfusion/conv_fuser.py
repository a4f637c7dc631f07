"""The fusion layer of BEVFusion, which merges the camera and LiDAR maps in bird's-eye view."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mmdet3d.registry import MODELS
from torch import Tensor, nn


@MODELS.register_module()
class BEVFusion3DConvFuser(nn.Sequential):
    """BEVFusion's fuser: concatenates the maps, then applies a 3x3 convolution, batch norm and ReLU.

    Args:
        in_channels: Channels of each map, in the order of the inputs (camera, LiDAR).
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
        """Fuses one map [B, C_i, x, y] per modality to a map [B, out_channels, x, y].

        Raises:
            ValueError: If the number of maps or their channels differ from `in_channels`, or their grids differ.
        """
        grids = {(item.shape[0], *item.shape[2:]) for item in inputs}
        widths = [item.shape[1] for item in inputs]
        # The total is read from the convolution: pruning channels narrows it without updating `in_channels`.
        if len(widths) != len(self.in_channels) or sum(widths) != self[0].in_channels or len(grids) != 1:
            got = [tuple(item.shape) for item in inputs]
            raise ValueError(
                f'expected {len(self.in_channels)} maps with {self[0].in_channels} channels in total on one grid, got '
                f'{got}; give a map of zeros for a modality that is switched off'
            )
        return super().forward(torch.cat(tuple(inputs), dim=1))
