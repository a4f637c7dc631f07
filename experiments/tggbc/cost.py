"""Operations of cross-attention with and without key pruning, as the paper counts them (tgGBC, appendix B)."""

from __future__ import annotations

from mmprune3d.pruning.tggbc import TgGBCPlan


def attention_flops(num_keys: int, num_queries: int, width: int, heads: int) -> int:
    """Operations of one multi-head cross-attention (Eq. 19-20)."""
    per_key = 4 * width**2 - 2 * width + 4 * num_queries * width + 3 * num_queries * heads
    rest = 4 * num_queries * width**2 - 3 * num_queries * width - num_queries * heads + 1
    return per_key * num_keys + rest


def scoring_flops(num_keys: int, num_queries: int, heads: int, k: int) -> int:
    """Operations of one computation of the keys' importance from the full attention map (Eq. 21)."""
    return num_queries * num_keys * heads + num_queries * num_keys + num_keys * (k - 1)


def cross_attention_flops(
    plan: TgGBCPlan,
    num_keys: int,
    num_queries: int = 900,
    width: int = 256,
    heads: int = 8,
    layers: int = 6,
    scored_layers: int | None = None,
) -> tuple[int, int]:
    """Operations of all cross-attentions before and after pruning (Eq. 22 and 23).

    Args:
        plan: Which keys are removed.
        num_keys: N_k before pruning.
        num_queries: N_q.
        width: E, channels.
        heads: H.
        layers: L.
        scored_layers: Layers that compute importance. Eq. 23 has n of them (the default); the figures of Table 7 come
            out with L - 1.

    Returns:
        Before, after.
    """
    before = layers * attention_flops(num_keys, num_queries, width, heads)
    if not plan.removes:
        return before, before
    keys = plan.keys_per_layer(num_keys, layers)
    scored = keys[: plan.n if scored_layers is None else scored_layers]
    k = min(plan.k, num_queries) or num_queries
    after = sum(attention_flops(count, num_queries, width, heads) for count in keys)
    return before, after + sum(scoring_flops(count, num_queries, heads, k) for count in scored)
