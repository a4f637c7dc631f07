from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import pytest
from matplotlib.figure import Figure

from mmprune3d.visualization import queries
from mmprune3d.visualization.queries import PointPanel, draw_frequencies, draw_points, draw_trajectories

RANGE = [-50.0, -50.0, -5.0, 50.0, 50.0, 3.0]


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """What was drawn, besides writing it."""
    drawn, original = [], queries._figure

    @contextmanager
    def keep(*args: object) -> Iterator[Figure]:
        with original(*args) as figure:
            drawn.append(figure)
            yield figure

    monkeypatch.setattr(queries, '_figure', keep)
    return drawn


def is_drawn(path: Path) -> bool:
    image = cv2.imread(str(path))
    return min(image.shape[:2]) > 400 and 0.01 < (image < 250).any(-1).mean() < 0.5


def panel(title: str, removed: int = 0, frequency: float = 2.0) -> PointPanel:
    points = np.random.default_rng(0).uniform(-50, 50, (40, 3))
    frequencies = np.where(np.arange(40) < 10, 0.0, frequency)
    return PointPanel(title, points, frequencies, np.arange(40) >= 40 - removed, RANGE)


def test_a_curve_per_model_ascends(tmp_path: Path, figures: list[Figure]) -> None:
    curves = {'many': np.array([3.0, 0.0, 1.0, 0.5]), 'few': np.array([2.0, 1.0])}
    draw_frequencies(tmp_path / 'new' / 'frequency.png', {'all': curves, 'confident': {'many': np.zeros(4)}})
    assert is_drawn(tmp_path / 'new' / 'frequency.png')
    first, second = figures[0].axes
    assert [line.get_ydata().tolist() for line in first.lines] == [[0, 0.5, 1, 3], [1, 2]]
    assert [line.get_xdata().tolist() for line in first.lines] == [[12.5, 37.5, 62.5, 87.5], [25, 75]]
    assert second.get_title() == 'confident' and len(second.lines) == 1


def test_points_are_used_unused_or_removed(tmp_path: Path, figures: list[Figure]) -> None:
    draw_points(tmp_path / 'points.png', [panel('before'), panel('after', removed=25)])
    assert is_drawn(tmp_path / 'points.png')
    before, after = (
        {found.get_label(): len(found.get_offsets()) for found in axes.collections} for axes in figures[0].axes[:2]
    )
    assert before['never selected'] == 10 and 'removed' not in before and 30 in before.values()
    assert after['never selected'] == 10 and after['removed'] == 25 and 5 in after.values()


@pytest.mark.parametrize('count', [1, 3, 4])
def test_panels_of_any_number_of_models(tmp_path: Path, figures: list[Figure], count: int) -> None:
    draw_points(tmp_path / 'points.png', [panel(str(number), frequency=0.0) for number in range(count)])
    assert is_drawn(tmp_path / 'points.png')
    assert [axes.get_title() for axes in figures[0].axes][:count] == [str(number) for number in range(count)]


def test_some_trajectories_are_drawn_of_each_kind(tmp_path: Path, figures: list[Figure]) -> None:
    removed_at = {id_: 10 * (id_ + 1) for id_ in range(30)}
    trajectories = {
        id_: [(iteration, id_ / 10 - 5) for iteration in range(10, removed_at.get(id_, 300) + 1, 10)]
        for id_ in range(50)
    }
    thresholds = [(iteration, id_ / 10 - 5) for id_, iteration in removed_at.items()]
    draw_trajectories(tmp_path / 'trajectories.png', trajectories, removed_at, thresholds, shown=4)
    assert is_drawn(tmp_path / 'trajectories.png')
    lines = [line for line in figures[0].axes[0].lines if len(line.get_xdata())]
    ends = [line.get_xdata()[-1] for line in lines if line.get_marker() == 'o']
    assert ends == [10, 110, 200, 300]  # the first that went, the last, and two between
    assert len(lines) == 4 + 2 * 4 + 1


def test_a_single_removal_is_a_history(tmp_path: Path) -> None:
    draw_trajectories(tmp_path / 'one.png', {0: [(5, 1.0)], 1: [(5, 2.0)]}, {0: 5}, [(5, 1.0)])
    assert is_drawn(tmp_path / 'one.png')
