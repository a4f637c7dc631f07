"""The feature pyramid in the camera stream of BEVFusion."""

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
    """Merges coarse levels into finer ones by concatenation, with the same weights as ``GeneralizedLSSFPN`` of mmdet3d.

    Args:
        in_channels: Channels of the backbone's levels, from fine to coarse.
        out_channels: Channels of all outputs.
        num_outs: Number of outputs if `end_level` is given. Otherwise without effect: the coarsest level is only
            merged, so there is one output less than levels (official configs set 3 and get 2).
        start_level: Index of the finest level that is used.
        end_level: Index of the coarsest level that is used; -1 is the last.
        no_norm_on_lateral: Whether the 1x1 convolutions have a bias instead of a norm layer.
        conv_cfg: Config of the convolutions, as in mmcv.
        norm_cfg: Config of the norm layers, as in mmcv.
        act_cfg: Config of the activations, as in mmcv.
        upsample_cfg: Arguments of ``torch.nn.functional.interpolate``; bilinear with aligned corners if None.
        init_cfg: Initialization, as in ``BaseModule``.

    Raises:
        ValueError: If the levels are not a range of `in_channels`, or `num_outs` is not one less than their number.
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
                f'{len(in_channels) - 1}, the last of the {len(in_channels)} levels (-1 also means the last)'
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
        """Merges levels [N, C_i, H_i, W_i], from fine to coarse; returns all but the coarsest with `out_channels`.

        Raises:
            ValueError: If the number of inputs is not the length of `in_channels`.
        """
        if len(inputs) != self.num_inputs:
            raise ValueError(f'the neck was built for {self.num_inputs} levels, got {len(inputs)}')
        *outputs, coarse = inputs[self.levels]
        for level in range(len(outputs) - 1, -1, -1):
            coarse = F.interpolate(coarse, size=outputs[level].shape[2:], **self.upsample_cfg)
            merged = self.lateral_convs[level](torch.cat([outputs[level], coarse], dim=1))
            coarse = outputs[level] = self.fpn_convs[level](merged)
        return tuple(outputs)
