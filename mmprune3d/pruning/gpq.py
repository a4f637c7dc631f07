"""GPQ: gradually pruning queries ("Redundant Queries in DETR-Based 3D Detection Methods", section 3.2, algorithm 1).

While a detector is fine-tuned, the score of every query is averaged over an interval of iterations. At the end of the
interval the query with the lowest average goes, for good, and the next interval begins. After some thousand iterations
a third of the queries is left, and training goes on with them::

    schedule = plan.schedule(num_queries, iterations_per_epoch)
    for iteration in ...:
        scores.add(query_scores(logits))                      # [B, N_q, classes] of the last decoder layer
        due = schedule.removed_after(iteration + 1) - removed
        if due:
            victims = choose_victims(scores.mean(), due)
            scores = ScoreSums.zeros(num_queries - due)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from . import checks
from .settings import Plan

RANK = 'removal_rank'
"""Name, in state dicts, of the buffer beside an embedding that says which rows are gone, and in which order."""


@dataclass(frozen=True)
class GPQPlan(Plan):
    """How many queries stay, when the others are removed, and which ones (section 3.2).

    Attributes:
        target: Number of queries that are left in the end.
        interval: Number of iterations from one removal to the next. None means as many as it takes to reach `target`
            within `epochs`.
        epochs: Length of the pruning in epochs, or parts of one, if `interval` is None: 6, as in the paper, where
            training takes 24.
        per_step: Number of queries removed at a time, or 'all' to remove all of them after one interval (the ablation
            "prune in one iteration" of Table 5). With `epochs`, more are removed at a time if there are more queries
            than iterations.
        begin: Number of iterations before the first interval.
        criterion: 'lowest' removes the queries with the lowest class scores. 'highest', 'cost' (of the assigner: the
            queries whose best match with any object is worst) and 'random' are there to compare with (Table 5).
        score: 'logit' averages the highest class logit of a query, as the authors' code does; 'probability' its
            sigmoid or softmax.
        seed: Seed of the criterion 'random'.
    """

    method: ClassVar[str] = 'gpq'
    title: ClassVar[str] = 'GPQ'
    example: ClassVar[str] = 'target=300,epochs=6'
    purpose: ClassVar[str] = 'how many queries stay'
    criteria: ClassVar[tuple[str, ...]] = ('lowest', 'highest', 'cost', 'random')
    scores: ClassVar[tuple[str, ...]] = ('logit', 'probability')

    target: int
    interval: int | None = None
    epochs: float | None = None
    per_step: int | str = 1
    begin: int = 0
    criterion: str = 'lowest'
    score: str = 'logit'
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_count('target', 1)
        self.check_choice('criterion', self.criteria)
        self.check_choice('score', self.scores)
        self.check_count('begin')
        self.check_seed('seed')
        if isinstance(self.per_step, str) and self.per_step != 'all':
            raise ValueError(
                f"{self.title}: per_step={checks.shown(self.per_step)} must be a whole number, 1 or more, or 'all'"
            )
        if self.per_step != 'all':
            self.check_count('per_step', 1)
        self._check_length()

    def _check_length(self) -> None:
        if self.interval is None and self.epochs is None:
            self.set('epochs', 6)
        if self.interval is not None:
            self.check_count('interval', 1)
        if self.epochs is not None:
            self.check_number('epochs', above=0, most=10**6)
        if self.interval is not None and self.epochs is not None:
            raise ValueError(f'{self.title}: interval={self.interval}, epochs={self.epochs}: give one of the two')

    def schedule(self, num_queries: int, iterations_per_epoch: int) -> RemovalSchedule:
        """The schedule of removals in a training that starts with `num_queries`.

        With `epochs`, the interval is rounded down, as in the authors' configs (6 x 3516 iterations for 600 queries:
        one every 35 iterations), so that the last removal comes a little before the end.

        Args:
            num_queries: Number of queries at the start.
            iterations_per_epoch: Number of training iterations per epoch.

        Raises:
            ValueError: If there is nothing to remove, or no iteration to remove it in.
        """
        total = num_queries - self.target
        if total < 1:
            raise ValueError(
                f'{self.title}: target={self.target} of {num_queries} queries; valid are 1 to {num_queries - 1}'
            )
        per_step = total if isinstance(self.per_step, str) else self.per_step
        if self.interval is not None:
            return RemovalSchedule(total, self.begin, self.interval, per_step)
        epochs = self.epochs or 0  # given where `interval` is not
        span = round(epochs * iterations_per_epoch) - self.begin
        if span < 1:
            raise ValueError(
                f'{self.title}: epochs={self.epochs} of {iterations_per_epoch} iterations leave none for pruning after '
                f'begin={self.begin}'
            )
        per_step = max(per_step, -(-total // span))
        return RemovalSchedule(total, self.begin, span // -(-total // per_step), per_step)


@dataclass(frozen=True)
class RemovalSchedule:
    """When queries are removed; a function of the iteration alone, so that a resumed run goes on where it stopped.

    Attributes:
        total: Number of queries to remove.
        begin: Number of iterations before the first interval.
        interval: Number of iterations from one removal to the next.
        per_step: Number of queries removed at a time.
    """

    total: int
    begin: int
    interval: int
    per_step: int

    def removed_after(self, iterations: int) -> int:
        """The number of queries that are removed by the time `iterations` iterations are done."""
        steps = max(0, iterations - self.begin) // self.interval
        return min(self.total, steps * self.per_step)

    @property
    def end(self) -> int:
        """The number of iterations that are done when the last query is removed."""
        return self.begin + self.interval * -(-self.total // self.per_step)


@torch.no_grad()
def query_scores(logits: Tensor, score: str = 'logit', activation: str = 'sigmoid') -> Tensor:
    """The score of each query in one forward pass.

    Args:
        logits: [B, N_q, classes] of the last decoder layer, without denoising queries.
        score: 'logit' or 'probability'; see `GPQPlan`.
        activation: 'sigmoid' for focal-loss heads, 'softmax' for heads with a background column (the last one, left
            out; the logit is then that of the probability, ln(p / (1 - p)), as it is for a sigmoid).

    Returns:
        [B, N_q] float64.
    """
    logits = logits.double()
    if activation == 'sigmoid':
        best = logits.max(-1).values
        return best.sigmoid() if score == 'probability' else best
    best, index = logits[..., :-1].max(-1)
    others = logits.scatter(-1, index[..., None], float('-inf')).logsumexp(-1)
    return (best - others).sigmoid() if score == 'probability' else best - others


@torch.no_grad()
def cost_scores(costs: Sequence[Tensor]) -> Tensor:
    """The scores of the queries by the costs of matching them with the objects of each sample (ablation of Table 5).

    Args:
        costs: Matching costs [N_q, objects] of each sample.

    Returns:
        [samples with objects, N_q] float64: the negative of every query's lowest cost.
    """
    best = [-cost.double().min(-1).values for cost in costs if cost.shape[-1]]
    return torch.stack(best) if best else torch.zeros(0, len(costs[0]), dtype=torch.float64)


@dataclass(frozen=True)
class ScoreSums:
    """Scores of the queries, summed over the samples of an interval.

    Sums and not means, so that they can be added over processes.

    Attributes:
        total: [N_q] float64.
        count: Number of samples.
    """

    total: Tensor
    count: int

    @classmethod
    def zeros(cls, num_queries: int) -> ScoreSums:
        """Sums of `num_queries` queries over no sample."""
        return cls(torch.zeros(num_queries, dtype=torch.float64), 0)

    def add(self, scores: Tensor) -> ScoreSums:
        """The sums with the scores [B, N_q] of more samples added.

        Samples with a score that is not finite, which half precision sometimes brings, do not count.
        """
        usable = scores[torch.isfinite(scores).all(1)].to(self.total)
        return ScoreSums(self.total + usable.sum(0), self.count + len(usable))

    def plus(self, packed: Tensor) -> ScoreSums:
        """The sums with those of other samples added, which are packed as by `packed`."""
        return ScoreSums(self.total + packed[:-1], self.count + round(float(packed[-1])))

    def packed(self) -> Tensor:
        """The sums and the count in one tensor [N_q + 1] float64, to be added over processes or stored."""
        return torch.cat((self.total, self.total.new_tensor([self.count])))

    def mean(self) -> Tensor:
        """Mean score of every query, [N_q].

        Raises:
            RuntimeError: If no sample was added.
        """
        if not self.count:
            raise RuntimeError('GPQ: no query has a score: there was no sample with scores that are all finite')
        return self.total / self.count


def choose_victims(scores: Tensor, count: int, criterion: str = 'lowest', seed: int = 0) -> Tensor:
    """The queries that are removed next.

    Args:
        scores: [N_q], the mean score of every query that is left.
        count: Number of queries to remove, 1 <= count < N_q.
        criterion: 'lowest' and 'cost' (whose scores are negative costs) remove the queries with the lowest scores,
            'highest' those with the highest, 'random' any.
        seed: Seed of 'random'; the same seed and number of queries give the same choice.

    Returns:
        [count] int64, indices into `scores`, in the order of removal; the lower index first among equal scores.

    Raises:
        ValueError: If `count` is out of range.
    """
    if not 1 <= count < len(scores):
        raise ValueError(f'GPQ: cannot remove {count} of {len(scores)} queries; valid are 1 to {len(scores) - 1}')
    if criterion == 'random':
        generator = torch.Generator().manual_seed(seed * 1_000_003 + len(scores))
        return torch.randperm(len(scores), generator=generator)[:count]
    return scores.argsort(descending=criterion == 'highest', stable=True)[:count]


def kept_ids(removal_rank: Tensor) -> Tensor:
    """Ids of the queries that are left, ascending.

    Args:
        removal_rank: [N] int64: 0 for queries that are left, else their place in the order of removal, from 1.
    """
    return (removal_rank == 0).nonzero()[:, 0]


def kept_at(removal_rank: Tensor, num_queries: int) -> Tensor:
    """Ids of the queries that were left when there were `num_queries`, ascending.

    Args:
        removal_rank: See `kept_ids`.
        num_queries: A number of queries from the number that are left now to the number at the start.

    Raises:
        ValueError: If `num_queries` is outside of this range.
    """
    total, gone = len(removal_rank), int(removal_rank.max())
    if not total - gone <= num_queries <= total:
        raise ValueError(f'GPQ: {num_queries} queries; valid are {total - gone} (left now) to {total} (at the start)')
    return ((removal_rank == 0) | (removal_rank > total - num_queries)).nonzero()[:, 0]
