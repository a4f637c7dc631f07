"""Sums camera features along their viewing rays into the cells of a bird's eye view, on any device.

The lifted features of BEVFusion are an outer product: depth probability times context vector, with one vector per
camera, depth bin and pixel. This product is never stored here: the sum of a cell is a weighted sum of context rows, so
each row is read in place with its depth probability as weight (the idea of BEVPoolV2, arXiv 2211.17111). The kernel is
that of ``torch.nn.functional.embedding_bag``, which exists for CPU and CUDA and adds in a fixed order.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def cell_index(points: Tensor, lower: Tensor, size: Tensor, shape: Sequence[int]) -> Tensor:
    """The cell of a grid that each point lies in.

    As in BEVFusion the coordinates are truncated toward zero, so points less than one cell below the lower limit are
    in the first cell.

    Args:
        points: Coordinates [..., 3]: x, y and z in metres.
        lower: Lower limits of the grid [3] in metres.
        size: Size of a cell [3] in metres.
        shape: Number of cells in x, y and z.

    Returns:
        Cell numbers [...] int64, (z * cells in x + x) * cells in y + y; -1 for points that are outside of the grid or
        not finite.
    """
    cells = (points - lower) / size
    # Compared before the conversion to integers, whose result for NaN and huge numbers depends on the device.
    inside = ((cells > -1) & (cells < cells.new_tensor(shape))).all(-1)
    x, y, z = cells.long().unbind(-1)
    return torch.where(inside, (z * shape[0] + x) * shape[1] + y, -1)


def bev_pool(depth: Tensor, context: Tensor, cells: Tensor, shape: Sequence[int]) -> Tensor:
    """Sums depth times context over all cameras, depth bins and pixels that see a cell.

    Differentiable once, for `depth` and `context`. The sum is in float32 or better whatever the inputs are.

    Args:
        depth: Weight of each depth bin [B, N, D, h, w] (probabilities in BEVFusion).
        context: Features of each pixel [B, N, C, h, w].
        cells: Cell of each point of the frustum [B, N, D, h, w] int64, from `cell_index`; points with -1 are left out.
        shape: Number of cells in x, y and z.

    Returns:
        Bird's-eye-view features [B, nz * C, nx, ny] in float32 (float64 for float64 inputs); feature c of layer z is
        channel z * C + c.

    Raises:
        ValueError: If the shapes of `depth`, `context` and `cells` do not match.
    """
    B, N, D, h, w = depth.shape
    if cells.shape != depth.shape or context.shape[:2] != (B, N) or context.shape[3:] != (h, w):
        raise ValueError(
            f'depth {[*depth.shape]} is [B, N, D, h, w], so context must be [B, N, C, h, w] but is '
            f'{[*context.shape]}, and cells must be {[B, N, D, h, w]} but is {[*cells.shape]}'
        )
    dtype = torch.promote_types(torch.promote_types(depth.dtype, context.dtype), torch.float32)
    nx, ny, nz = shape
    seen, rows, starts = _bags(cells, nx * ny * nz)
    pooled = F.embedding_bag(
        rows,
        context.to(dtype).permute(0, 1, 3, 4, 2).reshape(B * N * h * w, -1),
        starts,
        mode='sum',
        per_sample_weights=depth.to(dtype).flatten().index_select(0, seen),
        include_last_offset=True,
    )
    return pooled.view(B, nz, nx, ny, -1).permute(0, 1, 4, 2, 3).flatten(1, 2)


def _bags(cells: Tensor, per_sample: int) -> tuple[Tensor, Tensor, Tensor]:
    """Sorts points by cell: points [K] inside the grid, their rows [K] of context, start of each cell [cells + 1]."""
    B, _, D, h, w = cells.shape
    samples = torch.arange(B, device=cells.device).view(B, 1, 1, 1, 1)
    flat = torch.where(cells < 0, -1, cells + samples * per_sample).flatten()
    seen = (flat >= 0).nonzero().squeeze(1)
    ordered, order = flat[seen].sort(stable=True)
    seen = seen[order]
    rows = seen // (D * h * w) * (h * w) + seen % (h * w)
    starts = torch.searchsorted(ordered, torch.arange(B * per_sample + 1, device=cells.device))
    return seen, rows, starts
