"""DETR and Conditional DETR of mmdet 3: one head for all decoder layers, keys from an encoder (appendix D.5)."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from .fused_attention import FusedConditionalAttention, FusedMultiheadAttention, FusedStandIn
from .layer_hooks import HookedDecoder, activation_of


class HookedDETR(HookedDecoder):
    """mmdet's DETR. Its head has a softmax with a background column: plans need ``activation='softmax'``.

    The number of keys follows the size of the images: give `r` as a share, and a threshold `t`.
    """

    LOOKS_FOR = 'a `decoder` (DetrTransformerDecoder) and a `bbox_head` with `fc_cls`, as in DETR of mmdet'
    STAGES = {'backbone': 'backbone', 'neck': 'neck', 'encoder': 'encoder'}
    DECODER: ClassVar[str] = 'DetrTransformerDecoder'

    @classmethod
    def fits(cls, module: nn.Module) -> bool:
        """By the name of the decoder's class: its subclasses in mmdet have other layers."""
        decoder, head = (getattr(module, name, None) for name in ('decoder', 'bbox_head'))
        return type(decoder).__name__ == cls.DECODER and hasattr(head, 'fc_cls')

    @staticmethod
    def decoder_of(owner: nn.Module) -> nn.Module:
        """The detector's decoder."""
        return owner.decoder

    def stand_in(self, layer: nn.Module) -> FusedStandIn:
        """Inside of mmcv's wrapper, which adds the positions."""
        return FusedMultiheadAttention(layer.cross_attn.attn)

    def normed(self, output: Tensor) -> Tensor:
        """By the norm that the decoder's layers share."""
        return self.decoder.post_norm(output)

    def logits(self, layer: int, query: Tensor) -> Tensor:
        """By the one classification layer of the head."""
        return self.owner.bbox_head.fc_cls(query)

    @property
    def activation(self) -> str:
        """That of the head's loss."""
        return activation_of(self.owner.bbox_head)


class HookedConditionalDETR(HookedDETR):
    """mmdet's Conditional DETR: no values of their own, and heads that join a content and a position part."""

    LOOKS_FOR = 'the same with a ConditionalDetrTransformerDecoder, as in ConditionalDETR of mmdet'
    DECODER = 'ConditionalDetrTransformerDecoder'
    mask_argument = 'cross_attn_masks'

    def stand_in(self, layer: nn.Module) -> FusedStandIn:
        """The attention behind the projections, which are mmdet's own."""
        return FusedConditionalAttention(layer.cross_attn)
