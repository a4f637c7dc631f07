"""The decoder that pruners are tested in."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mmprune3d.models.petr import PETR3DDecoder

from .small_decoder import CLASSES, HEADS, LAYERS, WIDTH


@pytest.fixture
def decoder() -> PETR3DDecoder:
    torch.manual_seed(3)
    return PETR3DDecoder(LAYERS, WIDTH, HEADS, feedforward_channels=48).eval()


@pytest.fixture
def branches() -> nn.ModuleList:
    torch.manual_seed(4)
    return nn.ModuleList(nn.Linear(WIDTH, CLASSES) for _ in range(LAYERS))
