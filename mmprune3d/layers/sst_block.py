"""Sparse regional attention: the transformer blocks of SST (Single-stride Sparse Transformer, CVPR 2022)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmcv.cnn import build_norm_layer
from torch import Tensor, nn

from mmprune3d.ops.window_attention import check_choices, window_attention
from mmprune3d.ops.windows import WindowPlan

ACTIVATIONS = {'relu': F.relu, 'gelu': F.gelu}


class HeadProjections(nn.Module):
    """Projections to queries, keys and values of all heads and back, with the names of ``nn.MultiheadAttention``.

    Args:
        embed_dims: Width of tokens.
        num_heads: Number of heads.
        head_dims: Width of a head; None: embed_dims / num_heads. Any width is allowed, so that heads can be removed or
            made narrower.
        cosine: Whether to normalize queries and keys and divide their products by a learned temperature, instead of
            dividing by the square root of the width.
        tau_min: Lower limit of this temperature.
        non_shared_tau: Whether each head has a temperature of its own.
        dropout: Dropout probability of attention weights.
        backend: ``sdpa`` or ``explicit``, see :func:`~mmprune3d.ops.window_attention.window_attention`.
        halted_gradient: ``derivative`` or ``difference``, see there.

    Raises:
        ValueError: If the number of heads does not divide the width, or backend or halted_gradient is unknown.
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        head_dims: int | None = None,
        cosine: bool = False,
        tau_min: float = 0.01,
        non_shared_tau: bool = False,
        dropout: float = 0.0,
        backend: str = 'sdpa',
        halted_gradient: str = 'derivative',
    ) -> None:
        super().__init__()
        if head_dims is None and embed_dims % num_heads:
            raise ValueError(f'{num_heads} heads do not divide a width of {embed_dims}; set head_dims for other sizes')
        check_choices(backend, halted_gradient)
        self.num_heads = num_heads
        self.head_dims = head_dims or embed_dims // num_heads
        self.inner_dims = self.num_heads * self.head_dims
        self.tau_min, self.dropout = tau_min, dropout
        self.backend, self.halted_gradient = backend, halted_gradient
        self.in_proj_weight = nn.Parameter(torch.empty(3 * self.inner_dims, embed_dims))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * self.inner_dims))
        self.out_proj = nn.Linear(self.inner_dims, embed_dims)
        tau = torch.ones((1, num_heads, 1, 1) if non_shared_tau else (1, 1, 1))
        self.tau = nn.Parameter(tau) if cosine else None
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, query_key: Tensor, value: Tensor, plan: WindowPlan, weights: Tensor | None = None) -> Tensor:
        """Computes attention within windows.

        Args:
            query_key: Input of the query and key projections [N, embed_dims].
            value: Input of the value projection [N, embed_dims].
            plan: Layout of the tokens' windows.
            weights: Weights of the keys [N], or None.

        Returns:
            Outputs [N, embed_dims].
        """
        inner = self.inner_dims
        qk = F.linear(query_key, self.in_proj_weight[: 2 * inner], self.in_proj_bias[: 2 * inner])
        v = F.linear(value, self.in_proj_weight[2 * inner :], self.in_proj_bias[2 * inner :])
        q, k = qk.view(len(qk), 2, self.num_heads, self.head_dims).unbind(1)
        scale = None
        if self.tau is not None:
            q = F.normalize(q, dim=-1) / self.tau.reshape(-1, 1).clamp(min=self.tau_min)
            k, scale = F.normalize(k, dim=-1), 1.0
        v = v.view(len(v), self.num_heads, self.head_dims)
        dropout = self.dropout if self.training else 0.0
        out = window_attention(q, k, v, plan, weights, scale, self.backend, dropout, self.halted_gradient)
        return self.out_proj(out.flatten(1))


class WindowAttention(nn.Module):
    """Attention within windows; positions are added to queries and keys only (a level of SST's state-dict keys)."""

    def __init__(self, embed_dims: int, num_heads: int, **kwargs: object) -> None:
        super().__init__()
        self.self_attn = HeadProjections(embed_dims, num_heads, **kwargs)

    def forward(self, tokens: Tensor, positions: Tensor, plan: WindowPlan, weights: Tensor | None = None) -> Tensor:
        """Updates tokens [N, C] with position embeddings [N, C] and weights [N] of the keys; returns [N, C]."""
        return self.self_attn(tokens + positions, tokens, plan, weights)


class SSTEncoderLayer(nn.Module):
    """One layer of sparse regional attention (Dynamic Token Halting, Eq. 1 and 2; in SST's code the norms come after).

    Args:
        embed_dims: Width of tokens.
        num_heads: Number of heads of the attention.
        feedforward_channels: Hidden width of the feed-forward network.
        dropout: Dropout probability of attention weights and of both residuals.
        activation: Activation, ``'relu'`` or ``'gelu'``.
        post_norm: Whether to normalize sums (as in SST's code) instead of inputs (as in the equations).
        use_bn: Whether to use batch norm over tokens instead of layer norm.
        mlp_dropout: Dropout probability inside the feed-forward network.
        **attention: Further arguments of :class:`HeadProjections`.

    Raises:
        ValueError: If the activation is unknown.
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        feedforward_channels: int,
        dropout: float = 0.0,
        activation: str = 'gelu',
        post_norm: bool = True,
        use_bn: bool = False,
        mlp_dropout: float = 0.0,
        **attention: object,
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f'unknown activation {activation!r}; valid are {", ".join(ACTIVATIONS)}')
        self.win_attn = WindowAttention(embed_dims, num_heads, dropout=dropout, **attention)
        self.linear1 = nn.Linear(embed_dims, feedforward_channels)
        self.linear2 = nn.Linear(feedforward_channels, embed_dims)
        norm_cfg = dict(type='BN1d', eps=1e-3, momentum=0.01) if use_bn else dict(type='LN')
        self.norm1, self.norm2 = (build_norm_layer(norm_cfg, embed_dims)[1] for _ in range(2))
        self.dropout, self.mlp_dropout = nn.Dropout(dropout), nn.Dropout(mlp_dropout)
        self.activation = ACTIVATIONS[activation]
        self.post_norm = post_norm
        for linear in (self.linear1, self.linear2):
            nn.init.xavier_uniform_(linear.weight)

    def forward(self, tokens: Tensor, positions: Tensor, plan: WindowPlan, weights: Tensor | None = None) -> Tensor:
        """Updates tokens [N, C] with position embeddings [N, C] and key weights [N] (None: all 1); returns [N, C]."""
        if self.post_norm:
            tokens = self.norm1(tokens + self.dropout(self.win_attn(tokens, positions, plan, weights)))
            return self.norm2(tokens + self._feedforward(tokens))
        tokens = tokens + self.dropout(self.win_attn(self.norm1(tokens), positions, plan, weights))
        return tokens + self._feedforward(self.norm2(tokens))

    def _feedforward(self, tokens: Tensor) -> Tensor:
        return self.dropout(self.linear2(self.mlp_dropout(self.activation(self.linear1(tokens)))))


class SSTBlock(nn.Module):
    """Two layers: attention in windows, then in windows shifted by half their size (Eq. 3)."""

    def __init__(self, embed_dims: int, num_heads: int, feedforward_channels: int, **layer: object) -> None:
        super().__init__()
        layers = (SSTEncoderLayer(embed_dims, num_heads, feedforward_channels, **layer) for _ in range(2))
        self.encoder_list = nn.ModuleList(layers)

    def forward(
        self,
        tokens: Tensor,
        positions: Sequence[Tensor],
        plans: Sequence[WindowPlan],
        weights: Sequence[Tensor | None] = (None, None),
    ) -> Tensor:
        """Updates tokens [N, C]; positions, plans and weights of the keys are given for each of the two layers."""
        for layer, position, plan, weight in zip(self.encoder_list, positions, plans, weights, strict=True):
            tokens = layer(tokens, position, plan, weight)
        return tokens
