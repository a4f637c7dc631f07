"""How tokens halt: gates before the first two blocks score them; halted ones go to the bird's-eye view as they are."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes

from .style import AFTER, BEFORE, GONE, INK, arrow, bare, box, canvas, measured, plain, write

SPARSITY = 0.82


def draw(path: Path) -> None:
    """Writes the figure; tokens per layer and times are those of a committed benchmark."""
    row = next(row for row in measured('backbone')['rows'] if row['sparsity'] == SPARSITY)
    figure, panels = canvas(11.6, 3.3, ncols=2, gridspec_kw={'width_ratios': [1.75, 1]})
    _network(panels[0])
    _layers(panels[1], row)
    write(figure, path)


def _network(panel: Axes) -> None:
    box(panel, (0, 1.5, 1.0, 0.9), 'pillars\nas tokens', '#eef1f5')
    for index, (x, name) in enumerate(((1.5, 'gate 1\nU-Net'), (4.1, 'gate 2\nlinear'))):
        box(panel, (x, 1.5, 0.95, 0.9), name, '#e9d7ef')
        arrow(panel, (x + 0.48, 1.45), (x + 0.48, 0.78), BEFORE)
        panel.text(x + 0.58, 1.1, 'halted' if index else 'halted: features as they are', fontsize=8.5, color='#666666')
    for x, name in ((2.95, 'block 1'), (5.55, 'block 2'), (6.65, 'block 3'), (7.75, 'block 4')):
        box(panel, (x, 1.5, 0.85, 0.9), name, '#fdf0d5')
    for start, end, width in ((1.0, 1.5, 7), (2.45, 2.95, 3.4), (3.8, 4.1, 3.4), (5.05, 5.55, 2), (6.4, 6.65, 2)):
        _flow(panel, start, end, width)
    _flow(panel, 7.5, 7.75, 2)
    box(panel, (1.5, 0.25, 7.1, 0.5), "bird's-eye view: all tokens, halted ones too → convolutions, head", '#e3efe6')
    arrow(panel, (8.17, 1.45), (8.17, 0.78), AFTER)
    panel.text(5.05, 2.62, 'attention for the tokens that are left', fontsize=8.5, color=AFTER, ha='center')
    panel.set(xlim=(-0.1, 8.7), ylim=(0.1, 2.85))
    bare(panel, 'tokens with low scores leave early, and stay on the map')


def _flow(panel: Axes, start: float, end: float, width: float) -> None:
    panel.plot([start + 0.03, end - 0.03], [1.95, 1.95], color=AFTER, lw=width, solid_capstyle='butt')


def _layers(panel: Axes, row: dict) -> None:
    layers = range(1, 1 + len(row['live']))
    panel.bar(layers, [row['tokens']] * len(row['live']), color=GONE, width=0.75, label='halted')
    panel.bar(layers, row['live'], color=AFTER, width=0.75, label='computed')
    for layer, live in zip(layers, row['live']):
        panel.text(layer, live + 350, f'{live}', ha='center', fontsize=7.5, color=INK)
    before, after = row['unhalted_ms']['sra'], row['ms']['sra']
    panel.set(yticks=[], ylim=(0, 1.2 * row['tokens']), xticks=list(layers))
    panel.set_xlabel(f'attention layer ({row["tokens"]} tokens)', fontsize=9)
    panel.legend(frameon=False, fontsize=8.5, ncols=2, loc='upper center')
    plain(panel, f'attention of SST: {before:.0f} → {after:.0f} ms')
    panel.spines['left'].set_visible(False)
