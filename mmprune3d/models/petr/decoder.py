"""PETR's transformer: a plain DETR decoder over the keys of all cameras (PETR, section 3.4), batch-first.

A key pruner (protocol ``KeyPruner`` in ``layers/tggbc.py``) can be set between the layers; it is the only place where
an adapter attaches. The pruner gets the queries as the heads see them, after ``post_norm`` and ``nan_to_num``, but
without denoising queries, which carry ground truth and do not exist at test time. It is called after every layer but
the last, outside of gradient checkpointing, so that it runs once per forward pass.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from mmcv.cnn.bricks.transformer import FFN
from mmdet3d.registry import MODELS
from mmengine.model import BaseModule, ModuleList
from mmengine.model.weight_init import xavier_init
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmprune3d.layers.attention import AttentionRecord, Keys, PositionalAttention
from mmprune3d.layers.key_pruning import KeyPruner, Reduce, ScoreFunction, make_pruner
from mmprune3d.pruning.tggbc import TgGBCPlan

from .checks import check_counts, check_width


class Decoded(NamedTuple):
    """Output of a decoder.

    Attributes:
        queries: Queries after the norm [layers or 1, B, N_q, C].
        reductions: Functions that were applied to the queries, in order, each removing or merging some; empty if all
            queries are left.
    """

    queries: Tensor
    reductions: tuple[Reduce, ...] = ()

    def reduce(self, tokens: Tensor) -> Tensor:
        """Reduces a tensor [B, N, C] of the original queries to the queries that are left, [B, N_q, C]."""
        for reduction in self.reductions:
            tokens = reduction(tokens)
        return tokens


class PETR3DDecoderLayer(BaseModule):
    """A decoder layer with self-attention, cross-attention and feed-forward network, each followed by its norm.

    Args:
        embed_dims: Width C of the tokens.
        num_heads: Number of heads of both attentions.
        feedforward_channels: Hidden width of the feed-forward network.
        dropout: Dropout probability of attention weights, attention outputs and the feed-forward network.
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
        """Updates the queries by self-attention, cross-attention and the feed-forward network.

        Args:
            query: Queries [B, N_q, C].
            keys: Keys of the cross-attention, with values, positions and mask.
            query_pos: Positional embedding of the queries [B, N_q, C].
            self_attn_mask: Mask [N_q, N_q] bool, True where self-attention is forbidden, or None.

        Returns:
            The updated queries [B, N_q, C], and the record of the cross-attention.
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
    """The decoder layers of PETR, with one norm shared by their outputs and an optional key pruner between them.

    Args:
        num_layers: Number of layers.
        embed_dims: Width C of the tokens.
        num_heads: Number of heads of the attentions.
        feedforward_channels: Hidden width of the feed-forward networks.
        dropout: Dropout probability in all layers.
        with_cp: Whether to use gradient checkpointing in every layer.

    Attributes:
        key_pruner: The ``KeyPruner`` that runs between the layers, or None.
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
    ) -> Decoded:
        """Runs all layers, with the key pruner after each but the last.

        Args:
            query: Initial content of the queries [B, N_q, C].
            keys: Keys with their positions, values and masks.
            query_pos: Positional embedding of the queries [B, N_q, C].
            score_fn: Function from a layer's queries (after the norm) to class logits; only a pruner calls it.
            self_attn_mask: Mask [N_q, N_q] bool, True where self-attention is forbidden, or None.
            num_denoising: Number of denoising queries, which come first.
            all_layers: Return the outputs of all layers, or of the last one only.

        Raises:
            ValueError: If the pruner removes queries while the outputs of all layers are requested, because these would
                have different lengths, or while there is a mask of the self-attention; or if that mask is of another
                number of queries.
        """
        check_self_attn_mask(self_attn_mask, query.shape[1], num_denoising)
        outputs, reductions = [], []
        for index, layer in enumerate(self.layers):
            query, record = layer(query, keys, query_pos, self_attn_mask)
            is_last = index == len(self.layers) - 1
            prunes = self.key_pruner is not None and not is_last
            # The norm is skipped where nothing reads the output: without a pruner, if only the last output is needed.
            if not (all_layers or is_last or prunes):
                continue
            normed = torch.nan_to_num(self.post_norm(query))
            if all_layers or is_last:
                outputs.append(normed)
            if prunes:
                # Denoising queries contain ground truth, so they must not decide which keys are kept.
                record = record.without_first(num_denoising)
                keys, reduction = self.key_pruner(index, normed[:, num_denoising:], keys, record, score_fn)
                if reduction is not None:
                    if all_layers:
                        raise ValueError('queries can be pruned only with all_layers=False, the last layer alone')
                    if self_attn_mask is not None:
                        raise ValueError(
                            'queries cannot be pruned between layers where the self-attention has a mask, which is one '
                            'for all samples, while each sample keeps other queries: set q=0'
                        )
                    reductions.append(reduction)
                    query, query_pos = reduction(query), reduction(query_pos)
        return Decoded(torch.stack(outputs), tuple(reductions))


def check_self_attn_mask(mask: Tensor | None, num_queries: int, num_denoising: int) -> None:
    """Raises ValueError if a mask of the self-attention is not of the queries that there are."""
    if mask is not None and tuple(mask.shape[-2:]) != (num_queries, num_queries):
        raise ValueError(
            f'self_attn_mask has the shape {list(mask.shape)}, but there are {num_queries} queries, of which '
            f'{num_denoising} are denoising queries. Where GPQ has removed queries, the mask must be made for those '
            'that are left (len(head.learned_points()))'
        )


@MODELS.register_module()
class PETR3DTransformer(BaseModule):
    """PETR's transformer: turns the cameras' feature maps into keys and decodes the queries.

    Args:
        num_layers: Number of decoder layers.
        embed_dims: Width C of the tokens.
        num_heads: Number of heads of the attentions; must divide `embed_dims`.
        feedforward_channels: Hidden width of the feed-forward networks.
        dropout: Dropout probability in all layers.
        with_cp: Whether to use gradient checkpointing in every decoder layer.

    Raises:
        ValueError: If `embed_dims` is not a multiple of 4 and of `num_heads`, or a number is less than 1.
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
        check_width(embed_dims, num_heads)
        check_counts(num_layers=num_layers, feedforward_channels=feedforward_channels)
        self.embed_dims = embed_dims
        self.num_layers = num_layers
        self.decoder = PETR3DDecoder(num_layers, embed_dims, num_heads, feedforward_channels, dropout, with_cp)

    def init_weights(self) -> None:
        """Initializes all matrices Xavier-uniformly, as in DETR."""
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
    ) -> Decoded:
        """Decodes the queries.

        Args:
            memory: Projected image features [B, cameras, C, H, W]. Key j is camera * H * W + row * W + column.
            key_pos: Positional embedding of the keys [B, cameras, C, H, W].
            query_pos: Positional embedding of the queries [B, N_q, C]; the content of the queries starts at zero.
            score_fn: Function from queries to class logits; see :class:`PETR3DDecoder`.
            mask: Padding of the images [B, cameras, H, W] bool, True for padding, or None.
            self_attn_mask: Mask of the self-attention; see :class:`PETR3DDecoder`.
            num_denoising: Number of denoising queries; see :class:`PETR3DDecoder`.
            all_layers: Return the outputs of all layers; see :class:`PETR3DDecoder`.
        """
        content = flatten_cameras(memory)
        keys = Keys(content + flatten_cameras(key_pos), content, None if mask is None else mask.flatten(1))
        return self.decoder(
            torch.zeros_like(query_pos), keys, query_pos, score_fn, self_attn_mask, num_denoising, all_layers
        )


@MODELS.register_module()
class TgGBCPETR3DTransformer(PETR3DTransformer):
    """PETR's transformer with tgGBC as part of the model: it prunes in every forward pass, in training too.

    To prune only at test time or by a schedule, keep ``PETR3DTransformer`` and use ``TgGBCHook``.

    Args:
        tggbc: Settings of ``TgGBCPlan``: r, n, k and so on.
        **kwargs: Arguments of ``PETR3DTransformer``.

    Raises:
        ValueError: If the plan is not valid or does not match the decoder.
    """

    def __init__(self, tggbc: dict, **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.decoder.key_pruner = make_pruner(TgGBCPlan.from_dict(tggbc), self.num_layers)


def flatten_cameras(maps: Tensor) -> Tensor:
    """Flattens maps [B, cameras, C, H, W] to tokens [B, cameras * H * W, C]."""
    return maps.permute(0, 1, 3, 4, 2).flatten(1, 3)
