"""A decoder for export that computes the same with fewer operations around the matrix products.

A plain export spends a part of its time on scaling, adding and reordering. Here

* keys and values are projected from the left, W x^T: the result [C, N] is [heads, C / heads, N] already, which is how
  the products of the attention read it, so that neither is reordered;
* the scale of the softmax is folded into the projection of the queries;
* the bias of the keys is left out: it adds the same number to all scores of a query, which does not change the softmax;
* the bias of the values is folded into the bias of the output, since the weights of a query sum to one;
* the first self-attention is a constant: PETR's queries start without content, so that all its values are equal, and
  whatever the weights, the result is that value (unless a memory of earlier frames takes part).

Only standard operators are used.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmprune3d.layers.attention import Keys, split_heads
from mmprune3d.models.petr.decoder import Decoded, PETR3DDecoder, PETR3DDecoderLayer


class LeanAttention(nn.Module):
    """Attention with its residual connection; the weights are folded copies.

    Args:
        attention: The attention that it is equivalent to.
    """

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        query, key, value = attention.in_proj_weight.detach().chunk(3)
        query_bias, _, value_bias = attention.in_proj_bias.detach().chunk(3)
        output, scale = attention.out_proj.weight.detach(), attention.head_dim**-0.5
        self.num_heads = attention.num_heads
        self.register_buffer('query_weight', query * scale)
        self.register_buffer('query_bias', query_bias * scale)
        self.register_buffer('key_weight', key.clone())
        self.register_buffer('value_weight', value.clone())
        self.register_buffer('out_weight', output.clone())
        self.register_buffer('out_bias', attention.out_proj.bias.detach() + output @ value_bias)

    def forward(self, query: Tensor, positioned: Tensor, keys: Keys) -> Tensor:
        """Attends and adds the result to `query`.

        Args:
            query: [B, N_q, C].
            positioned: [B, N_q, C], `query` plus its positional encoding.
            keys: Keys and values, without masks.
        """
        q = split_heads(F.linear(positioned, self.query_weight, self.query_bias), self.num_heads)
        k, v = (
            (weight @ tokens.mT).unflatten(1, (self.num_heads, -1))
            for weight, tokens in ((self.key_weight, keys.key), (self.value_weight, keys.value))
        )
        mixed = (q @ k).softmax(-1) @ v.mT
        return query + F.linear(mixed.transpose(1, 2).flatten(2), self.out_weight, self.out_bias)


class LeanLayer(nn.Module):
    """One decoder layer.

    Args:
        layer: The layer that it is equivalent to; norms and feed-forward network are shared with it.
    """

    def __init__(self, layer: PETR3DDecoderLayer) -> None:
        super().__init__()
        self.attentions = nn.ModuleList(LeanAttention(attention.attn) for attention in layer.attentions)
        self.norms, self.ffns = layer.norms, layer.ffns

    def forward(self, query: Tensor | None, keys: Keys, query_pos: Tensor, memory: Keys | None) -> Tensor:
        """One layer.

        Args:
            query: [B, N_q, C], or None for queries without content.
            keys: Keys of the cross-attention, without masks.
            query_pos: [B, N_q, C].
            memory: Tokens that the self-attention attends to besides the queries, or None.
        """
        self_attention, cross_attention = self.attentions
        if query is None and memory is None:
            query = torch.zeros_like(query_pos) + self_attention.out_bias
        else:
            query = torch.zeros_like(query_pos) if query is None else query
            positioned = query + query_pos
            query = self_attention(query, positioned, with_memory(Keys(positioned, query), memory))
        query = self.norms[0](query)
        query = self.norms[1](cross_attention(query, query + query_pos, keys))
        return self.norms[2](self.ffns[0](query))


class LeanDecoder(nn.Module):
    """All layers and the last norm; replaces a ``PETR3DDecoder`` of which only the last layer is used.

    Args:
        decoder: The decoder that it is equivalent to, in evaluation mode.

    Raises:
        ValueError: If the decoder prunes keys.
    """

    def __init__(self, decoder: PETR3DDecoder) -> None:
        super().__init__()
        if decoder.key_pruner is not None:
            raise ValueError('a decoder that prunes keys has no lean form: detach the plan first')
        self.layers = nn.ModuleList(LeanLayer(layer) for layer in decoder.layers)
        self.post_norm = decoder.post_norm

    def forward(
        self,
        query: Tensor | None,
        keys: Keys,
        query_pos: Tensor,
        score_fn: object = None,
        self_attn_mask: Tensor | None = None,
        num_denoising: int = 0,
        all_layers: bool = False,
        memory: Keys | None = None,
    ) -> Decoded:
        """Runs all layers.

        Args:
            query: Not used: queries start at zero, as in ``PETR3DTransformer``.
            keys: Keys of the cross-attention, without masks.
            query_pos: [B, N_q, C].
            score_fn: Not used.
            self_attn_mask: Must be None.
            num_denoising: Must be 0.
            all_layers: Must be False.
            memory: Tokens that self-attention attends to besides the queries, or None.

        Raises:
            ValueError: If there is a mask, or the outputs of all layers are asked for.
        """
        masks = (self_attn_mask, keys.padding_mask, keys.attention_mask)
        if all_layers or num_denoising or any(mask is not None for mask in masks):
            raise ValueError('the lean decoder has no masks, no denoising queries, and gives the last layer only')
        query = None
        for layer in self.layers:
            query = layer(query, keys, query_pos, memory)
        return Decoded(torch.nan_to_num(self.post_norm(query))[None])


def with_memory(keys: Keys, memory: Keys | None) -> Keys:
    """The keys of `memory`, if there are any, appended to `keys`."""
    if memory is None:
        return keys
    return Keys(torch.cat((keys.key, memory.key), dim=1), torch.cat((keys.value, memory.value), dim=1))
