"""Square windows of a sparse grid: the window of each token, its position there, and a layout window by window.

Everything is a function of the coordinates alone, so removing tokens never changes the windows of the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

CPU_SIZES = (1, 2, 4, 8, *range(16, 257, 16))
"""Tokens per window that a bucket can hold, on a CPU. torch's fused CPU kernel takes two to three times as long per
token at sizes that are not a multiple of 16, which costs more than the padding."""

GPU_SIZES = (8, 16, 32, 64, 128, 256)
"""Tokens per window that a bucket can hold, on a GPU, where a kernel launch costs more than the padding."""


def window_of(
    coords: Tensor, sparse_shape: Sequence[int], window_shape: Sequence[int], shifted: bool
) -> tuple[Tensor, Tensor]:
    """The window of each cell (SST, "regional grouping").

    Args:
        coords: Cells [N, 4], integers: sample, z, y, x.
        sparse_shape: Number of cells of the grid along x, y, z.
        window_shape: Number of cells of a window along x, y, z.
        shifted: Move the windows by half their size (rounded down). If one window covers all of z, nothing is moved
            along z.

    Returns:
        Window numbers [N] int64, different in different samples, and positions in the window [N, 3] int64 (z, y, x).
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
    """Sine and cosine embedding of a cell's offset from the centre of its window.

    The first half of the channels encodes x, the second half y (thirds, with z, for windows with several layers). Entry
    k of a part of length L is the sine (k even) or cosine (k odd) of offset / temperature^(2 floor(k/2) / L).

    Args:
        places: Positions in the window [N, 3], integers (z, y, x).
        window_shape: Number of cells of a window along x, y, z.
        channels: Width of the embedding; channels left over by the division into parts are 0.
        temperature: Base of the frequencies in the formula above.
        normalize: Multiply the offsets by 2 pi / window size first (with SST's value of pi, 3.1415).
        dtype: Data type of the result.

    Returns:
        Embeddings [N, channels].
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
        windows: Number of windows, W.
        size: Number of places per window, T.
        start: Index of the bucket's first place among the places of all buckets.
        padding: True at places without a token, [W, T] bool, or None if all places are taken.
    """

    windows: int
    size: int
    start: int
    padding: Tensor | None

    @property
    def places(self) -> slice:
        """The slice of the bucket's places among the places of all buckets."""
        return slice(self.start, self.start + self.windows * self.size)


@dataclass(frozen=True)
class WindowPlan:
    """Layout of N tokens in P places, window by window.

    Attributes:
        rows: Token at each place [P] int64; a padding place repeats the first token of its window.
        places: Place of each token [N] int64.
        buckets: Groups of windows of the same size, in the order of their places.
    """

    rows: Tensor
    places: Tensor
    buckets: tuple[Bucket, ...]


@torch.no_grad()
def plan_windows(window_ids: Tensor, sizes: Sequence[int] | None = None) -> WindowPlan:
    """Lays out tokens by window. The device is synchronized once, whatever the number of buckets.

    Args:
        window_ids: Window of each token [N] int64, from `window_of`.
        sizes: Numbers of tokens per window that a bucket can hold, ascending. Larger windows share one more bucket, of
            the size of the largest. None: `CPU_SIZES` or `GPU_SIZES`, by the device.

    Returns:
        The layout; tokens of one window keep their given order.
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
    """Copies tokens to places. Backward reads each token's own place instead of summing over padding, which adds 0."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, tokens: Tensor, rows: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(rows, places)
        return tokens.index_select(0, rows)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor, None, None]:
        rows, places = ctx.saved_tensors
        return _FromPlaces.apply(grad, rows, places), None, None


class _FromPlaces(torch.autograd.Function):
    """Copies places back to tokens; padding is left out and gets no gradient."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, values: Tensor, rows: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(rows, places)
        return values.index_select(0, places)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor, None, None]:
        rows, places = ctx.saved_tensors
        return grad.new_zeros(len(rows), *grad.shape[1:]).index_copy(0, places, grad), None, None


def to_places(tokens: Tensor, plan: WindowPlan) -> Tensor:
    """Copies features [N, ...] of tokens to their places [P, ...]; padding repeats a token and must be masked later."""
    return _ToPlaces.apply(tokens, plan.rows, plan.places)


def from_places(values: Tensor, plan: WindowPlan) -> Tensor:
    """Copies features [P, ...] of places back to their tokens [N, ...]."""
    return _FromPlaces.apply(values, plan.rows, plan.places)
