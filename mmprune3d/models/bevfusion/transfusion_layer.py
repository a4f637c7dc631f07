"""A decoder layer of TransFusion: object queries attend to each other and to all cells of the fused map."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from mmcv.cnn.bricks.transformer import MultiheadAttention
from mmdet.models.layers import DetrTransformerDecoderLayer
from mmdet3d.registry import MODELS
from torch import Tensor, nn


class PositionEmbedding(nn.Module):
    """A two-layer network from coordinates to a positional embedding.

    Args:
        input_channel: Number of coordinates.
        num_pos_feats: Channels of the embedding.
    """

    def __init__(self, input_channel: int, num_pos_feats: int) -> None:
        super().__init__()
        self.position_embedding_head = nn.Sequential(
            nn.Conv1d(input_channel, num_pos_feats, 1),
            nn.BatchNorm1d(num_pos_feats),
            nn.ReLU(inplace=True),
            nn.Conv1d(num_pos_feats, num_pos_feats, 1),
        )

    def forward(self, positions: Tensor) -> Tensor:
        """Embeds positions [B, N, coordinates] as [B, N, num_pos_feats]."""
        return self.position_embedding_head(positions.transpose(1, 2).contiguous()).transpose(1, 2)


@MODELS.register_module()
class BEVFusion3DDecoderLayer(DetrTransformerDecoderLayer):
    """A decoder layer with self-attention, cross-attention and feed-forward network, each followed by a norm.

    Unlike in DETR the positional embedding is also added to the values. The attention is fused: no matrix of attention
    weights is computed.

    Args:
        pos_encoding_cfg: ``input_channel`` and ``num_pos_feats`` of both positional embeddings.
        **kwargs: ``self_attn_cfg``, ``cross_attn_cfg``, ``ffn_cfg`` and ``norm_cfg`` of
            :class:`mmdet.models.DetrTransformerDecoderLayer`.
    """

    def __init__(self, pos_encoding_cfg: dict | None = None, **kwargs: Any) -> None:
        super().__init__(**deepcopy(kwargs))
        sizes = pos_encoding_cfg or {'input_channel': 2, 'num_pos_feats': self.embed_dims}
        self.self_posembed = PositionEmbedding(**sizes)
        self.cross_posembed = PositionEmbedding(**sizes)

    def forward(self, query: Tensor, key: Tensor, query_pos: Tensor, key_pos: Tensor) -> Tensor:
        """Updates the queries by self-attention, cross-attention and the feed-forward network.

        Args:
            query: Queries [B, C, N_q].
            key: Cells of the map [B, C, N_k], keys and values of the cross-attention.
            query_pos: Positions of the queries [B, N_q, 2], in cells.
            key_pos: Positions of the cells [1, N_k, 2], in cells, the same for all samples.

        Returns:
            The updated queries [B, C, N_q].
        """
        if self.training:
            # The unbiased variance that batch norm tracks depends on the number of values, so these are repeated.
            key_pos = key_pos.expand(len(key), -1, -1)
        query, key = query.transpose(1, 2), key.transpose(1, 2)
        query_pos, key = self.self_posembed(query_pos), key + self.cross_posembed(key_pos)
        moved = query + query_pos
        query = self.norms[0](query + attend(self.self_attn, moved, moved))
        query = self.norms[1](query + attend(self.cross_attn, query + query_pos, key))
        return self.norms[2](self.ffn(query)).transpose(1, 2)


def attend(attention: MultiheadAttention, query: Tensor, key: Tensor) -> Tensor:
    """Applies attention to `query` [B, N_q, C] and `key` [B, N_k, C] (also the values), without the residual."""
    query_first = query.transpose(0, 1)
    key_first = query_first if key is query else key.transpose(0, 1)
    out = attention.attn(query_first, key_first, key_first, need_weights=False)[0].transpose(0, 1)
    return attention.dropout_layer(attention.proj_drop(out))
