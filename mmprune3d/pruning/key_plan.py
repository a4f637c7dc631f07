"""Pruning decisions as data: parsed from a command line, stored in a checkpoint, replayed later."""

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
"""Tokens to remove: a count, or a share below 1; in total, or one per layer."""


@dataclass(frozen=True)
class KeyPlan(Plan):
    """What all methods that remove cross-attention keys between decoder layers have in common.

    Attributes:
        r: Keys removed: a count, or a share (a float between 0 and 1) of the valid keys of each forward pass. One
            number is the total, split over `n` layers; a list is the amount after each layer from the first.
        n: Number of decoder layers that prune, counted from the first; None means 2, or the length of `r`.
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
        """Whether `r` depends on the number of keys."""
        return isinstance(self.r[0] if isinstance(self.r, tuple) else self.r, float)

    @property
    def removes(self) -> bool:
        """Whether the plan removes anything."""
        amounts = self.r if isinstance(self.r, tuple) else (self.r if self.n else 0,)
        return any(amounts)

    def check(self, num_layers: int) -> None:
        """Raises ValueError if the plan does not fit a decoder of `num_layers`."""
        if self.removes:
            check_layers(self.layers, num_layers)

    def scaled(self, share: float) -> Self:
        """The plan with `share` (0..1) of its removals."""
        amounts = self.r if isinstance(self.r, tuple) else (self.r,)
        scaled = tuple(amount * share if self.is_share else int(amount * share) for amount in amounts)
        if isinstance(self.r, tuple):
            return replace(self, r=scaled, n=None)  # amounts may have become 0 at the end
        return replace(self, r=scaled[0])

    def removals(self, num_layers: int, num_keys: int) -> tuple[int, ...]:
        """Keys removed after each of `num_layers` decoder layers of `num_keys` valid keys.

        Shares are of `num_keys`, not of what earlier layers left, and are rounded down; one number is split by
        `split_over_layers`.

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
        """`counts`, checked against `num_keys`."""
        if any(counts) and sum(counts) >= num_keys:
            raise ValueError(
                f'{self.title}: r={self.r!r} of {num_keys} keys leaves none; valid are 0 to {num_keys - 1}, '
                'or a share below 1'
            )
        return counts

    def keys_per_layer(self, num_keys: int, num_layers: int) -> tuple[int, ...]:
        """Keys that each layer attends to, starting from `num_keys`.

        Raises:
            ValueError: If `r` leaves no key.
        """
        counts = [num_keys]
        for removed in self.removals(num_layers, num_keys)[:-1]:
            counts.append(counts[-1] - removed)
        return tuple(counts)


def without_trailing_zeros(amounts: Sequence[int | float]) -> tuple[int | float, ...]:
    """The amounts up to the last layer that prunes; at least one."""
    used = max((i for i, amount in enumerate(amounts) if amount != 0), default=0)
    return tuple(amounts[: used + 1])


def share_of(share: float, num_keys: int) -> int:
    """`share` (below 1) of `num_keys`, rounded down, never all; 0.29 of 100 is 29, whatever binary fractions say."""
    return min(int(share * num_keys + 1e-9), max(num_keys - 1, 0))


@dataclass(frozen=True)
class KeyAndQueryPlan(KeyPlan):
    """Plans that can also remove queries between decoder layers.

    Attributes:
        q: Queries removed in total over the `n` layers.
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
        """Queries removed after each of `num_layers` decoder layers."""
        return split_over_layers(self.q, self.layers, num_layers)


@dataclass(frozen=True)
class TgGBCPlan(KeyAndQueryPlan):
    """How many cross-attention keys tgGBC removes, when, and by which queries (paper section 3.3).

    Attributes:
        k: Queries whose scores count, the most confident ones; 0 means all of them (as in the official command line).
            None means 175, or all with `score='none'`.
        activation: 'sigmoid' for focal-loss heads, 'softmax' for heads with a background column (the last one, left
            out).
        score: 'max', 'mean' or 'min' over classes (Table 5), or 'none': all queries count alike (Eq. 10).
        t: A layer that attends to `t` valid keys or fewer is not followed by pruning (the threshold of appendix D.5).
        q: The least confident queries go first (appendix D.2).
    """

    method: ClassVar[str] = 'tggbc'
    title: ClassVar[str] = 'tgGBC'
    example: ClassVar[str] = 'r=12000,n=2,k=175'
    activations: ClassVar[tuple[str, ...]] = ('sigmoid', 'softmax')
    scores: ClassVar[tuple[str, ...]] = ('max', 'mean', 'min', 'none')

    k: int | None = None
    activation: str = 'sigmoid'
    score: str = 'max'
    t: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_choice('activation', self.activations)
        self.check_choice('score', self.scores)
        if self.k is None:
            self.set('k', 0 if self.score == 'none' else 175)
        for name in ('k', 't'):
            self.check_count(name)
        if self.score == 'none' and (self.k or self.q):
            raise ValueError("tgGBC: score='none' has no confident queries (Eq. 10 sums over all): k and q must be 0")

    def limited(self, counts: tuple[int, ...], num_keys: int) -> tuple[int, ...]:
        """`counts` without those after layers that attend to `t` keys or fewer."""
        left, kept = num_keys, []
        for count in counts:
            kept.append(count if left > self.t else 0)
            left -= kept[-1]
        return super().limited(tuple(kept), num_keys)


@dataclass(frozen=True)
class ToMePlan(KeyAndQueryPlan):
    """Token merging on cross-attention keys, the method that tgGBC is compared with (paper section 4.3).

    Bipartite matching can merge half of a layer's keys, or queries, at most.

    Attributes:
        q: Queries are merged like keys: the comparison of the GPQ paper (its section 4.3.3).
    """

    method: ClassVar[str] = 'tome'
    title: ClassVar[str] = 'ToMe'
    example: ClassVar[str] = 'r=3000,n=2'

    def limited(self, counts: tuple[int, ...], num_keys: int) -> tuple[int, ...]:
        """`counts`, checked: no layer can lose more than half of its keys."""
        left = num_keys
        for count in counts:
            if count > left // 2:
                raise ValueError(f'ToMe: cannot merge {count} of {left} keys in one layer; at most {left // 2}')
            left -= count
        return counts


PLANS: dict[str, type[KeyPlan]] = {plan.method: plan for plan in (TgGBCPlan, ToMePlan)}
"""Method -> plan."""
