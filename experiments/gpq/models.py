"""The models of GPQ's Table 3 without their backbones: decoders and a head with random weights, plain and lean."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import NamedTuple

import torch
from mmdet3d.registry import MODELS
from mmengine.registry import init_default_scope
from torch import Tensor, nn

import mmprune3d.models  # noqa: F401
from mmprune3d.export.onnx import HeadShapes, PortableHead
from mmprune3d.layers.attention import Keys
from mmprune3d.models.petr.decoder import PETR3DDecoder
from mmprune3d.models.petr.head import cls_branch, reg_branch

from .lean import LeanDecoder, with_memory

STRIDE = 16
"""Pixels per cell of the feature maps."""


@dataclass(frozen=True)
class Row:
    """One detector of the paper's Table 3 without its backbone.

    Attributes:
        cells: (H, W) of the feature map of one camera.
        cameras: Number of images.
        memory: Number of tokens of earlier frames that self-attention attends to besides the queries.
        whole_head: Whether the projection of the features and the position embeddings are part of it.
        width: C, channels.
        heads: Number of attention heads.
        layers: Number of decoder layers L.
        feedforward: Hidden channels of the feed-forward networks.
        classes: Number of classes.
        depths: Depths per ray (whole heads).
    """

    cells: tuple[int, int]
    cameras: int = 6
    memory: int = 0
    whole_head: bool = False
    width: int = 256
    heads: int = 8
    layers: int = 6
    feedforward: int = 2048
    classes: int = 10
    depths: int = 64

    @property
    def keys(self) -> int:
        """N_k, keys of the cross-attention."""
        return self.cameras * self.cells[0] * self.cells[1]


class Pair(NamedTuple):
    """A plain and a lean module with the same weights, in evaluation mode.

    Attributes:
        plain: The module as it is; returns ``cls_logits`` and ``box_codes``.
        lean: The same with a ``LeanDecoder``.
        inputs: Random arguments of both, by name.
    """

    plain: nn.Module
    lean: nn.Module
    inputs: dict[str, Tensor]


def make_pair(row: Row, queries: int, seed: int = 0) -> Pair:
    """The modules of a row with N_q = `queries`; the weights of decoders do not depend on N_q."""
    torch.manual_seed(seed)
    if row.whole_head:
        return _head_pair(row, queries)
    plain = QueryDecoder(row).eval()
    lean = deepcopy(plain)
    lean.decoder = LeanDecoder(lean.decoder)
    counts = {'query_pos': queries, 'content': row.keys, 'pos': row.keys}
    if row.memory:
        counts |= {'memory': row.memory, 'memory_pos': row.memory}
    return Pair(plain, lean, {name: torch.randn(1, count, row.width) for name, count in counts.items()})


class QueryDecoder(nn.Module):
    """A decoder and the heads of its last layer.

    Args:
        row: Sizes of the decoder.
    """

    def __init__(self, row: Row) -> None:
        super().__init__()
        self.decoder: nn.Module = PETR3DDecoder(row.layers, row.width, row.heads, row.feedforward)
        self.cls_branch = cls_branch(row.width, 2, row.classes)
        self.reg_branch = reg_branch(row.width, 2, 10)

    def forward(
        self,
        query_pos: Tensor,
        content: Tensor,
        pos: Tensor,
        memory: Tensor | None = None,
        memory_pos: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Class logits [B, N_q, classes] and raw box codes [B, N_q, 10].

        Args:
            query_pos: [B, N_q, C], positional encoding of the queries; their content is zero.
            content: [B, N_k, C], content of the keys.
            pos: [B, N_k, C], positional encoding of the keys.
            memory: [B, M, C], content of the memory, or None.
            memory_pos: [B, M, C], its positional encoding, or None.
        """
        keys, query = Keys(content + pos, content), torch.zeros_like(query_pos)
        earlier = None if memory is None else Keys(memory + memory_pos, memory)
        if isinstance(self.decoder, LeanDecoder):
            query = self.decoder(query, keys, query_pos, memory=earlier).queries[-1]
        else:
            query = _decode(self.decoder, query, keys, query_pos, earlier)
        return {'cls_logits': self.cls_branch(query), 'box_codes': self.reg_branch(query)}


def _decode(decoder: PETR3DDecoder, query: Tensor, keys: Keys, query_pos: Tensor, memory: Keys | None) -> Tensor:
    """``PETR3DDecoder`` with a memory, as in StreamPETR; without one, the same as its own ``forward``."""
    for layer in decoder.layers:
        self_attention, cross_attention = layer.attentions
        own = with_memory(Keys(query + query_pos, query), memory)
        query = layer.norms[0](self_attention(query, own, query_pos)[0])
        query = layer.norms[1](cross_attention(query, keys, query_pos)[0])
        query = layer.norms[2](layer.ffns[0](query))
    return torch.nan_to_num(decoder.post_norm(query))


def _head_pair(row: Row, queries: int) -> Pair:
    size = tuple(STRIDE * cells for cells in row.cells)
    shapes = HeadShapes(1, row.cameras, row.width, row.cells, size, size)
    config = {
        'type': 'PETR3DHead',
        'num_classes': row.classes,
        'in_channels': row.width,
        'num_query': queries,
        'depth_num': row.depths,
        'transformer': {
            'type': 'PETR3DTransformer',
            'num_layers': row.layers,
            'embed_dims': row.width,
            'num_heads': row.heads,
            'feedforward_channels': row.feedforward,
        },
        'bbox_coder': {
            'type': 'PETR3DBoxCoder',
            'pc_range': [-51.2, -51.2, -5.0, 51.2, 51.2, 3.0],
            'num_classes': row.classes,
        },
    }
    init_default_scope('mmdet3d')
    head = MODELS.build(config)
    nn.init.uniform_(head.reference_points.weight)
    plain = PortableHead(head, shapes).eval()
    return Pair(plain, LeanHead(plain).eval(), dict(zip(('img_feats', 'img2lidar'), shapes.example())))


class LeanHead(nn.Module):
    """A whole head with a ``LeanDecoder``.

    Args:
        portable: The head that it is equivalent to; without key pruning, and images fill the canvas.
    """

    def __init__(self, portable: PortableHead) -> None:
        super().__init__()
        self.canvas = portable.canvas
        self.head = deepcopy(portable.head)
        self.head.transformer.decoder = LeanDecoder(self.head.transformer.decoder)

    def forward(self, img_feats: Tensor, img2lidar: Tensor) -> dict[str, Tensor]:
        """Class logits and raw box codes, see ``PortableHead.forward``."""
        outputs = self.head.forward_tensors(img_feats, img2lidar, None, self.canvas, all_layers=False)
        return {'cls_logits': outputs['all_cls_scores'][-1], 'box_codes': outputs['all_bbox_preds'][-1]}
