"""Attention with positional encodings: fused kernels, and the attention of chosen queries to each key.

All tensors are batch-first, [B, N, C]. Fused kernels never return the attention map, but key pruning needs sums over a
few of its rows only; :class:`AttentionRecord` computes exactly these from the projected queries and keys of the forward
pass.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import NamedTuple

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor, nn

from mmprune3d.ops.attention import fused_attention
from mmprune3d.pruning.selection import gather_tokens, once_per_tensor
from mmprune3d.pruning.tggbc import attention_rows, fused_key_importance, key_importance


class Keys(NamedTuple):
    """The keys and values of a cross-attention, with positions and masks.

    Attributes:
        key: Keys [B, N_k, C], with positional encoding (unless it is in `key_pos`).
        value: Values [B, N_k, C], without positional encoding.
        padding_mask: Padding of the keys [B, N_k] bool, True where a key is padding, or None.
        attention_mask: Mask [B, N_q, N_k] bool, True where a query may not attend, or None.
        key_pos: Positional encoding of `key` [B, N_k, C], if the attention itself adds it, or None.
    """

    key: Tensor
    value: Tensor
    padding_mask: Tensor | None = None
    attention_mask: Tensor | None = None
    key_pos: Tensor | None = None

    def map(self, change: Callable[[Tensor], Tensor]) -> Keys:
        """Applies `change` to all tensors but the attention mask; `key` and `value` stay one tensor if they are one."""
        key, value, padding_mask, key_pos = map(once_per_tensor(change), (*self[:3], self.key_pos))
        return Keys(key, value, padding_mask, self.attention_mask, key_pos)

    def select(self, index: Tensor) -> Keys:
        """Selects the keys `index` [B, K] of every sample, with their masks."""
        chosen = self.map(lambda tokens: gather_tokens(tokens, index))
        if self.attention_mask is None:
            return chosen
        columns = index[:, None].expand(-1, self.attention_mask.shape[1], -1)
        return chosen._replace(attention_mask=self.attention_mask.gather(2, columns))


def most_valid(keys: Keys) -> int:
    """Largest number of keys in a sample that are not padding."""
    if keys.padding_mask is None:
        return keys.key.shape[1]
    return int((~keys.padding_mask).sum(1).max())


class AttentionRecord(NamedTuple):
    """The projected inputs of one cross-attention, detached: enough to compute any row of its map.

    Attributes:
        query: Projected queries [B, heads, N_q, D].
        key: Projected keys [B, heads, N_k, D].
        padding_mask: Padding of the keys [B, N_k] bool, True for padding, or None.
        log_sum: Logarithms of the softmax denominators [B, heads, N_q], or None if the kernel does not return them.
        attention_mask: Mask [B, N_q, N_k] bool, True where a query may not attend, or None.
    """

    query: Tensor
    key: Tensor
    padding_mask: Tensor | None = None
    log_sum: Tensor | None = None
    attention_mask: Tensor | None = None

    def rows(self, index: Tensor) -> Tensor:
        """Attention weights of the queries `index` [B, k], averaged over heads: [B, k, N_k].

        They are the weights of the forward pass without its dropout; each row sums to 1, padding gets 0.
        """
        forbidden = None if self.padding_mask is None else self.padding_mask[:, None]
        if self.attention_mask is not None:
            rows = gather_tokens(self.attention_mask, index)
            forbidden = rows if forbidden is None else forbidden | rows
        return attention_rows(self._chosen(index), self.key, forbidden)

    def importance(self, confidence: Tensor, index: Tensor) -> Tensor:
        """Importance of every key [B, N_k] for the queries `index` [B, k], which have the given confidence [B, k]."""
        # With the softmax denominators no row of the map is stored; this shortcut excludes padding, but not single
        # query-key pairs, so records with an attention mask compute the rows.
        if self.log_sum is None or self.attention_mask is not None:
            return key_importance(confidence, self.rows(index), self.padding_mask)
        log_sum = self.log_sum.gather(2, index[:, None].expand(-1, self.query.shape[1], -1))
        return fused_key_importance(confidence, self._chosen(index), self.key, log_sum, self.padding_mask)

    def _chosen(self, index: Tensor) -> Tensor:
        chosen = index[:, None, :, None].expand(-1, self.query.shape[1], -1, self.query.shape[3])
        return self.query.gather(2, chosen)

    def without_first(self, count: int) -> AttentionRecord:
        """The record without the first `count` queries (denoising queries, which contain ground truth)."""
        log_sum = None if self.log_sum is None else self.log_sum[:, :, count:]
        mask = None if self.attention_mask is None else self.attention_mask[:, count:]
        return self._replace(query=self.query[:, :, count:], log_sum=log_sum, attention_mask=mask)


def split_heads(tokens: Tensor, num_heads: int) -> Tensor:
    """Splits tokens [B, N, C] into heads [B, heads, N, C / heads]."""
    return tokens.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def project(attention: nn.MultiheadAttention, tokens: Tensor, which: int) -> Tensor:
    """Applies the query (0), key (1) or value (2) projection to tokens [B, N, C]: [B, heads, N, C / heads]."""
    width = attention.embed_dim
    part = slice(which * width, (which + 1) * width)
    bias = None if attention.in_proj_bias is None else attention.in_proj_bias[part]
    return split_heads(F.linear(tokens, attention.in_proj_weight[part], bias), attention.num_heads)


def allowed(attn_mask: Tensor | None, keys: Keys) -> Tensor | None:
    """Combines all masks into one for ``F.scaled_dot_product_attention``, where True means "may attend" (the opposite).

    Args:
        attn_mask: Mask [N_q, N_k] bool, True where attention is forbidden, or None.
        keys: Keys, which may have a padding mask and an attention mask.
    """
    masks = [
        attn_mask,
        None if keys.padding_mask is None else keys.padding_mask[:, None, None],
        None if keys.attention_mask is None else keys.attention_mask[:, None],
    ]
    forbidden = [mask for mask in masks if mask is not None]
    return ~reduce(torch.logical_or, forbidden) if forbidden else None


class PositionalAttention(BaseModule):
    """Multi-head attention with positional encodings and a residual connection.

    Weights have the names and shapes of ``nn.MultiheadAttention`` inside ``attn`` (as in the PETR family), so that
    official checkpoints can be loaded; the computation is one fused kernel. Positional encodings are added to queries
    and keys, not to values.

    Args:
        embed_dims: Width C of the tokens.
        num_heads: Number of heads; must divide `embed_dims`.
        attn_drop: Dropout probability of the attention weights.
        proj_drop: Dropout probability of the output, before it is added to the residual.
        init_cfg: Initialization, as in ``BaseModule``.
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
        """Computes attention and adds the result to `query`.

        Args:
            query: Queries [B, N_q, C].
            keys: Keys to attend to; None: the queries themselves, with `query_pos` as their positions.
            query_pos: Positional encoding of the queries [B, N_q, C] or None.
            attn_mask: Mask [N_q, N_k] bool, True where attention is forbidden, or None.

        Returns:
            The updated queries [B, N_q, C], and a record from which attention weights can be computed. The record only
            holds references, which keep tensors in memory; delete it before the next layer.
        """
        positioned, keys = self._positioned(query, keys, query_pos)
        q, k, v = (project(self.attn, part, i) for i, part in enumerate((positioned, keys.key, keys.value)))
        dropout = self.attn.dropout if self.training else 0.0
        mixed, log_sum = fused_attention(q, k, v, allowed(attn_mask, keys), dropout)
        output = self.attn.out_proj(mixed.transpose(1, 2).flatten(2))
        detached = None if log_sum is None else log_sum.detach()
        record = AttentionRecord(q.detach(), k.detach(), keys.padding_mask, detached, keys.attention_mask)
        return query + self.dropout(output), record

    @staticmethod
    def _positioned(query: Tensor, keys: Keys | None, query_pos: Tensor | None) -> tuple[Tensor, Keys]:
        positioned = query if query_pos is None else query + query_pos
        return positioned, Keys(positioned, query) if keys is None else keys

    def reference(
        self,
        query: Tensor,
        keys: Keys | None = None,
        query_pos: Tensor | None = None,
        attn_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Computes attention with ``nn.MultiheadAttention``, with the full map [B, N_q, N_k], for comparison.

        A query that may attend to no key gets zeros and a row of zeros; ``nn.MultiheadAttention`` alone gives NaN.
        """
        positioned, keys = self._positioned(query, keys, query_pos)
        may = allowed(attn_mask, keys)
        if may is None:
            output, attention = self.attn(positioned, keys.key, keys.value)
            return query + self.dropout(output), attention
        shape = (len(query), self.attn.num_heads, query.shape[1], keys.key.shape[1])
        lost = ~may.any(-1, keepdim=True).expand(*shape[:3], 1)
        # Such queries attend to all keys until their rows are overwritten, so that their gradients are finite too.
        output, attention = self.attn(
            positioned, keys.key, keys.value, attn_mask=~(may | lost).expand(shape).flatten(0, 1)
        )
        lost = lost[:, 0]
        output = torch.where(lost, self.attn.out_proj.bias, output)
        return query + self.dropout(output), attention.masked_fill(lost, 0)
