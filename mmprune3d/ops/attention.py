"""Fused attention that also says what each query's softmax was divided by."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def fused_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, dropout: float = 0.0
) -> tuple[Tensor, Tensor | None]:
    """``F.scaled_dot_product_attention``, and the logarithm of the softmax' denominators where the kernel has it.

    Args:
        query: [B, heads, N_q, D].
        key: [B, heads, N_k, D].
        value: [B, heads, N_k, D].
        mask: Boolean, broadcastable to [B, heads, N_q, N_k], True where attention is allowed, or None.
        dropout: Dropout probability of the weights.

    Returns:
        The output [B, heads, N_q, D], and log sum_j exp(q k_j / sqrt(D)) as [B, heads, N_q] float32, or None: torch's
        kernel for the CPU computes it and hands it out, others do not (and none does while a graph is exported). A
        query that may attend to nothing gets zeros, in an exported graph too.
    """
    if exporting() and mask is not None:
        # Below opset 23 ONNX has no such rule: a softmax over equal, lowest numbers gives the mean of all values.
        output = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
        return output.masked_fill(~mask.any(-1, keepdim=True), 0), None
    if query.device.type != 'cpu' or dropout > 0 or exporting():
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout), None
    if mask is not None:
        mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill_(~mask, float('-inf'))
        mask = mask.expand(*query.shape[:3], key.shape[2])
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, attn_mask=mask)


def exporting() -> bool:
    """Whether a graph is being traced for export, where only standard operators may appear."""
    return torch.compiler.is_exporting() or torch.onnx.is_in_onnx_export() or torch.jit.is_tracing()
