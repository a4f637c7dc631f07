"""How the removal of keys is spread over decoder layers and over a training."""

from __future__ import annotations


def split_over_layers(r: int, n: int, num_layers: int) -> tuple[int, ...]:
    """The number of keys that are removed after each decoder layer: `r` in total, over the first `n` layers.

    Numbers are rounded as in the official tgGBC code: `r // n` is rounded down to an even number, and the n-th layer
    gets the remainder (section 3.3 of the paper has plain floor(r / n)).

    Args:
        r: Number of keys to remove in total; 0 removes nothing.
        n: Number of layers that are followed by pruning; 0 removes nothing. A removal after the last layer would change
            nothing, hence n < num_layers.
        num_layers: Number L of decoder layers.

    Returns:
        L counts that sum to `r` (to 0 where n is 0).

    Raises:
        ValueError: If a number is negative, or n > L - 1.
    """
    if r < 0 or n < 0:
        raise ValueError(f'r and n must not be negative, got r={r}, n={n}')
    if r == 0 or n == 0:
        return (0,) * num_layers
    check_layers(n, num_layers)
    step = r // n // 2 * 2
    return (step,) * (n - 1) + (r - step * (n - 1),) + (0,) * (num_layers - n)


def check_layers(n: int, num_layers: int) -> None:
    """Raises ValueError if `n` pruning layers do not fit a decoder of `num_layers`."""
    if n > num_layers - 1:
        raise ValueError(
            f'n={n} pruning layers in a decoder of {num_layers}: valid are 1 to {num_layers - 1}, '
            'because keys removed after the last layer are never read again'
        )


def heated(iteration: int, warmup: int, heating: int) -> float:
    """The share of a plan that is applied in a training iteration: 0 during warm-up, then linearly more, then 1.

    A function of the iteration alone, so that a resumed run goes on where it stopped (with the official hook, a run
    that is resumed during warm-up prunes everything at once).

    Args:
        iteration: Number of the iteration, from 0.
        warmup: Number of iterations without pruning.
        heating: Number of iterations in which the share grows from 0 to 1.

    Returns:
        The share, 0 to 1.
    """
    done = iteration + 1 - warmup
    if done <= 0:
        return 0.0
    return 1.0 if done > heating else done / heating
