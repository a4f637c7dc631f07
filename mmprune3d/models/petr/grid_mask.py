"""GridMask augmentation (Chen et al., 2020), as the PETR family uses it."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class PETR3DGridMask(nn.Module):
    """Sets a regular grid of rectangles to zero in training; all images of one call get the same grid.

    Args:
        prob: Probability that a call applies the mask.
        ratio: Width of the stripes that are kept, as a fraction of their distance.
    """

    def __init__(self, prob: float = 0.7, ratio: float = 0.5) -> None:
        super().__init__()
        self.prob = prob
        self.ratio = ratio

    def forward(self, images: Tensor) -> Tensor:
        """Masks images [N, 3, H, W] of one batch; the input is not modified."""
        if not self.training or torch.rand(()) >= self.prob:
            return images
        height, width = images.shape[-2:]
        period = int(torch.randint(2, max(height, 3), ()))
        stripe = min(max(int(period * self.ratio + 0.5), 1), period - 1)
        rows, columns = (self._stripes(size, period, stripe).to(images.device) for size in (height, width))
        return images * (rows[:, None] | columns)

    @staticmethod
    def _stripes(size: int, period: int, stripe: int) -> Tensor:
        offset = int(torch.randint(period, ()))
        return (torch.arange(size) + offset) % period < stripe
