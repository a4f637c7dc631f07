"""Time that halted tokens save: SST's attention blocks, backbone and detector at several sparsities, two baselines.

Columns: halting, our unhalted detector, and the unhalted one with the published attention scheme (`official_sst`).
Sparsity is the mean over the attention layers of the share of halted tokens. Weights are random, and which tokens halt
is prescribed (see `token_layouts`); heads are set to find as many candidate boxes at each sparsity. Halting modules,
planning windows anew, the map and its convolutions count as backbone; voxelization, point encoder, neck, head and
decoding as detector.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments.tables import markdown_table
from mmprune3d.measure.timing import interleaved

from .models import (
    ROWS,
    Detectors,
    Row,
    calibrate,
    heatmap_biases,
    make_detectors,
    make_layout,
    run_blocks,
    set_heatmap_biases,
    set_sparsity,
    steer,
)
from .official_sst import OfficialBlocks
from .token_layouts import TokenLayout, priority

SPARSITIES = (0.0, 0.75, 0.82, 0.89, 0.95)
PARTS = ('sra', 'backbone', 'detector')
BASELINES = {'unhalted_ms': 'ours', 'official_style_ms': 'official'}
"""Key of a baseline's times -> its name in the tables."""
KEPT = (1.0, 0.1)
"""Shares of tokens on which attention is compared with the published scheme."""
MOST_DIFFERENCE = 1e-3
"""Between features of both schemes, which are of the order of 1 behind a norm, after all blocks in float32."""
WINDOW = 12


def rows_with(points: Path | None) -> list[str]:
    """Names of the rows that can be measured: without a file of points, those of rendered scans."""
    return [name for name, row in ROWS.items() if row.rendered or points]


@torch.inference_mode()
def measure(
    row: str,
    repeats: int = 5,
    tokens: int = 20000,
    window: int | None = WINDOW,
    sparsities: Sequence[float] = SPARSITIES,
    seed: int = 1,
    points: Path | None = None,
    dims: int = 5,
    device: str = 'cpu',
) -> list[dict[str, Any]]:
    """The rows of one layout.

    Args:
        row: Of `ROWS`.
        repeats: Timed rounds, in which all ways take turns, part by part; one more warms up.
        tokens: Pillars wanted of a rendered scan.
        window: Cells along the side of a window; None: as in the layout's config.
        sparsities: Mean shares of halted tokens, a row each.
        seed: Of the rendered scene.
        points: File of points of a real frame.
        dims: Numbers per point in it.
        device: 'cpu' or 'cuda'.

    Returns:
        For each sparsity: ``layout``, ``origin``, ``tokens``, ``window``, ``sparsity``, ``live`` (tokens in each
        attention layer), the median milliseconds ``ms``, ``unhalted_ms``, ``official_style_ms`` of each part and
        ``convolutions_ms``. The first has ``attention`` as well, see `compare_attention`.

    Raises:
        ValueError: If there is no such row, or a real frame is asked for without a file.
    """
    if row not in ROWS:
        raise ValueError(f'no row {row}; valid are {", ".join(ROWS)}')
    layout = make_layout(ROWS[row], tokens, seed, points, dims)
    with torch.inference_mode(False):  # parameters of inference mode cannot be used outside of it
        detectors = make_detectors(ROWS[row], layout, window, device)
    return measure_layout(row, ROWS[row], layout, detectors, repeats, sparsities)


def measure_layout(
    name: str, row: Row, layout: TokenLayout, detectors: Detectors, repeats: int, sparsities: Sequence[float]
) -> list[dict[str, Any]]:
    """`measure` for detectors that are there already."""
    halting, device = detectors.halting.backbone, detectors.tokens.feats.device.type
    steer(halting, layout, row.priority)
    records, biases, own = {}, {}, [bias.clone() for bias in heatmap_biases(detectors.halting)]
    inputs = detectors.halting.data_preprocessor(detectors.sample)['inputs']
    for sparsity in sparsities:
        set_sparsity(halting, sparsity)
        records[sparsity] = halting.forward_with_record(detectors.tokens, path='sparse')[1]
        biases[sparsity] = calibrate(detectors.halting, inputs)
    times = {part: interleaved(calls, repeats, device) for part, calls in _calls(detectors, records, biases).items()}
    set_heatmap_biases(detectors.halting, own)
    results = []
    for sparsity, record in records.items():
        result = {'layout': name, 'origin': layout.origin, 'tokens': len(detectors.tokens.coords)}
        result |= {'window': round(detectors.area**0.5), 'sparsity': sparsity}
        result |= {'live': record.live().sum(dim=1).tolist()}
        result |= {'ms': {part: times[part][sparsity] for part in PARTS}}
        result |= {key: {part: times[part][key] for part in PARTS} for key in BASELINES}
        results.append(result | {'convolutions_ms': times['backbone']['convolutions_ms']})
    scores = priority(layout, row.priority).to(device)
    results[0]['attention'] = compare_attention(detectors, scores, repeats)
    return results


def _calls(
    detectors: Detectors, records: Mapping[float, Any], biases: Mapping[float, Sequence[Tensor]]
) -> dict[str, dict[Any, Callable[[], object]]]:
    """Part -> what is to be timed, by sparsity or by the key of a baseline."""
    fast, halting, official, tokens = detectors.fast, detectors.halting, detectors.official, detectors.tokens
    feats, blocks = fast.backbone.embed(tokens), official.backbone.blocks
    calls: dict[str, dict[Any, Callable[[], object]]] = {
        'sra': {
            'unhalted_ms': partial(run_blocks, fast.backbone, tokens),
            'official_style_ms': partial(blocks, feats, tokens.window_ids, tokens.positions),
        },
        'backbone': {
            'unhalted_ms': partial(fast.backbone, tokens),
            'official_style_ms': partial(official.backbone, tokens),
            'convolutions_ms': partial(fast.backbone.to_map, feats, tokens.coords, tokens.batch_size),
        },
        'detector': {
            'unhalted_ms': partial(fast.test_step, detectors.sample),
            'official_style_ms': partial(official.test_step, detectors.sample),
        },
    }

    def at(sparsity: float, call: Callable[[], object]) -> object:
        set_sparsity(halting.backbone, sparsity)
        set_heatmap_biases(halting, biases[sparsity])
        return call()

    for sparsity, record in records.items():
        calls['sra'][sparsity] = partial(run_blocks, halting.backbone, tokens, record)
        calls['backbone'][sparsity] = partial(at, sparsity, partial(halting.backbone, tokens))
        calls['detector'][sparsity] = partial(at, sparsity, partial(halting.test_step, detectors.sample))
    return calls


def compare_attention(
    detectors: Detectors, scores: Tensor, repeats: int, kept: Sequence[float] = KEPT
) -> list[dict[str, Any]]:
    """All attention blocks, unhalted and on a part of the tokens, ours against the published scheme.

    Args:
        detectors: The models.
        scores: [ny, nx], the tokens with the highest ones stay.
        repeats: Timed rounds.
        kept: Shares of tokens.

    Returns:
        For each share ``tokens``, ``difference`` (largest, of the features behind the last block) and ``ms`` by way:
        'ours', 'official' and 'with_maps' (official, returning attention maps as the published code does).

    Raises:
        RuntimeError: If the schemes do not agree.
    """
    backbone, everything = detectors.fast.backbone, detectors.tokens
    official = detectors.official.backbone.blocks
    with_maps = OfficialBlocks(backbone, detectors.area, need_weights=True).to(scores.device).eval()
    order = scores[everything.coords[:, 2], everything.coords[:, 3]].argsort(descending=True, stable=True)
    results = []
    for share in kept:
        tokens = everything.select(order[: round(share * len(order))].sort().values)
        inputs = (backbone.embed(tokens), tokens.window_ids, tokens.positions)
        calls = {
            'ours': partial(run_blocks, backbone, tokens),
            'official': partial(official, *inputs),
            'with_maps': partial(with_maps, *inputs),
        }
        difference = float((calls['ours']() - calls['official']()).abs().max())
        if not difference <= MOST_DIFFERENCE:
            raise RuntimeError(f'our attention and the published scheme differ by {difference}')
        times = interleaved(calls, repeats, scores.device.type)
        results.append({'tokens': len(tokens.coords), 'difference': difference, 'ms': times})
    return results


def markdown(results: Sequence[Mapping[str, Any]]) -> str:
    """The table of the sparsities, then that of the attention schemes."""
    return '\n'.join([*_sparsities(results), '', *_attention(results)])


def _sparsities(results: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    columns = [head for part in PARTS for head in (f'{part} (ms)', *(f'x {name}' for name in BASELINES.values()))]
    heads = ('layout', 'tokens', 'window', 'sparsity', *columns, 'backbone: x ours, ceiling')
    rows = (cells for result in results for cells in (*_unhalted(result), _halting(result)))
    return markdown_table(heads, rows, 'lrrl')


def _unhalted(result: Mapping[str, Any]) -> Iterator[list[object]]:
    """Rows of the baselines, before the first row of a layout."""
    for key, name in BASELINES.items() if 'attention' in result else ():
        times = [cell for part in PARTS for cell in (f'{result[key][part]:.0f}', *('' for _ in BASELINES))]
        yield [*_start(result), f'unhalted, {name}', *times, '']


def _halting(result: Mapping[str, Any]) -> list[object]:
    cells: list[str] = []
    for part in PARTS:
        took = result['ms'][part]
        cells += [f'{took:.0f}', *(f'{result[key][part] / took:.2f}' for key in BASELINES)]
    ceiling = result['unhalted_ms']['backbone'] / result['convolutions_ms']
    return [*_start(result), f'{result["sparsity"]:.2f}', *cells, f'{ceiling:.2f}']


def _start(result: Mapping[str, Any]) -> tuple[object, ...]:
    return result['layout'], result['tokens'], result['window']


def _attention(results: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    times = ('ours (ms)', 'official (ms)', 'x', 'with maps (ms)')
    heads = ('layout', 'window', 'tokens in attention', *times, 'difference')
    rows = (
        (result['layout'], result['window'], found['tokens'], *_attention_cells(found))
        for result in results
        for found in result.get('attention', ())
    )
    return markdown_table(heads, rows)


def _attention_cells(found: Mapping[str, Any]) -> list[str]:
    ms = found['ms']
    ratio = ms['official'] / ms['ours']
    times = f'{ms["ours"]:.1f}', f'{ms["official"]:.1f}', f'{ratio:.2f}', f'{ms["with_maps"]:.1f}'
    return [*times, f'{found["difference"]:.1e}']
