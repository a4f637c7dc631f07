"""Adapters for DETR and Conditional DETR of mmdet 3, with one head for all decoder layers (tgGBC, appendix D.5)."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from .fused_attention import FusedConditionalAttention, FusedMultiheadAttention, FusedStandIn
from .layer_hooks import HookedDecoder, activation_of


class HookedDETR(HookedDecoder):
    """Adapter for mmdet's DETR, whose head has a softmax with a background column: set ``activation='softmax'``.

    The number of keys depends on the size of the images: give `r` as a share, and a threshold `t`.
    """

    LOOKS_FOR = 'a `decoder` (DetrTransformerDecoder) and a `bbox_head` with `fc_cls`, as in DETR of mmdet'
    STAGES = {'backbone': 'backbone', 'neck': 'neck', 'encoder': 'encoder'}
    DECODER: ClassVar[str] = 'DetrTransformerDecoder'

    @classmethod
    def fits(cls, module: nn.Module) -> bool:
        """Recognizes the detector by the class name of its decoder, as subclasses in mmdet have other layers."""
        decoder, head = (getattr(module, name, None) for name in ('decoder', 'bbox_head'))
        return type(decoder).__name__ == cls.DECODER and hasattr(head, 'fc_cls')

    @staticmethod
    def decoder_of(owner: nn.Module) -> nn.Module:
        """Returns the decoder of the detector."""
        return owner.decoder

    def stand_in(self, layer: nn.Module) -> FusedStandIn:
        """Creates the stand-in for the attention inside of mmcv's wrapper, which adds the positions."""
        return FusedMultiheadAttention(layer.cross_attn.attn)

    def normed(self, output: Tensor) -> Tensor:
        """Applies the norm that the decoder's layers share."""
        return self.decoder.post_norm(output)

    def logits(self, layer: int, query: Tensor) -> Tensor:
        """Applies the classification layer of the head, the same for all decoder layers."""
        return self.owner.bbox_head.fc_cls(query)

    @property
    def activation(self) -> str:
        """The activation of the head's classification loss."""
        return activation_of(self.owner.bbox_head)


class HookedConditionalDETR(HookedDETR):
    """Adapter for mmdet's Conditional DETR, whose decoder passes no values.

    Its attention heads concatenate a content and a position part.
    """

    LOOKS_FOR = 'the same with a ConditionalDetrTransformerDecoder, as in ConditionalDETR of mmdet'
    DECODER = 'ConditionalDetrTransformerDecoder'
    mask_argument = 'cross_attn_masks'

    def stand_in(self, layer: nn.Module) -> FusedStandIn:
        """Creates the stand-in for the attention after the projections, which are separate modules in mmdet."""
        return FusedConditionalAttention(layer.cross_attn)
