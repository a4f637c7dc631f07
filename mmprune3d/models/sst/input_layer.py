"""What SST's blocks need to know of the tokens: windows and position embeddings, both functions of the coordinates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from mmdet3d.registry import MODELS
from torch import Tensor, nn

from mmprune3d.ops.windows import position_embedding, window_of


@dataclass(frozen=True)
class WindowedTokens:
    """Tokens of a batch, with what does not change while they pass through the blocks.

    Attributes:
        feats: [N, C].
        coords: [N, 4] integers: sample, z, y, x.
        batch_size: Samples, also ones without tokens.
        window_ids: [N] int64 for windows that are not shifted, and for shifted ones.
        positions: Position embeddings [N, width], likewise.
    """

    feats: Tensor
    coords: Tensor
    batch_size: int
    window_ids: tuple[Tensor, Tensor]
    positions: tuple[Tensor, Tensor]

    def select(self, rows: Tensor) -> WindowedTokens:
        """The tokens `rows` [K] int64 alone."""
        return replace(
            self,
            feats=self.feats[rows],
            coords=self.coords[rows],
            window_ids=tuple(ids[rows] for ids in self.window_ids),
            positions=tuple(position[rows] for position in self.positions),
        )


@MODELS.register_module()
class SSTInputLayer(nn.Module):
    """Regional grouping of SST (``SSTInputLayerV2``); it has no parameters.

    Args:
        window_shape: Cells of a window along x, y, z.
        sparse_shape: Cells of the grid along x, y, z.
        drop_info: Limits for tokens per window in training, SST's table: level -> ``max_tokens`` and ``drop_range``
            (occupancies from the first up to, without, the second). May be SST's pair (training table, test table);
            with one table the same is used at test. None: nothing is ever dropped, which is also what SST's own test
            table does. Which tokens go is random, by torch's generator.
        shuffle_voxels: Only in SST's configs; here tokens are shuffled where one is dropped, and nowhere else.
        pos_temperature: Of the position embedding.
        normalize_pos: Of the position embedding.
        pos_dims: Width of the position embedding; None: that of the tokens.

    Raises:
        ValueError: If shapes are not three numbers, or a table has other entries.
    """

    def __init__(
        self,
        window_shape: Sequence[int],
        sparse_shape: Sequence[int],
        drop_info: Mapping | Sequence[Mapping] | None = None,
        shuffle_voxels: bool = True,
        pos_temperature: float = 10000.0,
        normalize_pos: bool = False,
        pos_dims: int | None = None,
    ) -> None:
        super().__init__()
        if len(window_shape) != 3 or len(sparse_shape) != 3:
            raise ValueError(f'window_shape and sparse_shape are (x, y, z), got {window_shape} and {sparse_shape}')
        self.window_shape, self.sparse_shape = tuple(window_shape), tuple(sparse_shape)
        tables = drop_info if isinstance(drop_info, (list, tuple)) else (drop_info, drop_info)
        self.drop_tables = tuple(None if table is None else _as_ranges(table) for table in tables)
        self.pos_temperature, self.normalize_pos, self.pos_dims = pos_temperature, normalize_pos, pos_dims

    def forward(self, feats: Tensor, coords: Tensor, batch_size: int) -> WindowedTokens:
        """Tokens with their windows.

        Args:
            feats: [N, C].
            coords: [N, 4] integers: sample, z, y, x.
            batch_size: Samples in the batch.

        Returns:
            The tokens; all of them unless the mode's table drops some.
        """
        coords = coords.long()
        windows = [window_of(coords, self.sparse_shape, self.window_shape, shifted) for shifted in (False, True)]
        positions = tuple(
            position_embedding(
                places,
                self.window_shape,
                self.pos_dims or feats.shape[1],
                self.pos_temperature,
                self.normalize_pos,
                feats.dtype if feats.dtype in (torch.float32, torch.float64) else torch.float32,
            )
            for _, places in windows
        )
        tokens = WindowedTokens(feats, coords, batch_size, tuple(ids for ids, _ in windows), positions)
        table = self.drop_tables[0 if self.training else 1]
        return tokens if table is None else self._drop(tokens, table)

    @staticmethod
    def _drop(tokens: WindowedTokens, table: Sequence[tuple[int, int, int]]) -> WindowedTokens:
        """Drops by the windows that are not shifted, then, of what is left, by the shifted ones."""
        order = torch.randperm(len(tokens.feats), device=tokens.feats.device)
        rows = order
        for ids in tokens.window_ids:
            rows = rows[_within_limit(ids[rows], table)]
        return tokens.select(rows.sort().values)


def _within_limit(window_ids: Tensor, table: Sequence[tuple[int, int, int]]) -> Tensor:
    """Which tokens [N] bool stay: those whose rank in their window, in the given order, is below the limit."""
    ordered, order = window_ids.sort(stable=True)
    _, window, counts = ordered.unique_consecutive(return_inverse=True, return_counts=True)
    rank = torch.arange(len(order), device=order.device) - (counts.cumsum(0) - counts)[window]
    limits = counts.clone()
    for most, low, high in table:
        limits[(counts >= low) & (counts < high)] = most
    keep = torch.empty_like(order, dtype=torch.bool)
    keep[order] = rank < limits[window]
    return keep


def _as_ranges(table: Mapping) -> list[tuple[int, int, int]]:
    ranges = []
    for level, entry in table.items():
        if set(entry) != {'max_tokens', 'drop_range'}:
            raise ValueError(f'level {level} of drop_info has {sorted(entry)}; valid are max_tokens and drop_range')
        ranges.append((entry['max_tokens'], *entry['drop_range']))
    return ranges
