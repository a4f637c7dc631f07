"""How a total number of removals is spread over layers."""

from __future__ import annotations


def split_over_layers(r: int, n: int, num_layers: int) -> tuple[int, ...]:
    """Keys removed after each decoder layer: `r` in total, over the first `n` layers.

    Rounded as the official tgGBC code does it: `r // n` rounded down to an even number, the remainder on the n-th layer
    (the paper's section 3.3 has plain floor(r / n)).

    Args:
        r: Keys to remove in total; 0 removes nothing.
        n: Number of pruning layers; 0 removes nothing. A removal after the last layer would change nothing, hence n <
            num_layers.
        num_layers: Decoder layers L.

    Returns:
        L counts that sum to `r` (to 0 where n is 0).

    Raises:
        ValueError: If a number is negative, or n > L - 1.
    """
    if r < 0 or n < 0:
        raise ValueError(f'r and n must not be negative, got r={r}, n={n}')
    if r == 0 or n == 0:
        return (0,) * num_layers
    if n > num_layers - 1:
        raise ValueError(
            f'n={n} pruning layers in a decoder of {num_layers}: valid are 1 to {num_layers - 1}, '
            'because keys removed after the last layer are never read again'
        )
    step = r // n // 2 * 2
    return (step,) * (n - 1) + (r - step * (n - 1),) + (0,) * (num_layers - n)
