"""The queries that a training with GPQ removed, read from the file that GPQHook writes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FIELDS = ('iter', 'removed', 'scores')


@dataclass(frozen=True)
class Removal:
    """One removal: a line of the file.

    Attributes:
        iteration: Number of training iterations before the removal.
        removed: Ids of the removed queries, in the order of removal.
        scores: Id -> mean score since the removal before, of every query that was left then.
    """

    iteration: int
    removed: tuple[int, ...]
    scores: dict[int, float]

    @property
    def threshold(self) -> float:
        """The score of the query that was removed last: queries with higher scores stayed."""
        return self.scores[self.removed[-1]]


@dataclass(frozen=True)
class QueryHistory:
    """The removals of a training in order; there is at least one."""

    removals: tuple[Removal, ...]

    @classmethod
    def read(cls, path: Path) -> QueryHistory:
        """Reads ``gpq_history.jsonl``. An incomplete last line, which a killed training leaves, is skipped.

        Raises:
            FileNotFoundError: If the file does not exist.
            ValueError: If the file is empty, or GPQHook did not write a line of it.
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
        """Id of each removed query -> iteration of its removal, in the order of removal."""
        return {id_: removal.iteration for removal in self.removals for id_ in removal.removed}

    @property
    def left(self) -> list[int]:
        """The ids of the queries that are left after the last removal, ascending."""
        return sorted(set(self.removals[0].scores) - set(self.removed_at))

    def trajectories(self) -> dict[int, list[tuple[int, float]]]:
        """Id -> (iteration, mean score of the interval before it), until the query was removed."""
        found: dict[int, list[tuple[int, float]]] = {id_: [] for id_ in self.removals[0].scores}
        for removal in self.removals:
            for id_, score in removal.scores.items():
                found[id_].append((removal.iteration, score))
        return found

    def thresholds(self) -> list[tuple[int, float]]:
        """Pairs of an iteration and the `Removal.threshold` of its removal."""
        return [(removal.iteration, removal.threshold) for removal in self.removals]

    def lowest_at_first(self) -> float:
        """Share of the removed queries that had the lowest scores already in the first interval, 0..1.

        R queries are compared with the R lowest ones, R being the number of removed queries. A share of 1 means that
        removing all R at once after the first interval ("prune in one iteration", Table 5 of the paper) would have
        removed the same queries.
        """
        first, gone = self.removals[0].scores, set(self.removed_at)
        lowest = sorted(first, key=lambda id_: first[id_])[: len(gone)]
        return len(gone & set(lowest)) / len(gone)

    def to_dict(self) -> dict[str, Any]:
        """The history as plain types, without the scores."""
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
        """A summary of the history as lines of Markdown."""
        first, last = self.removals[0], self.removals[-1]
        share = 100 * self.lowest_at_first()
        yield f'{len(first.scores)} queries, {len(self.left)} left; removals from iteration {first.iteration} to'
        yield f'{last.iteration}. Mean score of the removed query: {first.threshold:.2f} at first,'
        yield f'{last.threshold:.2f} at last. {share:.0f} % of the removed queries had one of the'
        yield f'{len(self.removed_at)} lowest scores in the first interval already.'


def _parse(line: str, place: str) -> Removal:
    try:
        data = json.loads(line)
        scores = {int(id_): float(score) for id_, score in data['scores'].items()}
        removal = Removal(int(data['iter']), tuple(data['removed']), scores)
        complete = bool(removal.removed) and set(removal.removed) <= set(scores)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        valid = f'valid is an object with {", ".join(FIELDS)}'
        raise ValueError(f'{place}: GPQHook did not write this line; {valid}') from error
    if not complete:
        raise ValueError(f'{place}: `removed` must name at least one query, and `scores` have a score of each')
    return removal
