"""Figures about the learned queries of a detector, as plain data and as tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmprune3d.visualization.queries import PointPanel

from .query_history import QueryHistory
from .query_points import spread
from .query_selection import Selection, inequality

TITLE = 'Learned queries'
COUNTS = ('results', 'confident')
"""Names of the two counts of a `Selection`."""
POINT_ROWS = (
    ('neighbour_m', 'reference points: distance to the nearest (m)', 2),
    ('clark_evans', 'reference points: the same over that of random points', 2),
    ('clark_evans_z', 'reference points: standard deviations off random points', 1),
    ('height_m', 'reference points: mean z (m)', 2),
    ('height_std_m', 'reference points: standard deviation of z (m)', 2),
)
"""Key in the result of `query_points.spread`, label in the table, number of digits."""
PICTURES = ('frequency.png', 'points.png', 'trajectories.png')


@dataclass(frozen=True)
class QueryUse:
    """Figures about the queries of one detector.

    Attributes:
        name: The name of the detector, see `gpq.Candidate`.
        kept: [N_q] int64, original ids of the queries that are left.
        removal_rank: [N] int64: 0 for queries that are left, else their place in the order of removal.
        selection: How often each query that is left was selected.
        points: [N, 3] reference points x, y, z in metres, or None if the queries have none.
        pc_range: The detection range, lower x, y, z and upper x, y, z in metres, if there are points.
        env: See `report.environment`.
    """

    name: str
    kept: Tensor
    removal_rank: Tensor
    selection: Selection
    points: Tensor | None
    pc_range: list[float] | None
    env: dict[str, Any]

    def inequalities(self) -> dict[str, dict[str, float]]:
        """The result of `query_selection.inequality` for each count in `COUNTS`."""
        return {way: inequality(getattr(self.selection, way)) for way in COUNTS}

    def spread(self) -> dict[str, float] | None:
        """The result of `query_points.spread` for the queries that are left; None with fewer than two points."""
        return None if self.points is None or len(self.kept) < 2 else spread(self.points[self.kept], self.pc_range)

    def frequency(self, way: str) -> Tensor:
        """The mean number of results per sample that come from each query, [N_q] float64."""
        return getattr(self.selection, way).double() / self.selection.samples

    def panel(self) -> PointPanel:
        """The input of `draw_points` for this detector, which must have points."""
        frequency = torch.zeros(len(self.removal_rank), dtype=torch.float64)
        frequency[self.kept] = self.frequency('results') / self.frequency('results').mean()
        removed = self.removal_rank > 0
        title = f'{self.name}: {len(self.kept)} queries' + (f', {removed.sum()} removed' if removed.any() else '')
        return PointPanel(title, self.points.numpy(), frequency.numpy(), removed.numpy(), self.pc_range)

    def to_dict(self) -> dict[str, Any]:
        """The figures as plain types; ``counts`` are in the order of ``kept``, ``points_m`` in the order of the ids."""
        return {
            'name': self.name,
            'queries': len(self.kept),
            'removed': len(self.removal_rank) - len(self.kept),
            'samples': self.selection.samples,
            'results_per_sample': self.selection.per_sample,
            'inequality': self.inequalities(),
            'spread': self.spread(),
            'kept': self.kept.tolist(),
            'removal_rank': self.removal_rank.tolist(),
            'counts': {way: getattr(self.selection, way).tolist() for way in COUNTS},
            'points_m': None if self.points is None else self.points.tolist(),
            'pc_range': self.pc_range,
            'env': self.env,
        }


def markdown(uses: Sequence[QueryUse], history: QueryHistory | None, threshold: float) -> str:
    """The report as Markdown: a table with a column per detector, the history, and the environment of the figures."""
    lines = [f'# {TITLE}', '', f'| | {" | ".join(use.name for use in uses)} |', f'|---|{"---:|" * len(uses)}']
    for label, value in _rows(threshold):
        values = [value(use) for use in uses]
        if any(values):
            lines.append(f'| {label} | {" | ".join(text or "-" for text in values)} |')
    lines += ['', f'![How often queries are selected]({PICTURES[0]})', '']
    if any(use.points is not None for use in uses):
        lines += [f'![Reference points from above]({PICTURES[1]})', '']
    if history is not None:
        lines += ['## While they were pruned', '', *history.markdown(), '', f'![Mean scores]({PICTURES[2]})', '']
    env = ', '.join(f'{name} {value}' for name, value in uses[0].env.items())
    return '\n'.join([*lines, f'{uses[0].selection.samples} samples of the test set; {env}', ''])


def _rows(threshold: float) -> Iterator[tuple[str, Callable[[QueryUse], str]]]:
    """Pairs of a label and a function from a detector's figures to its cell, '' where it has no such figure."""
    yield 'queries', lambda use: str(len(use.kept))
    yield 'removed', lambda use: str(len(use.removal_rank) - len(use.kept))
    for way, label in zip(COUNTS, ('all results', f'score ≥ {threshold:g}')):
        yield f'{label}: per sample', lambda use, way=way: f'{float(use.frequency(way).sum()):.1f}'
        yield f'{label}: queries never selected', lambda use, way=way: _percent(use, way, 'never')
        yield f'{label}: queries that half of them come from', lambda use, way=way: _percent(use, way, 'half')
        yield f'{label}: Gini coefficient', lambda use, way=way: f'{use.inequalities()[way]["gini"]:.3f}'
    for key, label, digits in POINT_ROWS:
        yield label, lambda use, key=key, digits=digits: f'{use.spread()[key]:.{digits}f}' if use.spread() else ''


def _percent(use: QueryUse, way: str, key: str) -> str:
    return f'{100 * use.inequalities()[way][key]:.1f} %'
