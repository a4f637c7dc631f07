"""Fused kernels in the place of attention written by others, with a record of the projected queries and keys.

Detectors let their cross-attention make the full map and throw it away. A stand-in takes the place of one method of one
attention module, on that instance alone: no parameter and no module changes, and taking it off leaves no trace. Results
are equal within rounding. Who asks for the map gets None.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from mmprune3d.layers.attention import AttentionRecord, Keys, allowed, project, split_heads
from mmprune3d.ops.attention import fused_attention


class FusedStandIn(ABC):
    """Stands in for `METHOD` of an attention module. A subclass writes `attend`, around `mix`.

    Args:
        attention: The module; it has ``num_heads``.

    Attributes:
        armed: Whether the next call is to be recorded. A call of gradient checkpointing's second run is not.

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
        """What `METHOD` does, with its arguments: the output, and None instead of the map."""

    def install(self) -> None:
        """Puts `attend` in the place of `METHOD`."""
        setattr(self.attention, self.METHOD, self.attend)

    def remove(self) -> None:
        """Takes it off; the module is what it was."""
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
        """Attends, and remembers queries and keys if armed.

        Args:
            query: [B, heads, N_q, D], projected, not scaled.
            key: [B, heads, N_k, D], projected.
            value: [B, heads, N_k, D or less], projected.
            attn_mask: [N_q, N_k] or [B * heads, N_q, N_k] bool, True where attention is forbidden, or None.
            padding_mask: [B, N_k] bool, True for padding, or None.
            dropout: Of the weights, while the module trains.

        Returns:
            [B, N_q, C], before the output projection.
        """
        mask = bool_mask(attn_mask)
        if mask is not None and mask.dim() == 3:
            mask = mask.unflatten(0, (len(query), -1))
        mask = allowed(mask, Keys(key, value, bool_mask(padding_mask)))
        width = value.shape[-1]
        value = F.pad(value, (0, query.shape[-1] - width))  # fused kernels want one width
        mixed, log_sum = fused_attention(query, key, value, mask, dropout if self.attention.training else 0.0)
        if self.armed:
            self._seen = (query.detach(), key.detach(), None if log_sum is None else log_sum.detach())
        return mixed[..., :width].transpose(1, 2).flatten(2)

    def take_record(self, keys: Keys) -> AttentionRecord:
        """The record of the call since `armed` was set, which attended to `keys`; it is forgotten here.

        Raises:
            RuntimeError: If there was no call.
        """
        if self._seen is None:
            raise RuntimeError(f'{type(self.attention).__name__}.{self.METHOD} was not called by its decoder layer')
        query, key, log_sum = self._seen
        self.armed, self._seen = False, None
        return AttentionRecord(query, key, keys.padding_mask, log_sum, keys.attention_mask)


class FusedMultiheadAttention(FusedStandIn):
    """For ``torch.nn.MultiheadAttention``.

    Args:
        attention: With one width for queries, keys and values, and without extra keys.

    Raises:
        ValueError: If the module is another one.
    """

    METHOD = 'forward'

    def __init__(self, attention: nn.Module) -> None:
        plain = isinstance(attention, nn.MultiheadAttention) and attention.in_proj_weight is not None
        if not plain or attention.bias_k is not None or attention.add_zero_attn:
            raise ValueError(
                f'the cross-attention is a {type(attention).__name__}; known is torch.nn.MultiheadAttention '
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
        """Arguments as in ``nn.MultiheadAttention.forward``; its three flags change nothing in the output."""
        tokens = (query, key, value)
        if not self.attention.batch_first:
            tokens = tuple(part.transpose(0, 1) for part in tokens)
        heads = (project(self.attention, part, which) for which, part in enumerate(tokens))
        output = self.attention.out_proj(self.mix(*heads, attn_mask, key_padding_mask, self.attention.dropout))
        return output if self.attention.batch_first else output.transpose(0, 1), None


class FusedConditionalAttention(FusedStandIn):
    """For mmdet's ``ConditionalAttention``: heads join a content and a position part, twice as wide as the values."""

    METHOD = 'forward_attn'

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
    ) -> tuple[Tensor, None]:
        """Arguments as in ``ConditionalAttention.forward_attn``."""
        heads = (split_heads(part, self.attention.num_heads) for part in (query, key, value))
        mixed = self.mix(*heads, attn_mask, key_padding_mask, self.attention.attn_drop.p)
        return self.attention.out_proj(mixed), None


def bool_mask(mask: Tensor | None) -> Tensor | None:
    """A mask as bool, True where attention is forbidden.

    Raises:
        ValueError: If the mask holds biases.
    """
    if mask is None:
        return None
    if mask.is_floating_point():
        raise ValueError('masks of floating-point biases cannot be pruned; valid are bool masks, True where forbidden')
    return mask.bool()
