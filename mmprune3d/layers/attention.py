"""Attention with positional encodings: fused, and able to say how much chosen queries attend to each key.

All tensors are batch-first, [B, N, C]. The fused kernels (``F.scaled_dot_product_attention``) never hand out the
attention map, and key pruning needs a few rows of it only; :class:`AttentionRecord` computes exactly those from the
projected queries and keys that the forward pass made anyway.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor, nn


class Keys(NamedTuple):
    """What cross-attention attends to.

    Attributes:
        content: [B, N_k, C].
        value: [B, N_k, C]; the very same tensor as `content` in DETR-like decoders.
        pos: [B, N_k, C], added to `content` (not to `value`), or None.
        padding_mask: [B, N_k] bool, True where a key is padding, or None.
    """

    content: Tensor
    value: Tensor
    pos: Tensor | None = None
    padding_mask: Tensor | None = None

    def map(self, change: Callable[[Tensor], Tensor]) -> Keys:
        """Applies `change` to every tensor there is; `content` and `value` stay one tensor if they were one."""
        content = change(self.content)
        return Keys(
            content=content,
            value=content if self.value is self.content else change(self.value),
            pos=None if self.pos is None else change(self.pos),
            padding_mask=None if self.padding_mask is None else change(self.padding_mask),
        )


class AttentionRecord(NamedTuple):
    """The projected inputs of one cross-attention, detached: enough to compute any row of its map.

    Attributes:
        query: [B, heads, N_q, C / heads].
        key: [B, heads, N_k, C / heads].
        padding_mask: [B, N_k] bool, True for padding, or None.
    """

    query: Tensor
    key: Tensor
    padding_mask: Tensor | None = None

    def rows(self, index: Tensor) -> Tensor:
        """Attention weights of the queries `index` [B, k], averaged over heads: [B, k, N_k].

        They are the weights of the forward pass without its dropout; each row sums to 1, padding gets 0.
        """
        heads, width = self.query.shape[1], self.query.shape[3]
        chosen = index[:, None, :, None].expand(-1, heads, -1, width)
        scores = self.query.gather(2, chosen) @ self.key.transpose(-2, -1) * width**-0.5
        if self.padding_mask is not None:
            scores = scores.masked_fill(self.padding_mask[:, None, None], float('-inf'))
        return scores.softmax(-1).mean(1)

    def without_first(self, count: int) -> AttentionRecord:
        """The same without the first `count` queries (denoising queries, which know the ground truth)."""
        return self._replace(query=self.query[:, :, count:])


def split_heads(tokens: Tensor, num_heads: int) -> Tensor:
    """[B, N, C] to [B, heads, N, C / heads]."""
    return tokens.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def attention_rows(
    attention: nn.MultiheadAttention,
    query: Tensor,
    key: Tensor,
    index: Tensor,
    padding_mask: Tensor | None = None,
) -> Tensor:
    """Rows of the attention map of any ``nn.MultiheadAttention``, for decoders that were written by others.

    Args:
        attention: Holds the weights; its query, key and value must have the same width.
        query: [B, N_q, C], positional part included.
        key: [B, N_k, C], positional part included.
        index: [B, k], the queries that are wanted.
        padding_mask: [B, N_k] bool, True for padding, or None.

    Returns:
        [B, k, N_k], averaged over heads.
    """
    query = query.gather(1, index[..., None].expand(-1, -1, query.shape[-1]))
    everything = torch.arange(index.shape[1], device=index.device).expand_as(index)
    projected = (project(attention, part, which) for which, part in enumerate((query, key)))
    return AttentionRecord(*projected, padding_mask).rows(everything)


def project(attention: nn.MultiheadAttention, tokens: Tensor, which: int) -> Tensor:
    """The query (0), key (1) or value (2) projection, split into heads: [B, N, C] to [B, heads, N, C / heads]."""
    width = attention.embed_dim
    part = slice(which * width, (which + 1) * width)
    bias = None if attention.in_proj_bias is None else attention.in_proj_bias[part]
    return split_heads(F.linear(tokens, attention.in_proj_weight[part], bias), attention.num_heads)


def allowed(attn_mask: Tensor | None, padding_mask: Tensor | None) -> Tensor | None:
    """Both masks as one for ``F.scaled_dot_product_attention``, where True means "may attend" (the opposite).

    Args:
        attn_mask: [N_q, N_k] bool, True where attention is forbidden, or None.
        padding_mask: [B, N_k] bool, True for padding, or None.
    """
    if attn_mask is None and padding_mask is None:
        return None
    if padding_mask is None:
        return ~attn_mask
    forbidden = padding_mask[:, None, None]
    return ~forbidden if attn_mask is None else ~(forbidden | attn_mask)


class PositionalAttention(BaseModule):
    """Multi-head attention with positional encodings and a residual connection.

    Weights have the names and shapes of ``nn.MultiheadAttention`` inside ``attn`` (as in the PETR family), so that
    official checkpoints fit; the arithmetic is one fused kernel. Queries and keys get their positional encodings,
    values do not.

    Args:
        embed_dims: Width C of the tokens.
        num_heads: Number of heads; must divide `embed_dims`.
        attn_drop: Dropout of the attention weights.
        proj_drop: Dropout of the output, before it is added to the residual.
        init_cfg: Initialisation, as in ``BaseModule``.
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.attn = nn.MultiheadAttention(embed_dims, num_heads, dropout=attn_drop, batch_first=True)
        self.dropout = nn.Dropout(proj_drop)

    def forward(
        self,
        query: Tensor,
        keys: Keys | None = None,
        query_pos: Tensor | None = None,
        attn_mask: Tensor | None = None,
    ) -> tuple[Tensor, AttentionRecord]:
        """Attends and adds the result to `query`.

        Args:
            query: [B, N_q, C].
            keys: What to attend to; None means the queries themselves, with `query_pos` as their positions.
            query_pos: [B, N_q, C] or None.
            attn_mask: [N_q, N_k] bool, True where attention is forbidden, or None.

        Returns:
            The new queries [B, N_q, C], and a record from which attention weights can be computed. The record holds
            references, it costs nothing; let it go before the next layer.
        """
        if keys is None:
            keys = Keys(query, query, query_pos)
        positioned_query = query if query_pos is None else query + query_pos
        positioned_key = keys.content if keys.pos is None else keys.content + keys.pos
        q, k = project(self.attn, positioned_query, 0), project(self.attn, positioned_key, 1)
        mixed = F.scaled_dot_product_attention(
            q,
            k,
            project(self.attn, keys.value, 2),
            attn_mask=allowed(attn_mask, keys.padding_mask),
            dropout_p=self.attn.dropout if self.training else 0.0,
        )
        output = self.attn.out_proj(mixed.transpose(1, 2).flatten(2))
        return query + self.dropout(output), AttentionRecord(q.detach(), k.detach(), keys.padding_mask)

    def attention_rows(
        self, query: Tensor, key: Tensor, query_indices: Tensor, key_padding_mask: Tensor | None = None
    ) -> Tensor:
        """Rows `query_indices` [B, k] of the head-averaged map [B, k, N_k]; see :func:`attention_rows`."""
        return attention_rows(self.attn, query, key, query_indices, key_padding_mask)

    def reference(
        self,
        query: Tensor,
        keys: Keys,
        query_pos: Tensor | None = None,
        attn_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The same by ``nn.MultiheadAttention`` itself, with the full map [B, N_q, N_k]: slow, for tests only."""
        positioned_query = query if query_pos is None else query + query_pos
        positioned_key = keys.content if keys.pos is None else keys.content + keys.pos
        output, attention = self.attn(
            positioned_query,
            positioned_key,
            keys.value,
            key_padding_mask=keys.padding_mask,
            attn_mask=attn_mask,
            need_weights=True,
        )
        return query + self.dropout(output), attention
