"""PETR of mmdet3d's ``projects/PETR``, which is not in the wheel, and other code with its decoder classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .fused_attention import FusedMultiheadAttention, FusedStandIn
from .layer_hooks import HookedDecoder, activation_of


class HookedPETR(HookedDecoder):
    """A ``PETRTransformerDecoder``: sequence-first, positions added inside the attention, the branches in the head."""

    LOOKS_FOR = 'a `transformer.decoder` (PETRTransformerDecoder) beside `cls_branches`, as in projects/PETR of mmdet3d'
    STAGES = {'backbone': 'img_backbone', 'neck': 'img_neck'}
    batch_first = False
    mask_argument = 'attn_masks'

    @classmethod
    def fits(cls, module: nn.Module) -> bool:
        """The head, by the name of its decoder's class."""
        decoder = getattr(getattr(module, 'transformer', None), 'decoder', None)
        return type(decoder).__name__ == 'PETRTransformerDecoder' and hasattr(module, 'cls_branches')

    @staticmethod
    def decoder_of(owner: nn.Module) -> nn.Module:
        """In the head's transformer."""
        return owner.transformer.decoder

    def stand_in(self, layer: nn.Module) -> FusedStandIn:
        """Inside of the wrapper, which adds the positions."""
        return FusedMultiheadAttention(layer.attentions[self._cross].attn)

    def normed(self, output: Tensor) -> Tensor:
        """By the decoder's norm; the head replaces what is not a number."""
        norm = self.decoder.post_norm
        return torch.nan_to_num(output if norm is None else norm(output)).transpose(0, 1)

    def logits(self, layer: int, query: Tensor) -> Tensor:
        """By the branch of that layer (PETR has one for all, PETRv2 one for each)."""
        return self.owner.cls_branches[layer](query)

    @property
    def activation(self) -> str:
        """That of the head's loss."""
        return activation_of(self.owner)

    def cross_mask(self, arguments: Mapping[str, Any]) -> Tensor | None:
        """One tensor for all attentions of a layer, or a list with one for each."""
        masks = arguments.get(self.mask_argument)
        return masks if masks is None or isinstance(masks, Tensor) else masks[self._cross]

    def with_cross_mask(self, arguments: Mapping[str, Any], mask: Tensor) -> dict[str, Any]:
        """As a list: from here on, the masks of the attentions differ."""
        masks = arguments[self.mask_argument]
        masks = [masks] * len(self.layers[0].attentions) if isinstance(masks, Tensor) else list(masks)
        masks[self._cross] = mask
        return {**arguments, self.mask_argument: masks}

    @property
    def _cross(self) -> int:
        """Which of a layer's attentions is the cross-attention."""
        names = [attention.operation_name for attention in self.decoder.layers[0].attentions]
        return names.index('cross_attn')
