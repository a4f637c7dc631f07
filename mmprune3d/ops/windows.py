"""Tokens of a sparse grid in square windows: which window, where in it, and how to lay windows side by side.

Everything is a function of the coordinates alone, so that removing tokens never moves the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

CPU_SIZES = (1, 2, 4, 8, *range(16, 257, 16))
"""Tokens per window that a bucket holds. torch's fused CPU kernel takes two to three times as long per token at sizes
that are no multiple of 16, which is more than the padding costs."""

GPU_SIZES = (8, 16, 32, 64, 128, 256)
"""The same for GPUs, where a call costs more than padding."""


def window_of(
    coords: Tensor, sparse_shape: Sequence[int], window_shape: Sequence[int], shifted: bool
) -> tuple[Tensor, Tensor]:
    """The window of each cell (SST, "regional grouping").

    Args:
        coords: [N, 4] integers: sample, z, y, x.
        sparse_shape: Cells of the grid along x, y, z.
        window_shape: Cells of a window along x, y, z.
        shifted: Move the windows by half their size (rounded down). Along an axis with one z window nothing moves.

    Returns:
        Window numbers [N] int64, different in different samples, and places in the window [N, 3] int64 (z, y, x).
    """
    counts = [-(-size // window) + 1 for size, window in zip(sparse_shape, window_shape, strict=True)]
    offsets = [window // 2 if shifted else window for window in window_shape]
    if counts[2] == 2:  # one layer of windows
        offsets[2] = 0
    number, places = coords[:, 0].long(), []
    for axis in range(3):
        moved = coords[:, 3 - axis].long() + offsets[axis]
        window = window_shape[axis]
        number = number * counts[axis] + moved.div(window, rounding_mode='floor')
        places.append(moved % window)
    return number, torch.stack(places[::-1], dim=1)


def position_embedding(
    places: Tensor,
    window_shape: Sequence[int],
    channels: int,
    temperature: float = 10000.0,
    normalize: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Sines and cosines of a cell's offset from its window's centre.

    The first half of the channels speaks of x, the second of y (thirds, with z, for windows with several layers). Entry
    k of a part of length L is the sine (k even) or cosine (k odd) of offset / temperature^(2 floor(k/2) / L).

    Args:
        places: [N, 3] integers (z, y, x) in the window.
        window_shape: Cells of a window along x, y, z.
        channels: Width of the embedding; what does not divide evenly is left 0.
        temperature: As above.
        normalize: Scale offsets by 2 pi / window size (with SST's pi of 3.1415) before.
        dtype: Of the result.

    Returns:
        [N, channels].
    """
    axes = 2 if window_shape[2] == 1 else 3
    length = channels // (2 * axes) * 2
    frequency = torch.arange(length, dtype=dtype, device=places.device).div(2, rounding_mode='floor') * 2 / length
    embedding = torch.zeros(len(places), channels, dtype=dtype, device=places.device)
    for axis in range(axes):
        offset = places[:, 2 - axis].to(dtype) - window_shape[axis] / 2
        if normalize:
            offset = offset / window_shape[axis] * 2 * 3.1415
        angle = offset[:, None] / temperature**frequency
        part = embedding[:, axis * length : (axis + 1) * length]
        part[:, 0::2], part[:, 1::2] = angle[:, 0::2].sin(), angle[:, 1::2].cos()
    return embedding


@dataclass(frozen=True)
class Bucket:
    """Windows of similar occupancy, padded to the same number of tokens.

    Attributes:
        windows: How many windows, W.
        size: Places per window, T.
        start: The bucket's first place among the places of all buckets.
        padding: [W, T], True at places without a token, or None if all are taken.
    """

    windows: int
    size: int
    start: int
    padding: Tensor | None

    @property
    def places(self) -> slice:
        """The bucket's places among those of all buckets."""
        return slice(self.start, self.start + self.windows * self.size)


@dataclass(frozen=True)
class WindowPlan:
    """How N tokens are laid out in P places, window beside window.

    Attributes:
        rows: [P] int64, the token at each place; at padding that of the window's first token.
        places: [N] int64, the place of each token.
        buckets: Groups of windows of the same size, in the order of their places.
    """

    rows: Tensor
    places: Tensor
    buckets: tuple[Bucket, ...]


@torch.no_grad()
def plan_windows(window_ids: Tensor, sizes: Sequence[int] | None = None) -> WindowPlan:
    """Lays out tokens by window. Asks the device for numbers once, whatever the number of buckets.

    Args:
        window_ids: [N] int64, from `window_of`.
        sizes: Tokens per window that a bucket holds, ascending. Windows with more get a bucket of the largest window.
            None: `CPU_SIZES` or `GPU_SIZES`.

    Returns:
        A plan; tokens of a window are in their given order.
    """
    device = window_ids.device
    if sizes is None:
        sizes = CPU_SIZES if device.type == 'cpu' else GPU_SIZES
    if len(window_ids) == 0:
        return WindowPlan(window_ids, window_ids, ())
    ordered, order = window_ids.sort(stable=True)
    _, window, counts = ordered.unique_consecutive(return_inverse=True, return_counts=True)
    first = counts.cumsum(0) - counts
    level = torch.bucketize(counts, torch.tensor(sizes, device=device))
    levels = len(sizes) + 1
    windows_in = torch.bincount(level, minlength=levels)
    tokens_in = torch.bincount(level, counts.double(), minlength=levels).long()
    figures = torch.cat((windows_in, tokens_in, counts.amax()[None])).tolist()
    windows_in, tokens_in, largest = figures[:levels], figures[levels:-1], figures[-1]
    by_level = level.argsort(stable=True)
    buckets, rows, base, done, start = [], [], torch.empty_like(counts), 0, 0
    for windows, tokens, size in zip(windows_in, tokens_in, [*sizes, largest], strict=True):
        if windows == 0:
            continue
        members = by_level[done : done + windows]
        place = torch.arange(size, device=device)
        missing = place >= counts[members, None] if tokens < windows * size else None
        filled = place if missing is None else place.masked_fill(missing, 0)
        rows.append((first[members, None] + filled).flatten())
        base[members] = start + torch.arange(windows, device=device) * size
        buckets.append(Bucket(windows, size, start, missing))
        done, start = done + windows, start + windows * size
    places = torch.empty_like(order)
    places[order] = base[window] + torch.arange(len(order), device=device) - first[window]
    return WindowPlan(order[torch.cat(rows)], places, tuple(buckets))


class _ToPlaces(torch.autograd.Function):
    """Rows of tokens to places. Backward reads what each token got instead of summing over padding, whose part is 0."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, tokens: Tensor, rows: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(rows, places)
        return tokens.index_select(0, rows)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor, None, None]:
        rows, places = ctx.saved_tensors
        return _FromPlaces.apply(grad, rows, places), None, None


class _FromPlaces(torch.autograd.Function):
    """Rows of places to tokens; padding is left out, and gets no gradient."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, values: Tensor, rows: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(rows, places)
        return values.index_select(0, places)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor, None, None]:
        rows, places = ctx.saved_tensors
        return grad.new_zeros(len(rows), *grad.shape[1:]).index_copy(0, places, grad), None, None


def to_places(tokens: Tensor, plan: WindowPlan) -> Tensor:
    """Features [N, ...] of tokens at their places [P, ...]; padding repeats a token and must not matter afterwards."""
    return _ToPlaces.apply(tokens, plan.rows, plan.places)


def from_places(values: Tensor, plan: WindowPlan) -> Tensor:
    """Features [P, ...] of places back to tokens [N, ...]."""
    return _FromPlaces.apply(values, plan.rows, plan.places)
