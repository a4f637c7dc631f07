"""Fused scaled dot-product attention that also returns the logarithm of each query's softmax denominator."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def fused_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, dropout: float = 0.0
) -> tuple[Tensor, Tensor | None]:
    """Computes ``F.scaled_dot_product_attention`` and, where the kernel has it, the log of the softmax denominators.

    Args:
        query: Queries [B, heads, N_q, D].
        key: Keys [B, heads, N_k, D].
        value: Values [B, heads, N_k, D].
        mask: Boolean, broadcastable to [B, heads, N_q, N_k], True where attention is allowed, or None.
        dropout: Probability that an attention weight is set to zero.

    Returns:
        The output [B, heads, N_q, D], and log sum_j exp(q k_j / sqrt(D)) as [B, heads, N_q] float32. The second value
        is None where it is not available: only torch's CPU kernel returns it, and only without dropout and outside of
        an export. The output of a query that may attend to no key is zero, in an exported graph too.
    """
    if exporting() and mask is not None:
        # Below opset 23, ONNX has no rule for a row that is masked everywhere: its softmax runs over equal, lowest
        # numbers and gives the mean of all values. torch gives zeros, so the zeros are written into the graph.
        output = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
        return output.masked_fill(~mask.any(-1, keepdim=True), 0), None
    if query.device.type != 'cpu' or dropout > 0 or exporting():
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout), None
    if mask is not None:
        mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill_(~mask, float('-inf'))
        mask = mask.expand(*query.shape[:3], key.shape[2])
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, attn_mask=mask)


def exporting() -> bool:
    """Returns whether a graph is being traced for export, where only standard operators may appear."""
    return torch.compiler.is_exporting() or torch.onnx.is_in_onnx_export() or torch.jit.is_tracing()
