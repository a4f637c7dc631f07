"""Decoder time and operations against r, n and k: the paper's Figures 5, 6, 9 and 10 as measured here."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from experiments.figures import figure
from experiments.tables import markdown_table
from mmprune3d.layers.key_pruning import make_pruner
from mmprune3d.measure.timing import interleaved
from mmprune3d.pruning.tggbc import TgGBCPlan

from .benchmark import ROWS, Decoder, Row
from .cost import cross_attention_flops

SHARES = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 0.95)
QUERIES = (25, 100, 175, 300, 500, 700, 900)
LABELS = {'r': 'r, keys removed in total', 'n': 'n, pruning layers', 'k': 'k, queries that score'}


def variations(row: Row) -> dict[str, list[TgGBCPlan]]:
    """Plans that differ from the row's in one setting."""
    return {
        'r': [replace(row.plan, r=int(share * row.keys)) for share in SHARES],
        'n': [replace(row.plan, n=n) for n in range(1, row.layers)],
        'k': [replace(row.plan, k=k) for k in QUERIES if k <= row.queries],
    }


@torch.inference_mode()
def measure(name: str, repeats: int = 5, device: str = 'cpu', dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """Times of one row of `ROWS` over r, n and k, all in one run with the unpruned decoder.

    Returns:
        ``row``, ``baseline`` (ms of the unpruned decoder with fused attention), and per setting in ``points`` its
        value, ``ms``, and ``gflops`` of the cross-attention by Eq. 23.
    """
    row = ROWS[name]
    model = Decoder(row).to(device=device, dtype=dtype)
    calls, plans = {'baseline': model.stock_fused}, {}
    for setting, varied in variations(row).items():
        for plan in varied:
            key = f'{setting}={getattr(plan, setting)}'
            plans[key] = (setting, plan)
            calls[key] = lambda plan=plan: model.fused(make_pruner(plan, row.layers))
    times = interleaved(calls, repeats, device)
    points: dict[str, list[dict[str, float]]] = {setting: [] for setting in LABELS}
    for key, (setting, plan) in plans.items():
        flops = cross_attention_flops(plan, row.keys, row.queries, row.width, row.heads, row.layers)[1]
        points[setting].append({'value': getattr(plan, setting), 'ms': times[key], 'gflops': flops / 1e9})
    return {'row': name, 'baseline': times['baseline'], 'points': points}


def markdown(results: Iterable[dict[str, Any]]) -> str:
    """A table per row and setting."""
    lines = []
    for result in results:
        for setting, points in result['points'].items():
            lines += ['', f'{result["row"]}, unpruned {result["baseline"]:.1f} ms', '']
            values = [point['value'] for point in points]
            ms = [f'{point["ms"]:.1f}' for point in points]
            gflops = [f'{point["gflops"]:.2f}' for point in points]
            lines += markdown_table([setting, *values], [['ms', *ms], ['GFLOPs, Eq. 23', *gflops]])
    return '\n'.join(lines)


def plot(result: dict[str, Any], folder: Path) -> Path:
    """Draws time and operations against r, n and k into `folder`; returns the file."""
    everything = [point for points in result['points'].values() for point in points]
    top = 1.12 * max(result['baseline'], *(point['ms'] for point in everything))
    most = 1.12 * max(point['gflops'] for point in everything)
    path = folder / f'{result["row"]}.png'
    with figure(path, 13, 3.6, dpi=110) as made:
        axes = made.subplots(1, 3, sharey=True)
        for axis, (setting, points) in zip(axes, result['points'].items(), strict=True):
            values = [point['value'] for point in points]
            axis.plot(values, [point['ms'] for point in points], 'o-', color='#1f6f8b', label='time')
            axis.axhline(result['baseline'], color='0.4', linestyle='--', label='unpruned, fused attention')
            axis.set(xlabel=LABELS[setting], ylim=(0, top))
            flops = axis.twinx()
            gflops = [point['gflops'] for point in points]
            flops.plot(values, gflops, 's:', color='#d1603d', label='operations (Eq. 23)')
            flops.set_ylim(0, most)
            axis.grid(alpha=0.3)
        axes[0].set_ylabel('decoder and heads (ms)')
        flops.set_ylabel('cross-attention (GFLOPs)')
        handles = [*axes[-1].get_lines(), *flops.get_lines()]
        axes[0].legend(handles=handles, labels=[handle.get_label() for handle in handles], fontsize=8, loc='lower left')
        made.suptitle(result['row'])
    return path
