"""PETR's transformer: a plain DETR decoder over the keys of all cameras (PETR, section 3.4), batch-first.

Between two layers stands an optional key pruner, the one thing an adapter needs::

    keys = decoder.key_pruner(layer, query, keys, attention_rows=..., score_fn=...)

* ``layer``: number of the layer that has just run, from 0;
* ``query``: [B, N_q, C], its output after ``post_norm`` and ``nan_to_num``, exactly what the heads see. Denoising
  queries are left out: they carry ground truth, and do not exist at test;
* ``keys``: the :class:`~mmprune3d.layers.attention.Keys` that this layer attended to. ``keys.map(change)`` makes the
  ones for the next layer and keeps ``content`` and ``value`` one tensor;
* ``attention_rows(index)``: for queries ``index`` [B, k], their weights [B, k, N_k] in this layer's cross-attention,
  averaged over heads, without dropout, never as part of a full map;
* ``score_fn(layer, query)``: [B, N_q, classes], logits of this layer's classification branch.

The pruner is asked after every layer but the last, and must return keys of the same batch size. It is called outside
of gradient checkpointing, so once per forward pass.
"""

from __future__ import annotations

from typing import Protocol

import torch
from mmcv.cnn.bricks.transformer import FFN
from mmdet3d.registry import MODELS
from mmengine.model import BaseModule, ModuleList
from mmengine.model.weight_init import xavier_init
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmprune3d.layers.attention import AttentionRecord, Keys, PositionalAttention


class ScoreFunction(Protocol):
    """Logits [B, N_q, classes] of normed queries [B, N_q, C] by the classification branch of decoder layer `layer`."""

    def __call__(self, layer: int, query: Tensor) -> Tensor:
        """Computes the logits."""


class AttentionRows(Protocol):
    """Attention weights [B, k, N_k] of the queries `index` [B, k]."""

    def __call__(self, index: Tensor) -> Tensor:
        """Computes the rows."""


class KeyPruner(Protocol):
    """Chooses the keys of the next layer; see the head of this file."""

    def __call__(
        self, layer: int, query: Tensor, keys: Keys, *, attention_rows: AttentionRows, score_fn: ScoreFunction
    ) -> Keys:
        """Returns the keys that stay."""


class PETR3DDecoderLayer(BaseModule):
    """Self-attention, cross-attention and feed-forward network, each followed by its norm.

    Args:
        embed_dims: Width C of the tokens.
        num_heads: Heads of both attentions.
        feedforward_channels: Hidden width of the feed-forward network.
        dropout: Of attention weights, attention outputs and the feed-forward network alike.
        with_cp: Recompute the layer in the backward pass instead of storing its activations.
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        feedforward_channels: int,
        dropout: float = 0.1,
        with_cp: bool = False,
    ) -> None:
        super().__init__()
        self.with_cp = with_cp
        self.attentions = ModuleList(
            PositionalAttention(embed_dims, num_heads, attn_drop=dropout, proj_drop=dropout) for _ in range(2)
        )
        self.ffns = ModuleList([FFN(embed_dims, feedforward_channels, ffn_drop=dropout)])
        self.norms = ModuleList(nn.LayerNorm(embed_dims) for _ in range(3))

    def forward(
        self, query: Tensor, keys: Keys, query_pos: Tensor, self_attn_mask: Tensor | None = None
    ) -> tuple[Tensor, AttentionRecord]:
        """One layer.

        Args:
            query: [B, N_q, C].
            keys: Of the cross-attention.
            query_pos: [B, N_q, C].
            self_attn_mask: [N_q, N_q] bool, True where attention is forbidden, or None.

        Returns:
            The new queries [B, N_q, C], and the record of the cross-attention.
        """
        if self.with_cp and self.training:
            return checkpoint(self._forward, query, keys, query_pos, self_attn_mask, use_reentrant=False)
        return self._forward(query, keys, query_pos, self_attn_mask)

    def _forward(
        self, query: Tensor, keys: Keys, query_pos: Tensor, self_attn_mask: Tensor | None
    ) -> tuple[Tensor, AttentionRecord]:
        self_attention, cross_attention = self.attentions
        query = self.norms[0](self_attention(query, None, query_pos, self_attn_mask)[0])
        query, record = cross_attention(query, keys, query_pos)
        query = self.norms[1](query)
        return self.norms[2](self.ffns[0](query)), record


class PETR3DDecoder(BaseModule):
    """The decoder layers, one shared norm for their outputs, and the place of a key pruner.

    Args:
        num_layers: Number of layers.
        embed_dims: Width C of the tokens.
        num_heads: Heads of the attentions.
        feedforward_channels: Hidden width of the feed-forward networks.
        dropout: Of all parts.
        with_cp: Gradient checkpointing of every layer.

    Attributes:
        key_pruner: A :class:`KeyPruner`, or None.
    """

    def __init__(
        self,
        num_layers: int = 6,
        embed_dims: int = 256,
        num_heads: int = 8,
        feedforward_channels: int = 2048,
        dropout: float = 0.1,
        with_cp: bool = False,
    ) -> None:
        super().__init__()
        self.layers = ModuleList(
            PETR3DDecoderLayer(embed_dims, num_heads, feedforward_channels, dropout, with_cp) for _ in range(num_layers)
        )
        self.post_norm = nn.LayerNorm(embed_dims)
        self.key_pruner: KeyPruner | None = None

    def forward(
        self,
        query: Tensor,
        keys: Keys,
        query_pos: Tensor,
        score_fn: ScoreFunction,
        self_attn_mask: Tensor | None = None,
        num_denoising: int = 0,
        all_layers: bool = True,
    ) -> Tensor:
        """Runs all layers.

        Args:
            query: [B, N_q, C], initial content of the queries.
            keys: Content, value, position and padding of the keys.
            query_pos: [B, N_q, C].
            score_fn: Classification of the normed queries of a layer; only a pruner calls it.
            self_attn_mask: [N_q, N_q] bool, True where self-attention is forbidden, or None.
            num_denoising: How many of the first queries are denoising queries.
            all_layers: Return the output of every layer, or of the last one only.

        Returns:
            [layers or 1, B, N_q, C], normed.
        """
        outputs = []
        for index, layer in enumerate(self.layers):
            query, record = layer(query, keys, query_pos, self_attn_mask)
            is_last = index == len(self.layers) - 1
            prunes = self.key_pruner is not None and not is_last
            if not (all_layers or is_last or prunes):
                continue
            normed = torch.nan_to_num(self.post_norm(query))
            if all_layers or is_last:
                outputs.append(normed)
            if prunes:
                rows = record.without_first(num_denoising).rows
                keys = self.key_pruner(index, normed[:, num_denoising:], keys, attention_rows=rows, score_fn=score_fn)
        return torch.stack(outputs)


@MODELS.register_module()
class PETR3DTransformer(BaseModule):
    """Turns the cameras' feature maps into keys and decodes the queries.

    Args:
        num_layers: Decoder layers.
        embed_dims: Width C of the tokens.
        num_heads: Heads of the attentions; must divide `embed_dims`.
        feedforward_channels: Hidden width of the feed-forward networks.
        dropout: Of all parts.
        with_cp: Gradient checkpointing of every decoder layer.
    """

    def __init__(
        self,
        num_layers: int = 6,
        embed_dims: int = 256,
        num_heads: int = 8,
        feedforward_channels: int = 2048,
        dropout: float = 0.1,
        with_cp: bool = False,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.embed_dims = embed_dims
        self.num_layers = num_layers
        self.decoder = PETR3DDecoder(num_layers, embed_dims, num_heads, feedforward_channels, dropout, with_cp)

    def init_weights(self) -> None:
        """Xavier-uniform matrices, as in DETR."""
        for module in self.modules():
            if getattr(module, 'weight', None) is not None and module.weight.dim() > 1:
                xavier_init(module, distribution='uniform')
        self._is_init = True

    def forward(
        self,
        memory: Tensor,
        key_pos: Tensor,
        query_pos: Tensor,
        score_fn: ScoreFunction,
        mask: Tensor | None = None,
        self_attn_mask: Tensor | None = None,
        num_denoising: int = 0,
        all_layers: bool = True,
    ) -> Tensor:
        """Decodes.

        Args:
            memory: [B, cameras, C, H, W], projected image features. Key j is camera * H * W + row * W + column.
            key_pos: [B, cameras, C, H, W], positional embedding of the keys.
            query_pos: [B, N_q, C]; the content of the queries starts at zero.
            score_fn: See :class:`PETR3DDecoder`.
            mask: [B, cameras, H, W] bool, True for padding, or None.
            self_attn_mask: See :class:`PETR3DDecoder`.
            num_denoising: See :class:`PETR3DDecoder`.
            all_layers: See :class:`PETR3DDecoder`.

        Returns:
            [layers or 1, B, N_q, C].
        """
        content = flatten_cameras(memory)
        keys = Keys(content, content, flatten_cameras(key_pos), None if mask is None else mask.flatten(1))
        return self.decoder(
            torch.zeros_like(query_pos), keys, query_pos, score_fn, self_attn_mask, num_denoising, all_layers
        )


def flatten_cameras(maps: Tensor) -> Tensor:
    """[B, cameras, C, H, W] to [B, cameras * H * W, C]."""
    return maps.permute(0, 1, 3, 4, 2).flatten(1, 3)
