"""A small decoder's sizes, classification and random inputs, for the tests of all pruners; fixtures are in conftest."""

from __future__ import annotations

import torch
from torch import nn

from mmprune3d.layers.attention import Keys
from mmprune3d.layers.key_pruning import ScoreFunction
from tests.test_layers.slow_decoder import Inputs

LAYERS, WIDTH, HEADS, QUERIES, KEYS, CLASSES = 4, 32, 4, 10, 40, 5


def score_by(branches: nn.ModuleList) -> ScoreFunction:
    return lambda layer, query: branches[layer](query)


def inputs(batch: int, valid: tuple[int, ...] = ()) -> Inputs:
    """Random tokens; `valid` are the numbers of keys of each sample that are no padding, at random places."""
    generator = torch.Generator().manual_seed(batch)
    content, pos = (torch.randn(batch, KEYS, WIDTH, generator=generator) for _ in range(2))
    query, query_pos = (torch.randn(batch, QUERIES, WIDTH, generator=generator) for _ in range(2))
    mask = None
    if valid:
        places = torch.rand(batch, KEYS, generator=generator).argsort(1)
        mask = places >= torch.tensor(valid)[:batch, None]
    return query, Keys(content + pos, content, mask), query_pos
