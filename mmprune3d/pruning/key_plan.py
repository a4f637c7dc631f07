"""Plans of key pruning as data: how many cross-attention keys are removed after which decoder layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from . import checks
from .schedules import check_layers, split_over_layers
from .settings import Plan

if TYPE_CHECKING:  # Python 3.10 has no Self
    from typing import Self

Amount = int | float | Sequence[int] | Sequence[float]
"""Keys to remove: a count or a share below 1, in total or one per layer."""


@dataclass(frozen=True)
class KeyPlan(Plan):
    """The settings that all methods have in common which remove cross-attention keys between decoder layers.

    Attributes:
        r: Number of keys to remove (an int), or the share of the valid keys of each forward pass (a float from 0.0 to
            below 1.0). One number is the total, split over `n` layers; a list has the amount after each layer, from
            the first.
        n: Number of decoder layers that are followed by pruning, counted from the first; None means 2, or the length of
            a list `r`.
    """

    purpose: ClassVar[str] = 'what to remove'
    lists: ClassVar[tuple[str, ...]] = ('r',)

    r: Amount
    n: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.r, (list, tuple)):
            self.set('r', tuple(checks.plain(amount) for amount in self.r))
        self._check_amounts(self.r if isinstance(self.r, tuple) else (self.r,))
        if isinstance(self.r, tuple):
            self.set('r', without_trailing_zeros(self.r))
        if self.n is None:
            self.set('n', len(self.r) if isinstance(self.r, tuple) else 2)
        self.check_count('n')
        if isinstance(self.r, tuple) and self.n != len(self.r):
            raise ValueError(f'{self.title}: r lists {len(self.r)} layers, but n={self.n}; leave n out')

    def _check_amounts(self, amounts: tuple[Any, ...]) -> None:
        counts = all(type(amount) is int and 0 <= amount <= checks.MOST for amount in amounts)  # a bool is no count
        shares = all(type(amount) is float and 0 <= amount < 1 for amount in amounts)
        if not (counts or shares):
            raise ValueError(
                f'{self.title}: r={checks.shown(self.r)} must be a whole number (keys), a share from 0.0 to below 1.0, '
                'or a list of one kind, an entry per layer'
            )
        if not amounts or (shares and sum(amounts) >= 1):
            raise ValueError(
                f'{self.title}: r={checks.shown(self.r)}: shares must sum to less than 1, and a list must not be empty'
            )

    @property
    def layers(self) -> int:
        """`n`, which is a number in every plan that has been made."""
        return self.n or 0

    @property
    def is_share(self) -> bool:
        """Whether `r` is a share of the keys rather than a count."""
        return isinstance(self.r[0] if isinstance(self.r, tuple) else self.r, float)

    @property
    def removes(self) -> bool:
        """Whether the plan removes any key."""
        amounts = self.r if isinstance(self.r, tuple) else (self.r if self.n else 0,)
        return any(amounts)

    def check(self, num_layers: int) -> None:
        """Raises ValueError if the plan does not fit a decoder of `num_layers`."""
        if self.removes:
            check_layers(self.layers, num_layers)

    def scaled(self, share: float) -> Self:
        """A plan that removes `share` (0..1) of the keys that this plan removes, after the same layers."""
        amounts = self.r if isinstance(self.r, tuple) else (self.r,)
        scaled = tuple(amount * share if self.is_share else int(amount * share) for amount in amounts)
        if isinstance(self.r, tuple):
            return replace(self, r=scaled, n=None)  # amounts may have become 0 at the end
        return replace(self, r=scaled[0])

    def removals(self, num_layers: int, num_keys: int) -> tuple[int, ...]:
        """The number of keys that are removed after each decoder layer.

        Shares are shares of `num_keys`, not of the keys that earlier layers left, and are rounded down. One number `r`
        is split by `split_over_layers`.

        Args:
            num_layers: Number of decoder layers.
            num_keys: Number of valid keys that the first layer attends to.

        Returns:
            `num_layers` counts.

        Raises:
            ValueError: If no key would be left, or `n` does not fit.
        """
        self.check(num_layers)
        if isinstance(self.r, tuple):
            counts = tuple(self._count(amount, num_keys) for amount in self.r)
            counts = (counts + (0,) * num_layers)[:num_layers]
        else:
            counts = split_over_layers(self._count(self.r, num_keys), self.layers, num_layers)
        return self.limited(counts, num_keys)

    def _count(self, amount: Any, num_keys: int) -> int:
        return share_of(amount, num_keys) if self.is_share else amount

    def limited(self, counts: tuple[int, ...], num_keys: int) -> tuple[int, ...]:
        """The counts [`num_layers`] of removed keys, checked against `num_keys`, the number of keys at the start.

        Methods with limits of their own override this.

        Raises:
            ValueError: If no key would be left.
        """
        if any(counts) and sum(counts) >= num_keys:
            raise ValueError(
                f'{self.title}: r={self.r!r} of {num_keys} keys leaves none; valid are 0 to {num_keys - 1}, '
                'or a share below 1'
            )
        return counts

    def keys_per_layer(self, num_keys: int, num_layers: int) -> tuple[int, ...]:
        """The number of keys that each decoder layer attends to, `num_keys` of them in the first layer.

        Raises:
            ValueError: If `r` leaves no key.
        """
        counts = [num_keys]
        for removed in self.removals(num_layers, num_keys)[:-1]:
            counts.append(counts[-1] - removed)
        return tuple(counts)


def without_trailing_zeros(amounts: Sequence[int | float]) -> tuple[int | float, ...]:
    """The amounts per layer up to the last one that is not 0; at least one amount is returned."""
    used = max((i for i, amount in enumerate(amounts) if amount != 0), default=0)
    return tuple(amounts[: used + 1])


def share_of(share: float, num_keys: int) -> int:
    """The number of keys in a share (below 1) of `num_keys`, rounded down and never all of them.

    A small tolerance corrects binary fractions, so that 0.29 of 100 keys are 29.
    """
    return min(int(share * num_keys + 1e-9), max(num_keys - 1, 0))


@dataclass(frozen=True)
class KeyAndQueryPlan(KeyPlan):
    """The settings of methods that can also remove queries between decoder layers.

    Attributes:
        q: Number of queries to remove in total over the `n` layers.
    """

    q: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_count('q')

    @property
    def removes(self) -> bool:
        """Whether the plan removes any key or query."""
        return super().removes or bool(self.q and self.n)

    def query_removals(self, num_layers: int) -> tuple[int, ...]:
        """The number of queries that are removed after each of `num_layers` decoder layers."""
        return split_over_layers(self.q, self.layers, num_layers)
