"""The picture of the README: keys tinted, tokens halted, times before and after."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from PIL import Image

from .style import IMAGES, bare, canvas, measured, pair_of_bars, plain, row_of, write

CAMERA_WIDTH, CAMERA_HEIGHT = 640, 232
CAMERAS = ((1, 0), (2, 1))
"""Column and row of the two cameras that are shown, in the picture of `make demo`."""
GROUND = (290, 245, 1060, 1015)
"""Left, top, right and bottom of the part of ``halted_tokens.png`` that is shown, in pixels."""


def draw(path: Path) -> None:
    """Writes the picture; pictures and times are the committed ones."""
    figure, panels = canvas(12.4, 3.5, ncols=3, gridspec_kw={'width_ratios': [1.27, 0.95, 1.25]})
    _keys(panels[0])
    _tokens(panels[1])
    _times(panels[2])
    write(figure, path)


def _keys(panel: Axes) -> None:
    with Image.open(IMAGES / 'upgrade_petr_tiny.jpg') as sheet:
        stack = Image.new('RGB', (CAMERA_WIDTH, 2 * CAMERA_HEIGHT + 6), 'white')
        for place, (column, row) in enumerate(CAMERAS):
            left, top = column * CAMERA_WIDTH, row * CAMERA_HEIGHT
            camera = sheet.crop((left, top, left + CAMERA_WIDTH, top + CAMERA_HEIGHT))
            stack.paste(camera, (0, place * (CAMERA_HEIGHT + 6)))
    panel.imshow(stack)
    panel.set_anchor('N')
    bare(panel, 'keys (tinted: removed after layer 1)')


def _tokens(panel: Axes) -> None:
    with Image.open(IMAGES / 'halted_tokens.png') as sheet:
        panel.imshow(sheet.convert('RGB').crop(GROUND))
    panel.set_anchor('N')
    bare(panel, 'LiDAR tokens (grey: halted first, blue: later)')


def _times(panel: Axes) -> None:
    keys = row_of('decoder', 'streampetr_vov_1600x640')
    queries = row_of('query', 'petr_800x320')['ms']['plain']
    tokens = next(row for row in measured('backbone')['rows'] if row['sparsity'] == 0.82)
    removed = keys['shape']['plan']['r'] / keys['shape']['keys']
    bars = {
        f'decoder, {keys["shape"]["keys"]} keys\n{100 * removed:.1f} % removed': (
            keys['ms']['stock_fused'],
            keys['ms']['ours'],
        ),
        'decoder in ONNX Runtime\n900 → 300 queries': (queries['900'], queries['300']),
        'backbone of SST\n82 % of tokens halted': (tokens['unhalted_ms']['backbone'], tokens['ms']['backbone']),
    }
    for place, (before, after) in zip(reversed(range(len(bars))), bars.values()):
        pair_of_bars(panel, place, before, after)
    panel.set(xlim=(0, 128), ylim=(-0.6, len(bars) - 0.4))
    panel.set_yticks(list(reversed(range(len(bars)))), list(bars), fontsize=8.5)
    panel.set_xticks([])
    plain(panel, 'time of that part, of 100 % before (CPU, 2 threads)')
    panel.spines['bottom'].set_visible(False)
    panel.tick_params(axis='y', length=0)
