"""What a training with GPQ did to the queries, from the file that its hook writes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FIELDS = ('iter', 'removed', 'scores')


@dataclass(frozen=True)
class Removal:
    """One line of the file.

    Attributes:
        iteration: Iterations that were done by then.
        removed: Ids of the queries that went, in order.
        scores: Id -> mean score of the interval, of all queries that were left before.
    """

    iteration: int
    removed: tuple[int, ...]
    scores: dict[int, float]

    @property
    def threshold(self) -> float:
        """Score of the query that went last: the next one in order stayed."""
        return self.scores[self.removed[-1]]


@dataclass(frozen=True)
class QueryHistory:
    """All removals of a training, at least one, in order."""

    removals: tuple[Removal, ...]

    @classmethod
    def read(cls, path: Path) -> QueryHistory:
        """Reads ``gpq_history.jsonl``; a last line that is not complete, of a run that was killed, is left out.

        Raises:
            FileNotFoundError: If it does not exist.
            ValueError: If a line is none of GPQHook's, or there is none.
        """
        if not path.is_file():
            raise FileNotFoundError(f'{path} does not exist')
        lines = path.read_text().splitlines()
        if lines and not lines[-1].endswith('}'):
            lines.pop()
        if not lines:
            raise ValueError(f'{path} has no removals; valid are lines of GPQHook, with {", ".join(FIELDS)}')
        return cls(tuple(_parse(line, f'{path}, line {number}') for number, line in enumerate(lines, 1)))

    @property
    def removed_at(self) -> dict[int, int]:
        """Id -> iteration of its removal, in order."""
        return {id_: removal.iteration for removal in self.removals for id_ in removal.removed}

    @property
    def left(self) -> list[int]:
        """Ids of the queries that are left in the end, ascending."""
        return sorted(set(self.removals[0].scores) - set(self.removed_at))

    def trajectories(self) -> dict[int, list[tuple[int, float]]]:
        """Id -> (iteration, mean score of the interval before it), as long as the query was there."""
        found: dict[int, list[tuple[int, float]]] = {id_: [] for id_ in self.removals[0].scores}
        for removal in self.removals:
            for id_, score in removal.scores.items():
                found[id_].append((removal.iteration, score))
        return found

    def thresholds(self) -> list[tuple[int, float]]:
        """(iteration, score of the query that went)."""
        return [(removal.iteration, removal.threshold) for removal in self.removals]

    def lowest_at_first(self) -> float:
        """Share of the removed queries that were among as many lowest ones in the first interval.

        With 1, removing all at once after the first interval would have removed the same ("prune in one iteration" of
        the paper's Table 5).
        """
        first, gone = self.removals[0].scores, set(self.removed_at)
        lowest = sorted(first, key=lambda id_: first[id_])[: len(gone)]
        return len(gone & set(lowest)) / len(gone)

    def to_dict(self) -> dict[str, Any]:
        """Plain types."""
        return {
            'first_iter': self.removals[0].iteration,
            'last_iter': self.removals[-1].iteration,
            'queries_before': len(self.removals[0].scores),
            'queries_left': len(self.left),
            'lowest_at_first': self.lowest_at_first(),
            'removals': [
                {'iter': removal.iteration, 'removed': list(removal.removed), 'threshold': removal.threshold}
                for removal in self.removals
            ],
        }

    def markdown(self) -> Iterator[str]:
        """What a person wants to know first."""
        first, last = self.removals[0], self.removals[-1]
        share = 100 * self.lowest_at_first()
        yield f'{len(first.scores)} queries, {len(self.left)} left; removals from iteration {first.iteration} to'
        yield f'{last.iteration}. Mean score of the query that went: {first.threshold:.2f} at first,'
        yield f'{last.threshold:.2f} at last. Of the removed queries, {share:.0f} % were among as many lowest ones in'
        yield 'the first interval.'


def _parse(line: str, place: str) -> Removal:
    try:
        data = json.loads(line)
        scores = {int(id_): float(score) for id_, score in data['scores'].items()}
        removal = Removal(int(data['iter']), tuple(data['removed']), scores)
        complete = bool(removal.removed) and set(removal.removed) <= set(scores)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f'{place}: no line of GPQHook; valid is an object with {", ".join(FIELDS)}') from error
    if not complete:
        raise ValueError(f'{place}: `removed` must name at least one query, and `scores` have a score of each')
    return removal
