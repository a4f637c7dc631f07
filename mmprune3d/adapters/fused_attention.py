"""Fused kernels for attention modules written by others, with a record of the projected queries and keys.

Detectors compute the full attention map in their cross-attention and discard it. A stand-in replaces one method of one
attention module, on that instance only: no parameter and no module changes, and removing it restores the module
exactly. Results are equal up to rounding. Callers that request the map get None.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from mmprune3d.layers.attention import AttentionRecord, Keys, allowed, project, split_heads
from mmprune3d.ops.attention import fused_attention


class FusedStandIn(ABC):
    """Base class that replaces `METHOD` of an attention module; a subclass implements `attend` with `mix`.

    Args:
        attention: Attention module with an attribute ``num_heads``.

    Attributes:
        armed: Whether the next call is to be recorded; the second run of gradient checkpointing is not recorded.

    Raises:
        ValueError: If other code has replaced the method on this instance.
    """

    METHOD: ClassVar[str]

    def __init__(self, attention: nn.Module) -> None:
        present = vars(attention).get(self.METHOD)
        if present is not None and not isinstance(getattr(present, '__self__', None), FusedStandIn):
            raise ValueError(f'{type(attention).__name__}.{self.METHOD} of the decoder is replaced by other code')
        self.attention = attention
        self.armed = False
        self._seen: tuple[Tensor, Tensor, Tensor | None] | None = None

    @abstractmethod
    def attend(self, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
        """Replaces `METHOD`, with its arguments; returns the output, and None instead of the map."""

    def install(self) -> None:
        """Replaces `METHOD` of the attention module by `attend`."""
        setattr(self.attention, self.METHOD, self.attend)

    def remove(self) -> None:
        """Restores `METHOD`; the module is then exactly as it was before `install`."""
        delattr(self.attention, self.METHOD)

    def mix(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None,
        padding_mask: Tensor | None,
        dropout: float,
    ) -> Tensor:
        """Computes attention, and stores queries and keys if armed.

        Args:
            query: Projected queries [B, heads, N_q, D], not scaled.
            key: Projected keys [B, heads, N_k, D].
            value: Projected values [B, heads, N_k, D or less].
            attn_mask: Mask [N_q, N_k] or [B * heads, N_q, N_k] bool, True where attention is forbidden, or None.
            padding_mask: Padding of the keys [B, N_k] bool, True for padding, or None.
            dropout: Dropout probability of the weights in training mode.

        Returns:
            Output before the output projection [B, N_q, C].
        """
        mask = bool_mask(attn_mask)
        if mask is not None and mask.dim() == 3:
            mask = mask.unflatten(0, (len(query), -1))
        mask = allowed(mask, Keys(key, value, bool_mask(padding_mask)))
        width = value.shape[-1]
        value = F.pad(value, (0, query.shape[-1] - width))  # fused kernels need the same width for keys and values
        mixed, log_sum = fused_attention(query, key, value, mask, dropout if self.attention.training else 0.0)
        if self.armed:
            self._seen = (query.detach(), key.detach(), None if log_sum is None else log_sum.detach())
        return mixed[..., :width].transpose(1, 2).flatten(2)

    def take_record(self, keys: Keys) -> AttentionRecord:
        """Returns, and deletes here, the record of the call since `armed` was set, which attended to `keys`.

        Raises:
            RuntimeError: If there was no such call.
        """
        if self._seen is None:
            raise RuntimeError(f'{type(self.attention).__name__}.{self.METHOD} was not called by its decoder layer')
        query, key, log_sum = self._seen
        self.armed, self._seen = False, None
        return AttentionRecord(query, key, keys.padding_mask, log_sum, keys.attention_mask)


class FusedMultiheadAttention(FusedStandIn):
    """Stand-in for ``torch.nn.MultiheadAttention``.

    Args:
        attention: Module with the same width for queries, keys and values, and without extra keys.

    Raises:
        ValueError: If the module is of another kind.
    """

    METHOD = 'forward'

    def __init__(self, attention: nn.Module) -> None:
        plain = isinstance(attention, nn.MultiheadAttention) and attention.in_proj_weight is not None
        if not plain or attention.bias_k is not None or attention.add_zero_attn:
            raise ValueError(
                f'the cross-attention is a {type(attention).__name__}; supported is torch.nn.MultiheadAttention '
                'without kdim, vdim, add_bias_kv and add_zero_attn'
            )
        super().__init__(attention)

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, None]:
        """Computes attention; arguments as in ``nn.MultiheadAttention.forward``, whose three flags have no effect."""
        tokens = (query, key, value)
        if not self.attention.batch_first:
            tokens = tuple(part.transpose(0, 1) for part in tokens)
        heads = (project(self.attention, part, which) for which, part in enumerate(tokens))
        output = self.attention.out_proj(self.mix(*heads, attn_mask, key_padding_mask, self.attention.dropout))
        return output if self.attention.batch_first else output.transpose(0, 1), None


class FusedConditionalAttention(FusedStandIn):
    """Stand-in for mmdet's ``ConditionalAttention``, whose heads concatenate a content and a position part.

    Queries and keys are therefore twice as wide as the values.
    """

    METHOD = 'forward_attn'

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
    ) -> tuple[Tensor, None]:
        """Computes attention; arguments as in ``ConditionalAttention.forward_attn``."""
        heads = (split_heads(part, self.attention.num_heads) for part in (query, key, value))
        mixed = self.mix(*heads, attn_mask, key_padding_mask, self.attention.attn_drop.p)
        return self.attention.out_proj(mixed), None


def bool_mask(mask: Tensor | None) -> Tensor | None:
    """Converts a mask to bool, True where attention is forbidden.

    Raises:
        ValueError: If the mask contains floating-point biases.
    """
    if mask is None:
        return None
    if mask.is_floating_point():
        raise ValueError('masks of floating-point biases cannot be pruned; valid are bool masks, True where forbidden')
    return mask.bool()
