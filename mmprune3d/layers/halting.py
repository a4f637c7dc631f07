"""Modules that score tokens for dynamic token halting: a light U-Net over the bird's-eye view, and a linear layer.

Both read the first `in_channels` features of a token (section 6.1 of the paper) and have one signature. The paper gives
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
    """A convolution without bias, a norm, and a ReLU6 if `activate` is set.

    A batch norm in evaluation mode is multiplied into the weights on the fly, which saves a pass over the map.
    """

    def __init__(
        self, in_channels: int, out_channels: int, norm_cfg: dict, kernel: int = 1, activate: bool = False, **conv: int
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=False, **conv)
        self.norm = build_norm_layer(norm_cfg, out_channels)[1]
        self.activate = activate

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B, in, H, W] -> [B, out, ceil(H / stride), ceil(W / stride)]."""
        weight, bias = self.weights()
        if self.conv.kernel_size == (1, 1):
            return self.finish(pointwise(x, weight, bias))
        conv = self.conv
        return self.finish(F.conv2d(x, weight, bias, conv.stride, conv.padding, groups=conv.groups))

    def weights(self) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of the convolution, which include the norm if `folds`."""
        return folded(self.conv.weight, self.norm) if self.folds else (self.conv.weight, None)

    def finish(self, x: Tensor) -> Tensor:
        """Applies the norm, unless it `folds`, and the activation to the result of a convolution with `weights`."""
        x = x if self.folds else self.norm(x)
        return F.relu6(x, inplace=True) if self.activate else x

    @property
    def folds(self) -> bool:
        """Whether the norm is one fixed factor and offset per channel."""
        return folds(self.norm)


def pointwise(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A 1x1 convolution as a product of matrices, which needs no copy in channels-last layout."""
    return F.linear(x.permute(0, 2, 3, 1), weight.flatten(1), bias).permute(0, 3, 1, 2)


class InvertedResidual(nn.Module):
    """A block of MobileNetV2: widen (1x1), depthwise 3x3, narrow (1x1) without activation; a shortcut if shapes agree.

    An `expansion` of 1 leaves the first convolution out.
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
        """Maps [B, in, H, W] -> [B, out, ceil(H / stride), ceil(W / stride)]."""
        return self.layers(x).add_(x) if self.shortcut else self.layers(x)


class Merge(nn.Module):
    """Concatenates a coarse map with the finer one of the encoder and narrows both by a 1x1 convolution.

    The two parts of the convolution are applied one by one, that of the coarse map before it is enlarged: the same sum
    at a fraction of the cost.
    """

    def __init__(self, coarse: int, fine: int, out_channels: int, norm_cfg: dict) -> None:
        super().__init__()
        self.conv = ConvNorm(coarse + fine, out_channels, norm_cfg, activate=True)

    def forward(self, coarse: Tensor, fine: Tensor) -> Tensor:
        """Maps [B, coarse, ceil(H / 2), ceil(W / 2)] and [B, fine, H, W] -> [B, out, H, W]."""
        weight, bias = self.conv.weights()
        of_coarse, of_fine = weight.split([coarse.shape[1], fine.shape[1]], dim=1)
        x = pointwise(fine, of_fine, bias).add_(enlarge(pointwise(coarse, of_coarse), fine.shape[-2:]))
        return self.conv.finish(x)


def enlarge(x: Tensor, shape: Sequence[int]) -> Tensor:
    """Enlarges a map [B, C, ceil(H / 2), ceil(W / 2)] to [B, C, H, W]: cells become 2 x 2, the rest is cut off."""
    return F.interpolate(x, scale_factor=2, mode='nearest')[..., : shape[0], : shape[1]]


@MODELS.register_module()
class HaltingUNet(BaseModule):
    """A halting module that sees the surroundings: a U-Net of MobileNetV2 blocks on the dense bird's-eye view.

    Level i of the U-Net has ``widths[i]`` channels at stride 2^i, and its last map, at stride 1, is the penultimate
    latent of the module, which section 6.1 fuses into the tokens and section A.2.3 adds to the BEV map. Blocks that
    read the finest grid are not widened, as MobileNetV2's own first one: they would take most of the time and memory.

    Only for the first module of a transformer: it sees all tokens, so where some were halted before, training, which
    still has them, and inference, which has not, would score differently.

    Args:
        in_channels: Number of features of a token that are read, from the first.
        token_channels: Number of features of a token.
        widths: Number of channels of each level, for two levels or more.
        expansion: Factor by which blocks are wider in the middle than outside, below the finest level.
        norm_cfg: Config of the norm of the convolutions; None: batch norm with a momentum of 0.1, since statistics of a
            new module must follow a short fine-tuning. Put it into evaluation mode to compare forward paths.
        init_score: Approximate score that an untrained module gives, between 0 and 1.

    Raises:
        ValueError: If tokens are narrower than what is read, or a setting is out of its range.
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
            raise ValueError(f'HaltingUNet: in_channels={in_channels} of tokens with {token_channels} features')
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
        """Scores tokens.

        Args:
            feats: [N, token_channels].
            coords: [N, 4] rows (b, z, y, x). Tokens above each other are summed.
            batch_size: B, samples with or without tokens.
            bev_shape: (ny, nx), any sizes.

        Returns:
            Scores [N], 0 to 1; latent features [N, widths[0]] of the tokens; the latent map [B, widths[0], ny, nx].

        Raises:
            ValueError: If tokens have another width than announced.
        """
        if feats.shape[1] != self.token_channels:
            raise ValueError(f'HaltingUNet: token_channels={self.token_channels}, but tokens have {feats.shape[1]}')
        ny, nx = bev_shape
        cells = (coords[:, 0] * ny + coords[:, 2]) * nx + coords[:, 3]
        read = feats[:, : self.in_channels].to(torch.promote_types(feats.dtype, torch.float32))  # sums round once
        grid = read.new_zeros(batch_size * ny * nx, self.in_channels).index_add(0, cells, read).to(feats.dtype)
        # Rows of cells are a map in channels-last layout without a copy, in which these convolutions are twice as fast.
        bev_map = self.latent_map(grid.view(batch_size, ny, nx, self.in_channels).permute(0, 3, 1, 2))
        latent = bev_map.permute(0, 2, 3, 1).reshape(-1, self.widths[0])[cells]
        return self.score(latent).sigmoid().squeeze(1), latent, bev_map

    def latent_map(self, grid: Tensor) -> Tensor:
        """The U-Net: [B, in_channels, ny, nx] -> [B, widths[0], ny, nx]."""
        maps = [self.stem(grid)]
        for down in self.encoder:
            maps.append(down(maps[-1]))
        x = maps.pop()
        for merge, block in zip(reversed(self.merges), reversed(self.decoder), strict=True):
            x = block(merge(x, maps.pop()))
        return x


@MODELS.register_module()
class HaltingMLP(BaseModule):
    """A halting module that sees each token alone: one linear layer and a sigmoid (section 6.1, second module).

    Args:
        in_channels: Number of features of a token that are read, from the first.
        init_score: Approximate score that an untrained module gives, between 0 and 1.

    Raises:
        ValueError: If a setting is out of its range.
    """

    token_wise = True

    latent_channels = 0
    """Width of the latent features, 0: the module has none."""

    def __init__(self, in_channels: int = 32, init_score: float = 0.5) -> None:
        super().__init__()
        self.in_channels = checks.count('HaltingMLP: in_channels', in_channels, 1)
        self.score = score_layer(self.in_channels, init_score)

    def forward(
        self, feats: Tensor, coords: Tensor, batch_size: int, bev_shape: Sequence[int]
    ) -> tuple[Tensor, None, None]:
        """Scores tokens [N, C]; neither their places nor the map's shape matter.

        Returns:
            Scores [N], 0 to 1; no latent features and no map: its latent would be its input.

        Raises:
            ValueError: If tokens are narrower than what is read.
        """
        if feats.shape[1] < self.in_channels:
            raise ValueError(f'HaltingMLP: in_channels={self.in_channels}, but tokens have {feats.shape[1]} features')
        return self.score(feats[:, : self.in_channels]).sigmoid().squeeze(1), None, None


def score_layer(in_channels: int, init_score: float) -> nn.Linear:
    """A linear layer to one logit, whose bias alone gives the score `init_score`.

    Raises:
        ValueError: If `init_score` is not between 0 and 1.
    """
    init_score = checks.number('init_score', init_score, above=0, most=1, below=True)
    layer = nn.Linear(in_channels, 1)
    nn.init.constant_(layer.bias, math.log(init_score / (1 - init_score)))
    return layer
