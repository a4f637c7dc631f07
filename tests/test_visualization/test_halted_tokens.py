from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from mmprune3d.visualization import halted_tokens
from mmprune3d.visualization.halted_tokens import STRONG, draw_halted_tokens, draw_sparsity, halting_colors

VOXEL, RANGE = (0.5, 0.25, 6.0), (-10.0, -4.0, -2.0, 10.0, 8.0, 4.0)
BOX = np.array([[[1.0, 1.0], [-1.0, 1.0], [-1.0, -1.0], [1.0, -1.0]]])


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """What was drawn, besides writing it."""
    drawn, original = [], halted_tokens._figure

    @contextmanager
    def keep(*args: object) -> Iterator[Figure]:
        with original(*args) as figure:
            drawn.append(figure)
            yield figure

    monkeypatch.setattr(halted_tokens, '_figure', keep)
    return drawn


def tokens(count: int = 60, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    cells = generator.choice(40 * 48, count, replace=False)
    coords = np.stack([np.full(count, 3), np.zeros(count, int), cells // 40, cells % 40], 1)
    return coords, generator.choice([0, 2, 8], count, p=[0.5, 0.3, 0.2])


def color_count(path: Path, color: str) -> int:
    """Pixels of a colour."""
    image = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
    wanted = np.rint(255 * np.array(to_rgb(color)))
    return int((np.abs(image - wanted) <= 1).all(-1).sum())


def test_every_token_is_a_cell_of_its_own_colour(tmp_path: Path, figures: list[Figure]) -> None:
    coords, halted_at = tokens()
    path = tmp_path / 'new' / 'halted.png'
    found = {'car': BOX, 'cyclist': np.concatenate([BOX, BOX + 3]), 'bus': BOX[:0]}
    draw_halted_tokens(path, coords, halted_at, [0, 2], VOXEL, RANGE, truth=BOX, found=found, title='sample 7')
    (panel,) = figures[0].axes
    drawn = {item.get_label(): item for item in panel.collections}
    counts = [int((halted_at == layer).sum()) for layer in (0, 2, 8)]
    assert list(drawn)[:3] == [
        f'{name}: {count} tokens ({count / 60:.1%})'
        for name, count in zip(('halted before layer 0', 'halted before layer 2', 'never halted'), counts)
    ]
    assert list(drawn)[3:] == ['annotated: 1 box', 'car: 1 box', 'cyclist: 2 boxes']
    for item, layer in zip(list(drawn.values())[:3], (0, 2, 8), strict=True):
        y, x = np.array([path.vertices[:4].mean(0) for path in item.get_paths()]).T
        row, column = coords[halted_at == layer, 2:].T
        np.testing.assert_allclose(x, -10 + 0.5 * (column + 0.5))
        np.testing.assert_allclose(y, -4 + 0.25 * (row + 0.5))
        np.testing.assert_allclose(np.ptp(item.get_paths()[0].vertices, axis=0), (0.25, 0.5))
    assert panel.get_title() == 'sample 7' and panel.get_aspect() == 1
    assert panel.get_xlim() == (8, -4) and panel.get_ylim() == (-10, 10)
    legend = [text.get_text() for text in figures[0].legends[0].get_texts()]
    assert sorted(legend) == sorted([*drawn, 'sensor'])


def test_the_picture_has_the_colours(tmp_path: Path) -> None:
    """A quarter of the range, in one colour: so many pixels of the panel."""
    row, column = np.divmod(np.arange(40 * 48), 40)
    coords = np.stack([0 * row, 0 * row, row, column], 1)[(row < 24) & (column < 20)]
    draw_halted_tokens(tmp_path / 'none.png', coords, np.full(len(coords), 8), [0, 2], VOXEL, RANGE)
    draw_halted_tokens(tmp_path / 'all.png', coords, np.zeros(len(coords)), [0, 2], VOXEL, RANGE)
    pale, _, strong = halting_colors(2)
    assert strong == STRONG
    purple, grey = color_count(tmp_path / 'none.png', strong), color_count(tmp_path / 'all.png', pale)
    assert purple > 50_000 and 0.9 < purple / grey < 1.1
    assert color_count(tmp_path / 'none.png', pale) < 0.02 * grey  # its entry in the legend


@pytest.mark.parametrize('steps', [0, 1, 2, 8])
def test_colours_differ_and_the_last_is_that_of_tokens_that_never_halt(steps: int) -> None:
    colors = halting_colors(steps)
    assert len(set(colors)) == steps + 1 and colors[-1] == STRONG
    assert halting_colors(2)[0] == halting_colors(8)[0]


@pytest.mark.parametrize(('lengths', 'samples'), [((0, 0), 1), ((5, 4), 1), ((4, 4), 2)])
def test_tokens_of_no_or_several_samples_are_refused(tmp_path: Path, lengths: tuple, samples: int) -> None:
    coords = tokens(10)[0][: lengths[0]]
    coords[:, 0] = np.arange(len(coords)) % samples
    with pytest.raises(ValueError, match=rf'found {lengths[0]} coordinates of {min(samples, lengths[0])} samples'):
        draw_halted_tokens(tmp_path / 'x.png', coords, np.zeros(lengths[1]), [0], VOXEL, RANGE)
    assert not list(tmp_path.iterdir())


def test_sparsity_curves(tmp_path: Path, figures: list[Figure]) -> None:
    many = [(float(i), i / 100) for i in range(20)]
    curves = {'uniform': {'foreground': many, 'background': many[:3]}, 'ours': {'foreground': many}}
    draw_sparsity(tmp_path / 'curves.png', curves, 'iteration', 'title')
    lines = figures[0].axes[0].lines
    assert [line.get_label() for line in lines] == ['uniform: foreground', 'uniform: background', 'ours: foreground']
    assert lines[0].get_ydata()[7] == pytest.approx(7)
    assert [line.get_linestyle() for line in lines] == ['-', '--', '-']
    assert lines[0].get_color() == lines[1].get_color() != lines[2].get_color()
    assert min(cv2.imread(str(tmp_path / 'curves.png')).shape[:2]) > 400
    draw_sparsity(tmp_path / 'one.png', {'one': {'foreground': many}}, 'layer')
    assert figures[1].axes[0].lines[0].get_label() == 'foreground'
    with pytest.raises(ValueError, match='no shares'):
        draw_sparsity(tmp_path / 'none.png', {'one': {'foreground': []}}, 'layer')
