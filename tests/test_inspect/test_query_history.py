from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmprune3d.inspect.query_history import QueryHistory


def line(iteration: int, removed: list[int], scores: dict[int, float]) -> str:
    return json.dumps({'iter': iteration, 'removed': removed, 'scores': scores}) + '\n'


@pytest.fixture
def history_file(tmp_path: Path) -> Path:
    path = tmp_path / 'gpq_history.jsonl'
    path.write_text(
        line(10, [2], {0: -1.0, 1: -3.0, 2: -9.0, 5: -2.0, 8: -4.0})
        + line(20, [1, 8], {0: -1.5, 1: -8.0, 5: -2.5, 8: -7.0})
    )
    return path


def test_history_is_read(history_file: Path) -> None:
    history = QueryHistory.read(history_file)
    assert history.removed_at == {2: 10, 1: 20, 8: 20} and list(history.removed_at) == [2, 1, 8]
    assert history.left == [0, 5]
    assert history.thresholds() == [(10, -9.0), (20, -7.0)]
    trajectories = history.trajectories()
    assert trajectories[2] == [(10, -9.0)] and trajectories[8] == [(10, -4.0), (20, -7.0)] and len(trajectories) == 5
    assert history.lowest_at_first() == 1.0
    assert history.to_dict()['queries_left'] == 2


def test_queries_that_fell_later_are_told_from_those_that_were_lowest_at_first(tmp_path: Path) -> None:
    path = tmp_path / 'history.jsonl'
    path.write_text(line(10, [2], {0: -1.0, 1: -3.0, 2: -9.0}) + line(20, [0], {0: -5.5, 1: -2.0}))
    assert QueryHistory.read(path).lowest_at_first() == 0.5


def test_an_incomplete_last_line_is_left_out(history_file: Path) -> None:
    complete = QueryHistory.read(history_file)
    history_file.write_text(history_file.read_text() + '{"iter": 30, "removed": [5], "sco')
    assert QueryHistory.read(history_file) == complete


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('', 'has no removals; valid are lines of GPQHook'),
        ('{"iter": 3', 'has no removals'),
        ('{"loss": 0.5}\n', 'line 1: GPQHook did not write this line; valid is an object with iter, removed, scores'),
        ('[1}\n', 'line 1: GPQHook did not write this line'),
        (line(10, [], {0: 0.0}), 'must name at least one query'),
        (line(10, [1], {0: 0.0}), 'scores` have a score of each'),
    ],
)
def test_other_files_are_no_history(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / 'history.jsonl'
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        QueryHistory.read(path)
