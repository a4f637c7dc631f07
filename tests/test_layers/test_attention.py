from __future__ import annotations

import pytest
import torch

from mmprune3d.layers.attention import AttentionRecord, Keys, PositionalAttention

B, QUERIES, KEYS, WIDTH, HEADS = 2, 7, 11, 16, 4


@pytest.fixture
def attention() -> PositionalAttention:
    torch.manual_seed(0)
    module = PositionalAttention(WIDTH, HEADS, attn_drop=0.1, proj_drop=0.1).eval()
    torch.nn.init.normal_(module.attn.in_proj_bias)
    return module


def tokens(count: int, seed: int) -> torch.Tensor:
    return torch.randn(B, count, WIDTH, generator=torch.Generator().manual_seed(seed))


def padding() -> torch.Tensor:
    mask = torch.zeros(B, KEYS, dtype=torch.bool)
    mask[0, -3:] = mask[1, 2] = True
    return mask


@pytest.mark.parametrize('padded', [False, True])
@pytest.mark.parametrize('masked', [False, True])
def test_equals_torch_multihead_attention(attention: PositionalAttention, padded: bool, masked: bool) -> None:
    content = tokens(KEYS, 1)
    keys = Keys(content + tokens(KEYS, 2), content, padding() if padded else None)
    query, query_pos = tokens(QUERIES, 3), tokens(QUERIES, 4)
    mask = torch.rand(QUERIES, KEYS) < 0.3 if masked else None
    if masked:
        mask[:, 0] = False
    output, record = attention(query, keys, query_pos, mask)
    expected, full_map = attention.reference(query, keys, query_pos, mask)
    torch.testing.assert_close(output, expected)
    if not masked:
        everything = torch.arange(QUERIES).expand(B, -1)
        torch.testing.assert_close(record.rows(everything), full_map)


@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('how', ['padding', 'attention', 'both'])
def test_queries_without_any_key_get_zeros_on_both_paths(
    attention: PositionalAttention, how: str, training: bool
) -> None:
    attention.attn.dropout = attention.dropout.p = 0.0
    attention.train(training)
    content, padded = tokens(KEYS, 1), padding()
    forbidden = torch.zeros(B, QUERIES, KEYS, dtype=torch.bool)
    padded[1] = True
    forbidden[0, 2] = True
    keys = Keys(content + tokens(KEYS, 2), content, padded if how != 'attention' else None)
    keys = keys._replace(attention_mask=forbidden if how != 'padding' else None)
    query = tokens(QUERIES, 3)
    output, record = attention(query, keys)
    expected, full_map = attention.reference(query, keys)
    torch.testing.assert_close(output, expected)
    everything = torch.arange(QUERIES).expand(B, -1)
    torch.testing.assert_close(record.rows(everything), full_map)
    lost = [(0, 2)] * (how != 'padding') + [(1, i) for i in range(QUERIES)] * (how != 'attention')
    for sample, place in lost:
        torch.testing.assert_close(output[sample, place], query[sample, place] + attention.attn.out_proj.bias)
        assert (full_map[sample, place] == 0).all()
    gradients = []
    for result in (output, expected):
        attention.zero_grad()
        result.square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in attention.parameters()])
    torch.testing.assert_close(*gradients)
    assert all(gradient.isfinite().all() for gradient in gradients[0])


def test_without_keys_it_is_self_attention(attention: PositionalAttention) -> None:
    query, query_pos = tokens(QUERIES, 3), tokens(QUERIES, 4)
    output, _ = attention(query, None, query_pos)
    expected, _ = attention.reference(query, Keys(query + query_pos, query), query_pos)
    torch.testing.assert_close(output, expected)


def test_rows_are_those_of_the_full_map(attention: PositionalAttention) -> None:
    content = tokens(KEYS, 1)
    keys = Keys(content + tokens(KEYS, 2), content, padding())
    query, query_pos = tokens(QUERIES, 3), tokens(QUERIES, 4)
    _, full_map = attention.reference(query, keys, query_pos)
    index = torch.tensor([[6, 0, 3], [2, 2, 5]])
    expected = full_map.gather(1, index[..., None].expand(-1, -1, KEYS))
    _, record = attention(query, keys, query_pos)
    torch.testing.assert_close(record.rows(index), expected)
    assert (record.rows(index)[0, :, -3:] == 0).all()


def test_record_without_first_queries(attention: PositionalAttention) -> None:
    content = tokens(KEYS, 1)
    _, record = attention(tokens(QUERIES, 3), Keys(content, content))
    index = torch.tensor([[0, 2], [1, 1]])
    assert torch.equal(record.without_first(3).rows(index), record.rows(index + 3))


def test_record_is_detached_and_unaffected_by_dropout(attention: PositionalAttention) -> None:
    content, index = tokens(KEYS, 1), torch.arange(QUERIES).expand(B, -1)
    _, calm = attention(tokens(QUERIES, 3), Keys(content, content))
    attention.train()
    _, record = attention(tokens(QUERIES, 3), Keys(content, content))
    assert not record.key.requires_grad
    assert torch.equal(record.rows(index), calm.rows(index))


def test_map_keeps_one_tensor_one() -> None:
    content = tokens(KEYS, 1)
    calls = []

    def first_half(tensor: torch.Tensor) -> torch.Tensor:
        calls.append(tensor.shape)
        return tensor[:, :5]

    changed = Keys(content, content, padding()).map(first_half)
    assert changed.value is changed.key
    assert len(calls) == 2
    assert changed.padding_mask.shape == (B, 5)
    separate = Keys(content, content.clone()).map(first_half)
    assert separate.value is not separate.key
    assert separate.padding_mask is None


def test_gradients_reach_every_weight(attention: PositionalAttention) -> None:
    content = tokens(KEYS, 1)
    output, _ = attention.train()(tokens(QUERIES, 3), Keys(content + tokens(KEYS, 2), content, padding()))
    output.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in attention.parameters())


def test_rows_of_equal_keys_are_uniform() -> None:
    record = AttentionRecord(torch.randn(1, 2, 3, 4), torch.ones(1, 2, 5, 4))
    torch.testing.assert_close(record.rows(torch.tensor([[1]])), torch.full((1, 1, 5), 0.2))
