"""VoVNetV2 (Lee and Park, CenterMask, CVPR 2020), the backbone of most published PETR models."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from mmdet3d.registry import MODELS
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

STEM = (64, 64, 128)
INNER = (128, 160, 192, 224)
OUTER = (256, 512, 768, 1024)


@dataclass(frozen=True)
class VoVNetSpec:
    """Depth of a VoVNet: the number of convolutions per block and of blocks in each of the four stages."""

    convs_per_block: int
    blocks: tuple[int, int, int, int]


SPECS = {
    'V-19-eSE': VoVNetSpec(3, (1, 1, 1, 1)),
    'V-39-eSE': VoVNetSpec(5, (1, 1, 2, 2)),
    'V-57-eSE': VoVNetSpec(5, (1, 1, 4, 3)),
    'V-99-eSE': VoVNetSpec(5, (1, 3, 9, 3)),
}


def conv_block(name: str, in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> OrderedDict:
    """Builds convolution, norm and ReLU with the names of the published weights."""
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=False)
    layers = {'conv': conv, 'norm': nn.BatchNorm2d(out_channels), 'relu': nn.ReLU(inplace=True)}
    return OrderedDict((f'{name}/{part}', layer) for part, layer in layers.items())


class ChannelAttention(nn.Module):
    """Channel attention of VoVNetV2 (effective squeeze-excitation): one full-width layer on the channel means."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Scales each channel of x [N, C, H, W]."""
        return x * F.hardsigmoid(self.fc(x.mean((2, 3), keepdim=True)))


class OneShotBlock(nn.Module):
    """A chain of convolutions whose outputs are concatenated once, then merged and scaled per channel (OSA module)."""

    def __init__(
        self, name: str, in_channels: int, inner: int, outer: int, num_convs: int, residual: bool, with_cp: bool
    ) -> None:
        super().__init__()
        self.residual = residual
        self.with_cp = with_cp
        widths = [in_channels] + [inner] * num_convs
        self.layers = nn.ModuleList(
            nn.Sequential(conv_block(f'{name}_{i}', widths[i], inner, 3)) for i in range(num_convs)
        )
        self.concat = nn.Sequential(conv_block(f'{name}_concat', sum(widths), outer, 1))
        self.ese = ChannelAttention(outer)

    def forward(self, x: Tensor) -> Tensor:
        """Maps features [N, in_channels, H, W] to [N, outer, H, W]."""
        if self.with_cp and self.training:
            return checkpoint(self._forward, x, use_reentrant=False)
        return self._forward(x)

    def _forward(self, x: Tensor) -> Tensor:
        outputs = [x]
        for layer in self.layers:
            outputs.append(layer(outputs[-1]))
        merged = self.ese(self.concat(torch.cat(outputs, dim=1)))
        return merged + x if self.residual else merged


@MODELS.register_module()
class PETR3DVoVNet(BaseModule):
    """VoVNetV2 with the parameter names of the published PETR weights.

    Args:
        spec_name: Name of the variant: ``V-19-eSE``, ``V-39-eSE``, ``V-57-eSE`` or ``V-99-eSE``.
        out_features: Names of the outputs to return, from fine to coarse: ``stem`` and ``stage2`` (stride 4) to
            ``stage5`` (stride 32).
        input_ch: Channels of the images.
        frozen_stages: Stages without training: -1 none, 0 the stem, n also the first n stages.
        norm_eval: Whether norm layers keep their running statistics fixed in training.
        with_cp: Whether to use gradient checkpointing in every block.
        init_cfg: Initialization, as in ``BaseModule``.

    Raises:
        ValueError: If `spec_name` or the name of an output is unknown.
    """

    def __init__(
        self,
        spec_name: str = 'V-99-eSE',
        out_features: Sequence[str] = ('stage4', 'stage5'),
        input_ch: int = 3,
        frozen_stages: int = -1,
        norm_eval: bool = True,
        with_cp: bool = True,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        if spec_name not in SPECS:
            raise ValueError(f'unknown VoVNet {spec_name!r}; valid are {", ".join(SPECS)}')
        stem = OrderedDict()
        widths = (input_ch, *STEM)
        for i, stride in enumerate((2, 1, 2)):
            stem |= conv_block(f'stem_{i + 1}', widths[i], widths[i + 1], 3, stride)
        self.stem = nn.Sequential(stem)
        self.parts = ['stem']
        in_channels = STEM[-1]
        for i, (inner, outer, num_blocks) in enumerate(zip(INNER, OUTER, SPECS[spec_name].blocks)):
            stage = nn.Sequential()
            if i > 0:
                stage.add_module('Pooling', nn.MaxPool2d(3, stride=2, ceil_mode=True))
            for j in range(num_blocks):
                name = f'OSA{i + 2}_{j + 1}'
                width = outer if j else in_channels
                num_convs = SPECS[spec_name].convs_per_block
                stage.add_module(name, OneShotBlock(name, width, inner, outer, num_convs, j > 0, with_cp))
            self.add_module(f'stage{i + 2}', stage)
            self.parts.append(f'stage{i + 2}')
            in_channels = outer
        unknown = set(out_features) - set(self.parts)
        if unknown:
            raise ValueError(f'unknown output {", ".join(sorted(unknown))}; valid are {", ".join(self.parts)}')
        self.out_features = tuple(out_features)
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        self._freeze()

    def forward(self, x: Tensor) -> list[Tensor]:
        """Computes the chosen outputs from images [N, input_ch, H, W]."""
        outputs = []
        for name in self.parts:
            x = getattr(self, name)(x)
            if name in self.out_features:
                outputs.append(x)
        return outputs

    def _freeze(self) -> None:
        for name in self.parts[: self.frozen_stages + 1]:
            part = getattr(self, name).eval()
            for parameter in part.parameters():
                parameter.requires_grad = False

    def train(self, mode: bool = True) -> PETR3DVoVNet:
        """Sets the training mode, except for frozen stages and, with `norm_eval`, for the norms."""
        super().train(mode)
        self._freeze()
        if mode and self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self
