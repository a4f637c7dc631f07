from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mmprune3d.ops.attention import fused_attention

B, HEADS, QUERIES, KEYS, DIM = 2, 3, 5, 11, 8
MASKS = {
    'none': None,
    'queries x keys': (QUERIES, KEYS),
    'one row for all': (1, KEYS),
    'per head': (HEADS, 1, KEYS),
    'padding': (B, 1, 1, KEYS),
    'padding and queries': (B, 1, QUERIES, KEYS),
    'everything': (B, HEADS, QUERIES, KEYS),
}


def inputs(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = (QUERIES, KEYS, KEYS)
    return [torch.randn(B, HEADS, num, DIM, generator=generator).to(dtype).requires_grad_() for num in shapes]


def mask_of(shape: tuple[int, ...] | None) -> Tensor | None:
    if shape is None:
        return None
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(1)) < 0.6
    mask[..., 4] = True
    return mask


def plain(query: Tensor, key: Tensor, mask: Tensor | None) -> Tensor:
    """Logarithms of the denominators by definition, in float64."""
    scores = query.double() @ key.double().transpose(-2, -1) / DIM**0.5
    return (scores if mask is None else scores.masked_fill(~mask, float('-inf'))).logsumexp(-1)


@pytest.mark.parametrize('name', MASKS)
def test_output_sums_and_gradients(name: str) -> None:
    mask, found, wanted = mask_of(MASKS[name]), inputs(), inputs()
    output, log_sum = fused_attention(*found, mask)
    expected = F.scaled_dot_product_attention(*wanted, attn_mask=mask)
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(log_sum, plain(*found[:2], mask).float())
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(2))
    for result in (output, expected):
        (result * weights).sum().backward()
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one.grad, other.grad)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_sums_are_float32_for_half_precision(dtype: torch.dtype) -> None:
    mask, tensors = mask_of(MASKS['padding']), inputs(dtype)
    output, log_sum = fused_attention(*tensors, mask)
    assert output.dtype == dtype
    assert log_sum.dtype == torch.float32
    torch.testing.assert_close(log_sum, plain(*tensors[:2], mask).float(), atol=1e-5, rtol=1e-5)


def test_autocast_gives_the_sums_of_what_the_kernel_saw() -> None:
    mask, weight = mask_of(MASKS['padding']), torch.randn(DIM, DIM, generator=torch.Generator().manual_seed(3))
    with torch.autocast('cpu', dtype=torch.bfloat16):
        query, key, value = (F.linear(part, weight) for part in inputs())
        output, log_sum = fused_attention(query, key, value, mask)
        expected = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    assert query.dtype == output.dtype == torch.bfloat16
    assert torch.equal(output, expected)
    torch.testing.assert_close(log_sum, plain(query, key, mask).float(), atol=1e-5, rtol=1e-5)


def test_a_query_that_may_attend_to_nothing_gets_zeros() -> None:
    mask = mask_of(MASKS['padding and queries'])
    mask[1, 0, 2] = False
    tensors = inputs()
    output, _ = fused_attention(*tensors, mask)
    assert (output[1, :, 2] == 0).all()
    torch.testing.assert_close(output, F.scaled_dot_product_attention(*tensors, attn_mask=mask))
    output.sum().backward()
    assert all(tensor.grad.isfinite().all() for tensor in tensors)


@pytest.mark.parametrize('dropout', [0.0, 0.1])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16])
def test_a_sample_without_keys_gets_exactly_zero_in_every_precision(dtype: torch.dtype, dropout: float) -> None:
    mask = mask_of(MASKS['padding'])
    mask[1] = False
    tensors = inputs(dtype)
    output, _ = fused_attention(*tensors, mask, dropout)
    assert (output[1] == 0).all() and (output[0] != 0).any()
    output.float().square().sum().backward()
    assert all(tensor.grad.isfinite().all() for tensor in tensors)
    assert all((tensor.grad[1] == 0).all() for tensor in tensors)


def test_with_dropout_there_are_no_sums() -> None:
    tensors = inputs()
    torch.manual_seed(5)
    output, log_sum = fused_attention(*tensors, dropout=0.5)
    torch.manual_seed(5)
    expected = F.scaled_dot_product_attention(*tensors, dropout_p=0.5)
    assert log_sum is None
    assert torch.equal(output, expected)
    assert not torch.allclose(output, fused_attention(*tensors)[0])


def test_a_traced_graph_has_standard_operators_only() -> None:
    tensors = tuple(tensor.detach() for tensor in inputs())
    traced = torch.jit.trace(lambda *args: fused_attention(*args)[0], tensors)
    kinds = {node.kind() for node in traced.graph.nodes()} - {'prim::Constant'}
    assert kinds == {'aten::scaled_dot_product_attention'}
    torch.testing.assert_close(traced(*tensors), fused_attention(*tensors)[0])
