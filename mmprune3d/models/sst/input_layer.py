"""The input layer of SST: windows and position embeddings of the tokens, both functions of their coordinates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from mmdet3d.registry import MODELS
from torch import Tensor, nn

from mmprune3d.ops.windows import position_embedding, window_of


@dataclass(frozen=True)
class WindowedTokens:
    """Tokens of a batch, with the values that do not change in the blocks.

    Attributes:
        feats: Features of the tokens [N, C].
        coords: Cells of the tokens [N, 4], integers: sample, z, y, x.
        batch_size: Number of samples, including samples without tokens.
        window_ids: Window of each token [N] int64, for the regular windows and for the shifted ones.
        positions: Position embeddings [N, width], for the regular windows and for the shifted ones.
    """

    feats: Tensor
    coords: Tensor
    batch_size: int
    window_ids: tuple[Tensor, Tensor]
    positions: tuple[Tensor, Tensor]

    def select(self, rows: Tensor) -> WindowedTokens:
        """Selects the tokens `rows` [K] int64."""
        return replace(
            self,
            feats=self.feats[rows],
            coords=self.coords[rows],
            window_ids=tuple(ids[rows] for ids in self.window_ids),
            positions=tuple(position[rows] for position in self.positions),
        )


@MODELS.register_module()
class SSTInputLayer(nn.Module):
    """Groups tokens into windows (regional grouping, SST's ``SSTInputLayerV2``); it has no parameters.

    Args:
        window_shape: Number of cells of a window along x, y, z.
        sparse_shape: Number of cells of the grid along x, y, z.
        drop_info: Limits of the number of tokens per window in training, as in SST: level -> ``max_tokens`` and
            ``drop_range`` (numbers of tokens for which the limit applies, from the first to below the second). May be
            SST's pair (training table, test table); a single table is also used at test time. None: nothing is dropped,
            as with SST's own test table. The dropped tokens are chosen with torch's random generator.
        shuffle_voxels: Accepted for SST's configs, without effect: tokens are shuffled only where some are dropped.
        pos_temperature: Temperature of the position embedding.
        normalize_pos: Whether to normalize positions by the size of the window.
        pos_dims: Width of the position embedding; None: the width of the tokens.

    Raises:
        ValueError: If a shape does not have three numbers, or a table has unknown entries.
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
        """Assigns the tokens of a batch to windows.

        Args:
            feats: Features of the tokens [N, C].
            coords: Cells of the tokens [N, 4], integers: sample, z, y, x.
            batch_size: Number of samples in the batch.

        Returns:
            The tokens with their windows; all of them, unless the table of the current mode drops some.
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
        """Drops tokens by the limits of the regular windows, then of the rest by those of the shifted windows."""
        order = torch.randperm(len(tokens.feats), device=tokens.feats.device)
        rows = order
        for ids in tokens.window_ids:
            rows = rows[_within_limit(ids[rows], table)]
        return tokens.select(rows.sort().values)


def _within_limit(window_ids: Tensor, table: Sequence[tuple[int, int, int]]) -> Tensor:
    """Marks the tokens [N] bool whose rank in their window, in the given order, is below the limit."""
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
