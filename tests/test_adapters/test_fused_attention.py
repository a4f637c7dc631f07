"""Attention of others with a fused kernel, where a sample has no key to attend to."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mmprune3d.adapters.fused_attention import FusedMultiheadAttention
from mmprune3d.layers.attention import Keys

B, QUERIES, KEYS, WIDTH = 3, 4, 9, 16


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(shape[1]))


@pytest.mark.parametrize('training', [False, True])
def test_a_sample_without_keys_gives_zeros_where_torch_gives_nan(training: bool) -> None:
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(WIDTH, 4, batch_first=True).train(training)
    nn.init.normal_(attention.out_proj.bias)
    query, tokens, padding = random(B, QUERIES, WIDTH), random(B, KEYS, WIDTH), torch.zeros(B, KEYS, dtype=torch.bool)
    padding[0, 5:], padding[1] = True, True
    plain = attention(query, tokens, tokens, key_padding_mask=padding)[0]
    assert plain[1].isnan().all()
    fused = FusedMultiheadAttention(attention)
    fused.install()
    fused.armed = True
    found = attention(query, tokens, tokens, key_padding_mask=padding)[0]
    torch.testing.assert_close(found[[0, 2]], plain[[0, 2]])
    torch.testing.assert_close(found[1], attention.out_proj.bias.expand(QUERIES, -1))
    found.square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in attention.parameters())
    record = fused.take_record(Keys(tokens, tokens, padding))
    importance = record.importance(torch.ones(B, QUERIES), torch.arange(QUERIES).expand(B, -1))
    assert importance.isfinite().all() and (importance[1] < 0).all() and (importance[2] > 0).all()
