"""Rulebooks of sparse convolutions: the pairs of input and output rows of every kernel offset."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

Pairs = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Rulebook:
    """The pairs of rows of one convolution, grouped by kernel offset; within one offset no row appears twice.

    Attributes:
        pairs: Input rows [P_k] and output rows [P_k] for each of the K kernel offsets, the last axis fastest.
        num_in: Number of input rows.
        num_out: Number of output rows.
        identity: Index of the offset that maps every row to itself, whose pairs need no gathering, or None.
    """

    pairs: tuple[Pairs, ...]
    num_in: int
    num_out: int
    identity: int | None = None

    def transposed(self) -> Rulebook:
        """The rulebook with input and output exchanged: that of the gradient and of the inverse convolution."""
        pairs = tuple((out_rows, in_rows) for in_rows, out_rows in self.pairs)
        return replace(self, pairs=pairs, num_in=self.num_out, num_out=self.num_in)


def submanifold_rulebook(
    coords: Tensor, shape: Sequence[int], batch_size: int, kernel: Sequence[int], dilation: Sequence[int]
) -> Rulebook:
    """The rulebook of a submanifold convolution, whose output sites are the input sites in the same order.

    Args:
        coords: Active sites [N, 1 + D], integer columns (batch, one per axis), in any order, without repetitions.
        shape: Number of cells of the grid along each of the D axes.
        batch_size: Number of samples, including samples without sites.
        kernel: Kernel size of each axis, odd.
        dilation: Distance between neighbouring kernel cells of each axis.

    Raises:
        ValueError: If a kernel size is even, or a site is outside the grid or given twice.
    """
    if not all(size % 2 for size in kernel):
        raise ValueError(f'the kernel sizes of a submanifold convolution must be odd, got {tuple(kernel)}')
    # Each row of cells is followed by an empty margin, so a step out of the grid ends on a cell without a site and not
    # on a cell of the next row.
    margins = [size // 2 * step for size, step in zip(kernel, dilation)]
    keys = _keys(coords, shape, batch_size, margins)
    ordered, order = keys.sort()
    if bool((ordered[1:] == ordered[:-1]).any()):
        raise ValueError('a site of the sparse tensor is given twice; every (batch, ...) row of coords must be unique')
    steps = _kernel_steps(shape, margins, kernel, dilation)
    half = len(steps) // 2
    before = [_neighbours(ordered, order, step) for step in steps[:half]]
    rows = torch.arange(len(keys), device=keys.device)
    after = [(out_rows, in_rows) for in_rows, out_rows in reversed(before)]
    return Rulebook((*before, (rows, rows), *after), len(keys), len(keys), identity=half)


def strided_rulebook(
    coords: Tensor,
    shape: Sequence[int],
    batch_size: int,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> tuple[Rulebook, Tensor, list[int]]:
    """The rulebook of a regular sparse convolution: an output cell is active if its window holds an active site.

    Args:
        coords: Active sites [N, 1 + D], as in :func:`submanifold_rulebook`.
        shape: Number of cells of the input grid along each axis.
        batch_size: Number of samples.
        kernel: Kernel size of each axis.
        stride: Stride of each axis.
        padding: Number of cells added on both sides of each axis.
        dilation: Distance between neighbouring kernel cells of each axis.

    Returns:
        The rulebook, the output sites [M, 1 + D] in lexicographic order and in the dtype of `coords`, and the shape of
        the output grid, (size + 2 padding - dilation (kernel - 1) - 1) // stride + 1.

    Raises:
        ValueError: If the output grid has no cells, or a site is outside the grid.
    """
    axes = list(zip(shape, kernel, stride, padding, dilation))
    out_shape = [(size + 2 * pad - step * (k - 1) - 1) // hop + 1 for size, k, hop, pad, step in axes]
    if min(out_shape) < 1:
        raise ValueError(f'kernel {tuple(kernel)} is larger than the grid {tuple(shape)}: output {tuple(out_shape)}')
    _check_inside(coords, shape, batch_size)
    keys = coords[:, 0].long()[None]
    active = torch.ones_like(keys, dtype=torch.bool)
    for axis, (_, k, hop, pad, step) in enumerate(axes):
        moved = coords[:, axis + 1].long() + pad - step * torch.arange(k, device=coords.device)[:, None]
        cell = moved.div(hop, rounding_mode='floor')
        inside = (moved >= 0) & (cell * hop == moved) & (cell < out_shape[axis])
        keys = (keys[:, None] * out_shape[axis] + cell).flatten(0, 1)
        active = (active[:, None] & inside).flatten(0, 1)
    offsets, in_rows = active.nonzero(as_tuple=True)
    sites, out_rows = torch.unique(keys[offsets, in_rows], return_inverse=True)
    counts = torch.bincount(offsets, minlength=len(active)).tolist()
    rulebook = Rulebook(tuple(zip(in_rows.split(counts), out_rows.split(counts))), len(coords), len(sites))
    return rulebook, _coords(sites, out_shape).to(coords.dtype), out_shape


def _check_inside(coords: Tensor, shape: Sequence[int], batch_size: int) -> None:
    limits = torch.tensor([batch_size, *shape], device=coords.device)
    if bool(((coords < 0) | (coords >= limits)).any()):
        low, high = coords.amin(0).tolist(), coords.amax(0).tolist()
        raise ValueError(f'sites from {low} to {high} are not all inside {batch_size} grids of {tuple(shape)} cells')


def _keys(coords: Tensor, shape: Sequence[int], batch_size: int, margins: Sequence[int]) -> Tensor:
    """One number per site, in lexicographic order of the sites."""
    _check_inside(coords, shape, batch_size)
    columns = coords.long().unbind(1)
    keys = columns[0]
    for column, size, margin in zip(columns[1:], shape, margins):
        keys = keys * (size + margin) + column
    return keys


def _coords(keys: Tensor, shape: Sequence[int]) -> Tensor:
    columns = []
    for size in reversed(shape):
        columns.append(keys % size)
        keys = keys // size
    return torch.stack([keys, *reversed(columns)], 1)


def _kernel_steps(
    shape: Sequence[int], margins: Sequence[int], kernel: Sequence[int], dilation: Sequence[int]
) -> list[int]:
    """The difference of keys that belongs to each kernel offset, the last axis fastest."""
    steps = [0]
    for size, margin, k, step in zip(shape, margins, kernel, dilation):
        steps = [before * (size + margin) + (cell - k // 2) * step for before in steps for cell in range(k)]
    return steps


def _neighbours(ordered: Tensor, order: Tensor, step: int) -> Pairs:
    """Pairs of rows whose keys differ by `step`: (row of key + step, row of key)."""
    wanted = ordered + step
    places = torch.searchsorted(ordered, wanted).clamp_(max=max(len(ordered) - 1, 0))
    found = (ordered[places] == wanted).nonzero()[:, 0]
    return order[places[found]], order[found]
