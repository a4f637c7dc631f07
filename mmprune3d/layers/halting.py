"""Scoring networks for dynamic token halting: a small U-Net over the bird's-eye view, and a linear layer.

Both read the first `in_channels` features of a token (section 6.1 of the paper) and have the same signature. The paper
gives no widths, depths or norms for its U-Net.
no widths, depths or norms for its U-Net.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from mmcv.cnn import build_norm_layer
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn

from mmprune3d.pruning import checks

from .folding import folded, folds


class ConvNorm(nn.Module):
    """Convolution without bias, norm, and optionally ReLU6.

    A batch norm in evaluation mode is folded into the weights, which saves a pass over the map.
    """

    def __init__(
        self, in_channels: int, out_channels: int, norm_cfg: dict, kernel: int = 1, activate: bool = False, **conv: int
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=False, **conv)
        self.norm = build_norm_layer(norm_cfg, out_channels)[1]
        self.activate = activate

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B, in, H, W] to [B, out, ceil(H / stride), ceil(W / stride)]."""
        weight, bias = self.weights()
        if self.conv.kernel_size == (1, 1):
            return self.finish(pointwise(x, weight, bias))
        conv = self.conv
        return self.finish(F.conv2d(x, weight, bias, conv.stride, conv.padding, groups=conv.groups))

    def weights(self) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of the convolution; these include the norm if `folds`."""
        return folded(self.conv.weight, self.norm) if self.folds else (self.conv.weight, None)

    def finish(self, x: Tensor) -> Tensor:
        """Applies the norm (unless it is folded) and the activation to the output of a convolution with `weights`."""
        x = x if self.folds else self.norm(x)
        return F.relu6(x, inplace=True) if self.activate else x

    @property
    def folds(self) -> bool:
        """Whether the norm is one fixed factor and offset per channel."""
        return folds(self.norm)


def pointwise(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Computes a 1x1 convolution as a matrix product, which needs no copy in channels-last layout."""
    return F.linear(x.permute(0, 2, 3, 1), weight.flatten(1), bias).permute(0, 3, 1, 2)


class InvertedResidual(nn.Module):
    """MobileNetV2 block: 1x1 expansion, depthwise 3x3, 1x1 projection without activation; a shortcut if shapes agree.

    With an `expansion` of 1 there is no first convolution.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int, norm_cfg: dict) -> None:
        super().__init__()
        width = in_channels * expansion
        widen = [] if expansion == 1 else [ConvNorm(in_channels, width, norm_cfg, activate=True)]
        self.layers = nn.Sequential(
            *widen,
            ConvNorm(width, width, norm_cfg, kernel=3, stride=stride, groups=width, activate=True),
            ConvNorm(width, out_channels, norm_cfg),
        )
        self.shortcut = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B, in, H, W] to [B, out, ceil(H / stride), ceil(W / stride)]."""
        return self.layers(x).add_(x) if self.shortcut else self.layers(x)


class Merge(nn.Module):
    """Concatenates a coarse map and the finer one of the encoder and reduces them by a 1x1 convolution.

    The two parts of the convolution are applied separately, that of the coarse map before upsampling: the same sum at a
    fraction of the cost.
    """

    def __init__(self, coarse: int, fine: int, out_channels: int, norm_cfg: dict) -> None:
        super().__init__()
        self.conv = ConvNorm(coarse + fine, out_channels, norm_cfg, activate=True)

    def forward(self, coarse: Tensor, fine: Tensor) -> Tensor:
        """Merges maps [B, coarse, ceil(H / 2), ceil(W / 2)] and [B, fine, H, W] to [B, out, H, W]."""
        weight, bias = self.conv.weights()
        of_coarse, of_fine = weight.split([coarse.shape[1], fine.shape[1]], dim=1)
        x = pointwise(fine, of_fine, bias).add_(enlarge(pointwise(coarse, of_coarse), fine.shape[-2:]))
        return self.conv.finish(x)


def enlarge(x: Tensor, shape: Sequence[int]) -> Tensor:
    """Upsamples [B, C, ceil(H / 2), ceil(W / 2)] to [B, C, H, W]: each cell becomes 2 x 2, the excess is cut off."""
    return F.interpolate(x, scale_factor=2, mode='nearest')[..., : shape[0], : shape[1]]


@MODELS.register_module()
class HaltingUNet(BaseModule):
    """Scoring network that sees neighbouring tokens: a U-Net of MobileNetV2 blocks on the dense bird's-eye view.

    Level i of the U-Net has ``widths[i]`` channels at stride 2^i, and its last map, at stride 1, is the penultimate
    latent of the module, which section 6.1 fuses into the tokens and section A.2.3 adds to the BEV map. Blocks that
    read the finest grid have no expansion, like the first one of MobileNetV2, because of its time and memory.

    Use it only as the first gate of a transformer: it reads all tokens, so if some were halted before, scores would
    differ between training, which still has them, and inference, which does not.

    Args:
        in_channels: Number of features of a token that are read, from the first.
        token_channels: Number of features of a token.
        widths: Channels of each level, at least two levels.
        expansion: Expansion factor of the blocks below the finest level.
        norm_cfg: Config of the norms; None: batch norm with a momentum of 0.1, since statistics of a new module must
            adapt within a short fine-tuning. Use evaluation mode to compare forward passes.
        init_score: Approximate score of an untrained module, between 0 and 1.

    Raises:
        ValueError: If tokens have fewer features than are read, or a setting is out of its range.
    """

    token_wise = False
    """Whether the score of a token depends on that token alone."""

    def __init__(
        self,
        in_channels: int = 32,
        token_channels: int = 128,
        widths: Sequence[int] = (16, 32, 64),
        expansion: int = 2,
        norm_cfg: dict | None = None,
        init_score: float = 0.5,
    ) -> None:
        super().__init__()
        token_channels = checks.count('HaltingUNet: token_channels', token_channels, 1)
        in_channels = checks.count('HaltingUNet: in_channels', in_channels, 1)
        expansion = checks.count('HaltingUNet: expansion', expansion, 1, 64)
        if in_channels > token_channels:
            raise ValueError(f'HaltingUNet: in_channels={in_channels}, but tokens have {token_channels} features')
        widths = checks.plain(widths)
        if not isinstance(widths, (list, tuple)) or len(widths) < 2:
            raise ValueError(f'HaltingUNet: widths={checks.shown(widths)} must be two channel counts or more')
        widths = tuple(checks.count('HaltingUNet: an entry of widths', width, 1, 4096) for width in widths)
        self.in_channels, self.token_channels, self.widths = in_channels, token_channels, widths
        self.latent_channels = self.widths[0]
        norm_cfg = norm_cfg or dict(type='BN', eps=1e-3, momentum=0.1)
        self.stem = InvertedResidual(in_channels, widths[0], 1, 1, norm_cfg)
        self.encoder, self.merges, self.decoder = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for level, (fine, coarse) in enumerate(pairwise(widths)):
            at_fine = expansion if level else 1
            down = InvertedResidual(fine, coarse, 2, at_fine, norm_cfg)
            self.encoder.append(nn.Sequential(down, InvertedResidual(coarse, coarse, 1, expansion, norm_cfg)))
            self.merges.append(Merge(coarse, fine, fine, norm_cfg))
            self.decoder.append(InvertedResidual(fine, fine, 1, at_fine, norm_cfg))
        self.score = score_layer(widths[0], init_score)

    def forward(
        self, feats: Tensor, coords: Tensor, batch_size: int, bev_shape: Sequence[int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Scores the tokens of a batch.

        Args:
            feats: Features of the tokens [N, token_channels].
            coords: Rows (b, z, y, x) [N, 4]. Tokens above each other are summed.
            batch_size: Number of samples B, with or without tokens.
            bev_shape: Number of cells (ny, nx), of any size.

        Returns:
            Scores [N], 0 to 1; latent features [N, widths[0]] of the tokens; the latent map [B, widths[0], ny, nx].

        Raises:
            ValueError: If the width of the tokens is not `token_channels`.
        """
        if feats.shape[1] != self.token_channels:
            raise ValueError(
                f'HaltingUNet: token_channels={self.token_channels}, but tokens have {feats.shape[1]} features'
            )
        ny, nx = bev_shape
        cells = (coords[:, 0] * ny + coords[:, 2]) * nx + coords[:, 3]
        read = feats[:, : self.in_channels].to(torch.promote_types(feats.dtype, torch.float32))  # sums are rounded once
        grid = read.new_zeros(batch_size * ny * nx, self.in_channels).index_add(0, cells, read).to(feats.dtype)
        # Rows of cells are a map in channels-last layout without a copy, in which these convolutions are twice as fast.
        bev_map = self.latent_map(grid.view(batch_size, ny, nx, self.in_channels).permute(0, 3, 1, 2))
        latent = bev_map.permute(0, 2, 3, 1).reshape(-1, self.widths[0])[cells]
        return self.score(latent).sigmoid().squeeze(1), latent, bev_map

    def latent_map(self, grid: Tensor) -> Tensor:
        """Applies the U-Net: [B, in_channels, ny, nx] to [B, widths[0], ny, nx]."""
        maps = [self.stem(grid)]
        for down in self.encoder:
            maps.append(down(maps[-1]))
        x = maps.pop()
        for merge, block in zip(reversed(self.merges), reversed(self.decoder), strict=True):
            x = block(merge(x, maps.pop()))
        return x


@MODELS.register_module()
class HaltingMLP(BaseModule):
    """Scoring network that reads each token alone: one linear layer and a sigmoid (section 6.1, second module).

    Args:
        in_channels: Number of features of a token that are read, from the first.
        init_score: Approximate score of an untrained module, between 0 and 1.

    Raises:
        ValueError: If a setting is out of its range.
    """

    token_wise = True

    latent_channels = 0
    """Number of latent features; this module has none."""

    def __init__(self, in_channels: int = 32, init_score: float = 0.5) -> None:
        super().__init__()
        self.in_channels = checks.count('HaltingMLP: in_channels', in_channels, 1)
        self.score = score_layer(self.in_channels, init_score)

    def forward(
        self, feats: Tensor, coords: Tensor, batch_size: int, bev_shape: Sequence[int]
    ) -> tuple[Tensor, None, None]:
        """Scores tokens [N, C]; their positions and the shape of the map have no influence.

        Returns:
            Scores [N], 0 to 1; and None for latent features and map, because the latent would be the input itself.

        Raises:
            ValueError: If tokens have fewer features than are read.
        """
        if feats.shape[1] < self.in_channels:
            raise ValueError(f'HaltingMLP: in_channels={self.in_channels}, but tokens have {feats.shape[1]} features')
        return self.score(feats[:, : self.in_channels]).sigmoid().squeeze(1), None, None


def score_layer(in_channels: int, init_score: float) -> nn.Linear:
    """Creates a linear layer to one logit, whose bias alone gives `init_score`; ValueError unless that is in (0, 1)."""
    init_score = checks.number('init_score', init_score, above=0, most=1, below=True)
    layer = nn.Linear(in_channels, 1)
    nn.init.constant_(layer.bias, math.log(init_score / (1 - init_score)))
    return layer
