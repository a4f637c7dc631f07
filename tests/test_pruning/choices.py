"""What a choice of keys is compared with: the attention map by definition, and sets up to ties at their border."""

from __future__ import annotations

import torch
from torch import Tensor


def full_map(query: Tensor, key: Tensor, forbidden: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The map [B, k, N_k] by definition, in float64, and the logarithms of its denominators [B, heads, k]."""
    scores = torch.einsum('bhqd,bhkd->bhqk', query.double(), key.double()) / query.shape[-1] ** 0.5
    if forbidden is not None:
        scores = scores.masked_fill(forbidden[:, None], float('-inf'))
    log_sum = scores.exp().sum(-1).log()
    return (scores - log_sum[..., None]).exp().mean(1), log_sum.float()


def assert_same_choice(kept: Tensor, importance: Tensor, tolerance: float = 1e-6) -> None:
    """`kept` [B, K] are the K keys of highest `importance` [B, N_k], up to ties at the border.

    Whatever stays may be worth less than the least of the best K by rounding only, and what goes more by rounding only.
    """
    for ids, values in zip(kept, importance, strict=True):
        assert len(set(ids.tolist())) == len(ids)
        border = values.sort(descending=True).values[len(ids) - 1]
        slack = tolerance * max(1.0, float(values.abs().max()))
        gone = torch.ones_like(values, dtype=torch.bool).index_fill(0, ids, False)
        assert (values[ids] >= border - slack).all()
        assert (values[gone] <= border + slack).all()
