"""The attention scheme of SST's published implementation, written plainly: a baseline of speed-ups.

Windows go into four buckets by their number of tokens (30, 60, 100, and the area of a window). Features, position
embeddings and key padding masks of a bucket are padded to its size, and ``nn.MultiheadAttention`` with its projections
runs on the padded windows in every layer. Two things are better here than in the published code, so that the
baseline has every advantage: no attention map is returned (which lets PyTorch use fused attention), and nothing asks
the GPU for numbers inside a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mmprune3d.models.sst.backbone import SSTBackbone
from mmprune3d.models.sst.input_layer import WindowedTokens

LEVELS = (30, 60, 100)
"""Sizes of the buckets below the last one, which is the area of a window: 144 for 12x12, 196 for 14x14."""


@dataclass(frozen=True)
class Bucket:
    """Windows that are padded to the same number of tokens.

    Attributes:
        rows: [T] int64, rows of the tokens in these windows.
        slots: [T] int64, places of the tokens in the padded windows, window by window.
        padding: [W, size] bool, True where padded.
        positions: [W, size, C], position embeddings, zero where padded.
    """

    rows: Tensor
    slots: Tensor
    padding: Tensor
    positions: Tensor

    @classmethod
    def of(cls, rows: Tensor, slots: Tensor, padding: Tensor, positions: Tensor) -> Bucket:
        """Makes a bucket from the position embeddings [N, C] of all tokens."""
        return cls(rows, slots, padding, _padded(positions, rows, slots, padding))

    def pad(self, tokens: Tensor) -> Tensor:
        """Padded windows [W, size, C] from tokens [N, C]; zero where padded."""
        return _padded(tokens, self.rows, self.slots, self.padding)


def _padded(tokens: Tensor, rows: Tensor, slots: Tensor, padding: Tensor) -> Tensor:
    padded = tokens.new_zeros(padding.numel(), tokens.shape[1])
    padded[slots] = tokens[rows]
    return padded.view(*padding.shape, -1)


def make_buckets(window_ids: Tensor, positions: Tensor, area: int, levels: Sequence[int] = LEVELS) -> list[Bucket]:
    """Groups tokens by window and windows by number of tokens; a window with as many as a level goes one level up.

    Args:
        window_ids: [N] int64, equal for tokens of one window.
        positions: [N, C] position embeddings.
        area: Number of cells of a window, the size of the last bucket.
        levels: Sizes of the other buckets, ascending; those not below `area` are left out.

    Returns:
        The buckets that hold windows.

    Raises:
        ValueError: If a window holds more tokens than it has cells.
    """
    sizes = [level for level in levels if level < area] + [area]
    _, window, counts = window_ids.unique(return_inverse=True, return_counts=True)
    if counts.numel() and int(counts.max()) > area:
        raise ValueError(f'a window holds {int(counts.max())} tokens, but has {area} cells')
    order = window.argsort(stable=True)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=order.device) - (counts.cumsum(0) - counts)[window[order]]
    level = torch.bucketize(counts, counts.new_tensor(sizes[:-1]), right=True)
    buckets = []
    for number, size in enumerate(sizes):
        members = level == number
        if not members.any():
            continue
        rows = members[window].nonzero()[:, 0]
        slots = (members.cumsum(0) - 1)[window[rows]] * size + rank[rows]
        padding = torch.ones(int(members.sum()) * size, dtype=torch.bool, device=slots.device)
        padding[slots] = False
        buckets.append(Bucket.of(rows, slots, padding.view(-1, size), positions))
    return buckets


class PaddedAttention(nn.Module):
    """Attention inside windows on padded windows: queries and keys are features plus position, values are features.

    Args:
        width: C.
        heads: Number of heads.
        need_weights: Whether attention maps are computed, as the published code does.
    """

    def __init__(self, width: int, heads: int, need_weights: bool = False) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.need_weights = need_weights

    def forward(self, tokens: Tensor, buckets: Sequence[Bucket]) -> Tensor:
        """Features [N, C] after the attention or layer, from features [N, C]."""
        result = torch.empty_like(tokens)
        for bucket in buckets:
            value = bucket.pad(tokens)
            query = value + bucket.positions
            found, _ = self.self_attn(query, query, value, bucket.padding, need_weights=self.need_weights)
            result[bucket.rows] = found.reshape(-1, tokens.shape[1])[bucket.slots]
        return result


class PaddedLayer(nn.Module):
    """An encoder layer: attention inside windows, then a feed-forward network, each with a residual and a norm.

    Args:
        width: C.
        heads: Number of heads.
        hidden: Hidden channels of the feed-forward network.
        activation: Activation of the network.
        post_norm: Whether the norms follow the residual sums (the published default) or precede attention and network.
        need_weights: See `PaddedAttention`.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int,
        activation: Callable[[Tensor], Tensor],
        post_norm: bool,
        need_weights: bool,
    ) -> None:
        super().__init__()
        self.win_attn = PaddedAttention(width, heads, need_weights)
        self.linear1, self.linear2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.activation, self.post_norm = activation, post_norm

    def forward(self, tokens: Tensor, buckets: Sequence[Bucket]) -> Tensor:
        """Features [N, C] after the attention or layer, from features [N, C]."""
        if self.post_norm:
            tokens = self.norm1(tokens + self.win_attn(tokens, buckets))
            return self.norm2(tokens + self._network(tokens))
        tokens = tokens + self.win_attn(self.norm1(tokens), buckets)
        return tokens + self._network(self.norm2(tokens))

    def _network(self, tokens: Tensor) -> Tensor:
        return self.linear2(self.activation(self.linear1(tokens)))


class PaddedBlock(nn.Module):
    """Two layers, the second one with windows shifted by half their size; arguments as those of `PaddedLayer`."""

    def __init__(self, *args: object) -> None:
        super().__init__()
        self.encoder_list = nn.ModuleList(PaddedLayer(*args) for _ in range(2))


class OfficialBlocks(nn.Module):
    """All attention blocks of a backbone in the published scheme, with the backbone's weights and state-dict keys.

    Args:
        backbone: Backbone with dot-product attention; it is not changed.
        area: Number of cells of a window.
        need_weights: See `PaddedAttention`.

    Raises:
        ValueError: If ``nn.MultiheadAttention`` cannot compute the backbone's attention.
    """

    def __init__(self, backbone: SSTBackbone, area: int, need_weights: bool = False) -> None:
        super().__init__()
        self.area = area
        first = backbone.block_list[0].encoder_list[0]
        attention, hidden = first.win_attn.self_attn, first.linear1
        if attention.tau is not None:
            raise ValueError('nn.MultiheadAttention has no cosine attention: give a backbone with cosine=False')
        if attention.inner_dims != hidden.in_features:
            raise ValueError(
                f'{attention.num_heads} heads of {attention.head_dims} are not as wide as the tokens '
                f'({hidden.in_features}): nn.MultiheadAttention has no such heads'
            )
        sizes = (hidden.in_features, attention.num_heads, hidden.out_features)
        options = (first.activation, first.post_norm, need_weights)
        self.block_list = nn.ModuleList(PaddedBlock(*sizes, *options) for _ in backbone.block_list)
        self.load_state_dict(
            {key: value for key, value in backbone.state_dict().items() if key.startswith('block_list.')}
        )

    def forward(self, feats: Tensor, window_ids: Sequence[Tensor], positions: Sequence[Tensor]) -> Tensor:
        """Features [N, C] after the last block; windows are grouped and embeddings padded once per shift.

        Args:
            feats: [N, C], features of the tokens.
            window_ids: [N] int64, for unshifted and for shifted windows.
            positions: [N, C], position embeddings for both.
        """
        buckets = [make_buckets(ids, embedding, self.area) for ids, embedding in zip(window_ids, positions)]
        for block in self.block_list:
            for layer, grouped in zip(block.encoder_list, buckets):
                feats = layer(feats, grouped)
        return feats


class OfficialBackbone(nn.Module):
    """A backbone whose attention is that of `OfficialBlocks`; map and convolutions are the backbone's own.

    Args:
        backbone: The backbone whose weights and other parts are used.
        area: Number of cells of a window.
    """

    def __init__(self, backbone: SSTBackbone, area: int) -> None:
        super().__init__()
        self.backbone, self.blocks = backbone, OfficialBlocks(backbone, area)

    def forward(self, tokens: WindowedTokens) -> list[Tensor]:
        """A list with the map [B, C, ny, nx] of the tokens of a batch."""
        feats = self.blocks(self.backbone.embed(tokens), tokens.window_ids, tokens.positions)
        return [self.backbone.to_map(feats, tokens.coords, tokens.batch_size)]
