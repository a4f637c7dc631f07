from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from experiments.pareto import ParetoPoint, draw_pareto

ORIGINAL = ParetoPoint('SST', [1.0], [0.5])
METHODS = {
    'SST_halt': [ParetoPoint('0.75', [1.2, 1.3], [0.5, 0.49]), ParetoPoint('0.89', [1.5], [0.48])],
    'width': [ParetoPoint('8', [1.1], [0.45])],
    'none': [],
}


def colours(path: Path) -> set[int]:
    pixels = (imread(path)[..., :3] * 255).round().astype(int)
    return set(np.unique(pixels @ [1 << 16, 1 << 8, 1]).tolist())


def test_every_method_with_points_is_drawn(tmp_path: Path) -> None:
    draw_pareto(tmp_path / 'deeper' / 'all.png', ORIGINAL, METHODS, title='title')
    draw_pareto(tmp_path / 'one.png', ORIGINAL, {'SST_halt': METHODS['SST_halt']})
    blue, vermilion, green = 0x0072B2, 0xD55E00, 0x009E73
    found = colours(tmp_path / 'deeper' / 'all.png')
    assert {blue, vermilion} <= found and green not in found
    assert blue in colours(tmp_path / 'one.png') and vermilion not in colours(tmp_path / 'one.png')


def test_a_point_needs_figures(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"points \['8'\] have no speed-up or no accuracy"):
        draw_pareto(tmp_path / 'a.png', ORIGINAL, {'width': [ParetoPoint('8', [], [0.5])]})
