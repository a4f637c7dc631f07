"""The neck of BEVFusion's camera stream."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule
from mmdet3d.registry import MODELS
from mmengine.model import BaseModule, ModuleList
from torch import Tensor


@MODELS.register_module()
class BEVFusion3DLSSFPN(BaseModule):
    """Merges coarse levels into finer ones by concatenation; the same weights as mmdet3d's ``GeneralizedLSSFPN``.

    Args:
        in_channels: Channels of the backbone's levels, fine to coarse.
        out_channels: Channels of all outputs.
        num_outs: Number of outputs where `end_level` is given; else without effect, because the coarsest level is only
            merged and there is one output less than levels (official configs say 3 and get 2).
        start_level: The finest level that is used.
        end_level: The coarsest level that is used; -1 is the last.
        no_norm_on_lateral: Whether the 1x1 convolutions have a bias instead of a norm layer.
        conv_cfg: Convolutions, as in mmcv.
        norm_cfg: Norm layers, as in mmcv.
        act_cfg: Activations, as in mmcv.
        upsample_cfg: Arguments of ``torch.nn.functional.interpolate``; bilinear with aligned corners if None.
        init_cfg: Initialisation, as in ``BaseModule``.

    Raises:
        ValueError: If the levels are not a range of `in_channels`, or `num_outs` does not fit them.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        out_channels: int,
        num_outs: int,
        start_level: int = 0,
        end_level: int = -1,
        no_norm_on_lateral: bool = False,
        conv_cfg: dict | None = None,
        norm_cfg: dict | None = dict(type='BN2d'),  # noqa: B006
        act_cfg: dict | None = dict(type='ReLU'),  # noqa: B006
        upsample_cfg: Mapping[str, Any] | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        last = len(in_channels) - 1 if end_level == -1 else end_level
        if not 0 <= start_level < last < len(in_channels):
            raise ValueError(
                f'start_level={start_level} and end_level={end_level} must be 0 <= start < end <= '
                f'{len(in_channels) - 1}, the last of the {len(in_channels)} levels (-1 is the last, too)'
            )
        if end_level != -1 and num_outs != last - start_level:
            raise ValueError(f'num_outs={num_outs} must be {last - start_level}, one less than the levels used')
        self.num_inputs = len(in_channels)
        self.levels = slice(start_level, last + 1)
        self.upsample_cfg = dict(upsample_cfg or dict(mode='bilinear', align_corners=True))
        used = list(in_channels[self.levels])
        coarser = [out_channels] * (len(used) - 2) + used[-1:]
        shared = dict(conv_cfg=conv_cfg, act_cfg=act_cfg, inplace=False)
        lateral_norm = None if no_norm_on_lateral else norm_cfg
        self.lateral_convs = ModuleList(
            ConvModule(fine + coarse, out_channels, 1, norm_cfg=lateral_norm, **shared)
            for fine, coarse in zip(used, coarser)
        )
        self.fpn_convs = ModuleList(
            ConvModule(out_channels, out_channels, 3, padding=1, norm_cfg=norm_cfg, **shared) for _ in coarser
        )

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Levels [N, channels, H, W], fine to coarse, to all but the coarsest with `out_channels`.

        Raises:
            ValueError: If there are more or fewer inputs than `in_channels`.
        """
        if len(inputs) != self.num_inputs:
            raise ValueError(f'{len(inputs)} levels were given, the neck was built for {self.num_inputs}')
        *outputs, coarse = inputs[self.levels]
        for level in range(len(outputs) - 1, -1, -1):
            coarse = F.interpolate(coarse, size=outputs[level].shape[2:], **self.upsample_cfg)
            merged = self.lateral_convs[level](torch.cat([outputs[level], coarse], dim=1))
            coarse = outputs[level] = self.fpn_convs[level](merged)
        return tuple(outputs)
