"""SST: transformer blocks on occupied pillars at a single stride, then dense convolutions (SST's ``SSTv2``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmcv.cnn import build_conv_layer, build_norm_layer
from mmdet3d.registry import MODELS
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmprune3d.layers.folding import folded, folds
from mmprune3d.layers.row_norm import allow_few_rows
from mmprune3d.layers.sst_block import SSTBlock
from mmprune3d.ops.windows import WindowPlan, plan_windows

from .input_layer import WindowedTokens

LAYER_KEYS = (
    'use_bn', 'cosine', 'tau_min', 'non_shared_tau', 'post_norm', 'mlp_dropout', 'head_dims', 'backend',
    'halted_gradient',
)  # fmt: skip


@MODELS.register_module()
class SSTBackbone(BaseModule):
    """The SST backbone: blocks of sparse regional attention, and the dense map that is made of their tokens.

    The layout of windows is computed once per set of tokens; projections run on tokens, never on padding. The state
    dict is that of SST's ``SSTv2``.

    Args:
        d_model: Width of tokens in each block (the same in all).
        nhead: Number of heads in each block.
        num_blocks: Number of blocks; each has two attention layers.
        dim_feedforward: Hidden width of the feed-forward network in each block.
        dropout: Dropout probability in the blocks.
        activation: Activation in the blocks, ``'gelu'`` or ``'relu'``.
        output_shape: Number of cells of the map along y, x.
        num_attached_conv: Number of dense 3 x 3 convolutions on the map.
        conv_in_channel: Input channels of the first convolution.
        conv_out_channel: Output channels of the convolutions.
        norm_cfg: Config of the norms behind the convolutions.
        conv_cfg: Config of the convolutions.
        conv_kwargs: Arguments of the convolutions, one dict for all or one for each.
        conv_shortcut: Add each convolution's input to its output where the shapes agree.
        in_channel: Width of incoming tokens, if it differs from d_model.
        to_bev: Whether to return a map; if False, tokens are returned.
        checkpoint_blocks: Indices of the blocks with gradient checkpointing.
        layer_cfg: Options of the attention layers: post_norm, use_bn, cosine, tau_min, non_shared_tau, mlp_dropout,
            head_dims (width of a head, independent of d_model), backend (``'sdpa'``, ``'explicit'``), halted_gradient.
        bucket_sizes: Numbers of tokens to which windows are padded; None: a table for the device.
        init_cfg: Initialization, as in ``BaseModule``.

    Raises:
        ValueError: If `layer_cfg` has unknown keys, or a list is shorter than the number of blocks or convolutions.
    """

    def __init__(
        self,
        d_model: Sequence[int] = (128, 128, 128, 128),
        nhead: Sequence[int] = (8, 8, 8, 8),
        num_blocks: int = 4,
        dim_feedforward: Sequence[int] = (256, 256, 256, 256),
        dropout: float = 0.0,
        activation: str = 'gelu',
        output_shape: Sequence[int] = (468, 468),
        num_attached_conv: int = 4,
        conv_in_channel: int = 128,
        conv_out_channel: int = 128,
        norm_cfg: dict | None = None,
        conv_cfg: dict | None = None,
        conv_kwargs: Mapping[str, Any] | Sequence[Mapping[str, Any]] = dict(kernel_size=3, dilation=1, padding=1),
        conv_shortcut: bool = False,
        in_channel: int | None = None,
        to_bev: bool = True,
        checkpoint_blocks: Sequence[int] = (),
        layer_cfg: Mapping[str, Any] | None = None,
        bucket_sizes: Sequence[int] | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        layer_cfg = dict(layer_cfg or {})
        unknown = set(layer_cfg) - set(LAYER_KEYS)
        if unknown:
            raise ValueError(f'layer_cfg has unknown keys {sorted(unknown)}; valid are {", ".join(LAYER_KEYS)}')
        for name, given in (('d_model', d_model), ('nhead', nhead), ('dim_feedforward', dim_feedforward)):
            if len(given) < num_blocks:
                raise ValueError(f'{name} has {len(given)} entries for {num_blocks} blocks')
        self.output_shape, self.to_bev = tuple(output_shape), to_bev
        self.checkpoint_blocks, self.conv_shortcut = set(checkpoint_blocks), conv_shortcut
        self.bucket_sizes = bucket_sizes
        self.embed_dims = d_model[0]
        if in_channel is not None:
            self.linear0 = nn.Linear(in_channel, d_model[0])
        self.block_list = nn.ModuleList(
            SSTBlock(width, heads, hidden, dropout=dropout, activation=activation, **layer_cfg)
            for width, heads, hidden, _ in zip(d_model, nhead, dim_feedforward, range(num_blocks))
        )
        allow_few_rows(self.block_list)
        self.num_layers = 2 * num_blocks
        each = [conv_kwargs] * num_attached_conv if isinstance(conv_kwargs, Mapping) else list(conv_kwargs)
        if len(each) != num_attached_conv:
            raise ValueError(f'conv_kwargs has {len(each)} entries for {num_attached_conv} convolutions')
        widths = [conv_in_channel] + [conv_out_channel] * num_attached_conv
        norm_cfg = norm_cfg or dict(type='BN', eps=1e-3, momentum=0.01)
        conv_cfg = conv_cfg or dict(type='Conv2d', bias=False)
        layers = (
            nn.Sequential(
                build_conv_layer(conv_cfg, i, o, **kwargs), build_norm_layer(norm_cfg, o)[1], nn.ReLU(inplace=True)
            )
            for i, o, kwargs in zip(widths, widths[1:], each)
        )
        if num_attached_conv:
            self.conv_layer = nn.ModuleList(layers)

    def forward(self, tokens: WindowedTokens) -> list[Tensor]:
        """Computes a list of one map [B, C, ny, nx] (or, without `to_bev`, of tokens [N, C]) from the tokens."""
        feats, plans = self.embed(tokens), self.plan(tokens)
        for number in range(len(self.block_list)):
            feats = self.run_block(number, feats, tokens.positions, plans)
        return [self.to_map(feats, tokens.coords, tokens.batch_size)] if self.to_bev else [feats]

    def embed(self, tokens: WindowedTokens) -> Tensor:
        """Features [N, d_model] of the tokens at the input of the first block."""
        return self.linear0(tokens.feats) if hasattr(self, 'linear0') else tokens.feats

    def plan(self, tokens: WindowedTokens) -> tuple[WindowPlan, ...]:
        """Layouts of the tokens' windows: of the regular windows and of the shifted ones."""
        return tuple(plan_windows(ids, self.bucket_sizes) for ids in tokens.window_ids)

    def run_block(
        self,
        number: int,
        feats: Tensor,
        positions: Sequence[Tensor],
        plans: Sequence[WindowPlan],
        weights: Sequence[Tensor | None] = (None, None),
    ) -> Tensor:
        """Runs one block on tokens, without storing anything on the module.

        Args:
            number: Index of the block.
            feats: Features of the tokens [N, C].
            positions: Position embeddings [N, C] for regular and shifted windows.
            plans: Layouts of the regular and the shifted windows.
            weights: Weights of the keys [N] for the two layers; None: all 1.
        """
        block = self.block_list[number]
        if number in self.checkpoint_blocks and torch.is_grad_enabled():
            return checkpoint(block, feats, positions, plans, weights, use_reentrant=False)
        return block(feats, positions, plans, weights)

    def to_map(self, feats: Tensor, coords: Tensor, batch_size: int, added: Tensor | None = None) -> Tensor:
        """Scatters tokens [N, C] to a map [B, C, ny, nx] of zeros, adds `added`, and applies the convolutions."""
        rows, columns = self.output_shape
        canvas = feats.new_zeros(batch_size * rows * columns, feats.shape[1])
        cells = (coords[:, 0] * rows + coords[:, 2]) * columns + coords[:, 3]
        x = canvas.index_copy_(0, cells, feats).view(batch_size, rows, columns, -1).permute(0, 3, 1, 2)
        x = x if added is None else x + added
        for layer in getattr(self, 'conv_layer', ()):
            x = self._convolve(layer, x)
        return x

    def _convolve(self, layer: nn.Sequential, x: Tensor) -> Tensor:
        """A convolution with norm, activation and shortcut; without gradients the norm is folded into the weights."""
        conv, norm, _ = layer
        with_gradient = torch.is_grad_enabled()
        if not with_gradient and type(conv) is nn.Conv2d and conv.bias is None and folds(norm):
            weight, bias = folded(conv.weight, norm)
            out = F.conv2d(x, weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups).relu_()
        else:
            out = layer(x)
        if not self.conv_shortcut or out.shape != x.shape:
            return out
        return out + x if with_gradient else out.add_(x)
