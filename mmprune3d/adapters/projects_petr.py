"""Adapter for PETR of mmdet3d's ``projects/PETR``, which is not in the wheel, and for code with its decoder classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .fused_attention import FusedMultiheadAttention, FusedStandIn
from .layer_hooks import HookedDecoder, activation_of


class HookedPETR(HookedDecoder):
    """Adapter for a ``PETRTransformerDecoder``: sequence-first, attention adds positions, branches are in the head."""

    LOOKS_FOR = 'a `transformer.decoder` (PETRTransformerDecoder) beside `cls_branches`, as in projects/PETR of mmdet3d'
    STAGES = {'backbone': 'img_backbone', 'neck': 'img_neck'}
    batch_first = False
    mask_argument = 'attn_masks'

    @classmethod
    def fits(cls, module: nn.Module) -> bool:
        """Recognizes the head by the class name of its decoder."""
        decoder = getattr(getattr(module, 'transformer', None), 'decoder', None)
        return type(decoder).__name__ == 'PETRTransformerDecoder' and hasattr(module, 'cls_branches')

    @staticmethod
    def decoder_of(owner: nn.Module) -> nn.Module:
        """Returns the decoder of the head's transformer."""
        return owner.transformer.decoder

    def stand_in(self, layer: nn.Module) -> FusedStandIn:
        """Creates the stand-in for the attention inside of the wrapper, which adds the positions."""
        return FusedMultiheadAttention(layer.attentions[self._cross].attn)

    def normed(self, output: Tensor) -> Tensor:
        """Applies the decoder's norm, and replaces NaN as the head does."""
        norm = self.decoder.post_norm
        return torch.nan_to_num(output if norm is None else norm(output)).transpose(0, 1)

    def logits(self, layer: int, query: Tensor) -> Tensor:
        """Applies the classification branch of that layer (shared in PETR, one per layer in PETRv2)."""
        return self.owner.cls_branches[layer](query)

    @property
    def activation(self) -> str:
        """The activation of the head's classification loss."""
        return activation_of(self.owner)

    def cross_mask(self, arguments: Mapping[str, Any]) -> Tensor | None:
        """Finds the mask of the cross-attention: one tensor for all attentions of a layer, or a list of them."""
        masks = arguments.get(self.mask_argument)
        return masks if masks is None or isinstance(masks, Tensor) else masks[self._cross]

    def with_cross_mask(self, arguments: Mapping[str, Any], mask: Tensor) -> dict[str, Any]:
        """Passes the masks as a list, because the masks of the attentions now differ."""
        masks = arguments[self.mask_argument]
        masks = [masks] * len(self.layers[0].attentions) if isinstance(masks, Tensor) else list(masks)
        masks[self._cross] = mask
        return {**arguments, self.mask_argument: masks}

    @property
    def _cross(self) -> int:
        """Index of the cross-attention among a layer's attentions."""
        names = [attention.operation_name for attention in self.decoder.layers[0].attentions]
        return names.index('cross_attn')
