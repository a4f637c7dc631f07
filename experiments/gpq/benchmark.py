"""Time that removed queries save: ONNX Runtime with 900, 300 and 150 queries (GPQ, section 4.3.2, Table 3).

The paper measured on a Jetson Nano; this measures on a CPU, with random weights and features, and says where the time
goes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from experiments.tables import markdown_table
from mmprune3d.export.graph import check_static, optional, tidied
from mmprune3d.export.onnx import OPSET, TOLERANCES
from mmprune3d.measure.report import versions_of
from mmprune3d.measure.timing import interleaved

from .breakdown import PARTS, decoder_flops, head_flops, label, profile
from .models import Pair, Row, make_pair

if TYPE_CHECKING:
    from onnx import ModelProto

WAYS = {
    'torch': 'PyTorch',
    'plain': 'plain export',
    'lean': 'lean export',
    'rig': 'lean, fixed cameras',
}
"""Ways to run a row, in the order of the tables; all but the first run in ONNX Runtime, the last needs a whole head."""
ROWS: dict[str, Row] = {
    'petr_800x320': Row((20, 50)),
    'focalpetr_704x256': Row((16, 44)),
    'streampetr_704x256': Row((16, 44), memory=768),
    'petr_800x320_head': Row((20, 50), whole_head=True),
}
"""Rows by name. StreamPETR's self-attention has 1668 keys with 900 queries: 768 are its memory, which stays."""
QUERIES = (900, 300, 150)


def export(module: nn.Module, inputs: dict[str, Tensor], row: Row, queries: int) -> ModelProto:
    """The module as an ONNX model with static shapes, its nodes named by part (see `label`).

    Args:
        module: A module of a ``Pair``.
        inputs: Its arguments, by name.
        row: Sizes of the row.
        queries: N_q.
    """
    optional('onnx'), optional('onnxscript')
    with torch.no_grad():
        program = torch.onnx.export(
            module,
            kwargs=inputs,
            dynamo=True,
            opset_version=OPSET,
            input_names=list(inputs),
            output_names=list(TOLERANCES),
            verbose=False,
        )
    model = program.model_proto  # made anew each time that it is asked for
    label(model, queries, row.keys, row.cells if row.whole_head else None)
    model = tidied(model, {})
    check_static(model)
    return model


def with_constant(model: ModelProto, name: str, value: Tensor) -> ModelProto:
    """A copy of a model whose input `name` is a constant: what depends on nothing else is computed at loading time."""
    onnx = optional('onnx')
    model = onnx.ModelProto.FromString(model.SerializeToString())
    (position,) = [index for index, info in enumerate(model.graph.input) if info.name == name]
    del model.graph.input[position]
    model.graph.initializer.append(onnx.numpy_helper.from_array(value.numpy(), name))
    return model


def make_session(model: ModelProto, prefix: Path | None = None) -> Any:
    """An ONNX Runtime session on the CPU with as many threads as torch has.

    Args:
        model: The model.
        prefix: Prefix of the files that a profile is written to, or None: no profile.
    """
    runtime = optional('onnxruntime')
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # threads that wait for work would slow the other sessions down
    options.add_session_config_entry('session.force_spinning_stop', '1')
    if prefix is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(prefix)
    return runtime.InferenceSession(model.SerializeToString(), options, providers=['CPUExecutionProvider'])


def differences(found: Iterable[np.ndarray], expected: dict[str, Tensor]) -> dict[str, float]:
    """Largest absolute difference between ONNX Runtime and PyTorch, per output.

    Raises:
        RuntimeError: If one exceeds its tolerance.
    """
    result = {
        name: float(np.abs(array - tensor.numpy()).max()) for array, (name, tensor) in zip(found, expected.items())
    }
    if any(not value <= TOLERANCES[name] for name, value in result.items()):
        raise RuntimeError(f'ONNX Runtime and PyTorch differ: {result} (allowed: {TOLERANCES})')
    return result


def exports(pair: Pair, row: Row, queries: int) -> dict[str, ModelProto]:
    """The exported models, by way (see `WAYS`)."""
    models = {way: export(getattr(pair, way), pair.inputs, row, queries) for way in ('plain', 'lean')}
    if row.whole_head:
        models['rig'] = with_constant(models['lean'], 'img2lidar', pair.inputs['img2lidar'])
    return models


def feeds_of(model: ModelProto, inputs: dict[str, Tensor]) -> dict[str, np.ndarray]:
    """Those of `inputs` that a model takes."""
    return {info.name: inputs[info.name].numpy() for info in model.graph.input}


def flops_of(row: Row, queries: int) -> dict[str, dict[str, float]]:
    """GFLOPs by way and part, as PyTorch would run it; ONNX Runtime computes what is constant only once."""
    count = head_flops if row.whole_head else decoder_flops
    return {way: count(row, queries, way == 'lean') for way in ('plain', 'lean')}


@torch.inference_mode()
def measure(name: str, repeats: int = 5, queries: Iterable[int] = QUERIES) -> dict[str, Any]:
    """One row of the table: all ways with all numbers of queries take turns.

    Args:
        name: In `ROWS`.
        repeats: Timed rounds; the median counts.
        queries: Numbers of queries N_q.

    Returns:
        ``row``, ``shape``, ``queries`` (largest first), and by way and N_q (a string, as in JSON): ``ms``,
        ``difference`` (between ONNX Runtime and PyTorch, by output), ``gflops`` and ``part_ms`` (by part of `PARTS`).

    Raises:
        RuntimeError: If ONNX Runtime and PyTorch do not agree.
        ValueError: If there is no such row.
    """
    if name not in ROWS:
        raise ValueError(f'no row {name}; valid are {", ".join(ROWS)}')
    row, counts = ROWS[name], sorted(set(queries), reverse=True)
    result = {'row': name, 'shape': {**asdict(row), 'keys': row.keys}, 'queries': counts}
    result |= {key: defaultdict(dict) for key in ('ms', 'difference', 'gflops', 'part_ms')}
    calls: dict[tuple[str, int], Callable[[], object]] = {}
    models: dict[tuple[str, int], tuple[ModelProto, dict[str, np.ndarray]]] = {}
    for count in counts:
        with torch.inference_mode(False):  # tensors of inference mode cannot be exported
            pair = make_pair(row, count)
            made = exports(pair, row, count)
        calls['torch', count] = partial(pair.plain, **pair.inputs)
        expected = pair.plain(**pair.inputs)
        for way, model in made.items():
            session, feeds = make_session(model), feeds_of(model, pair.inputs)
            result['difference'][way][str(count)] = differences(session.run(list(TOLERANCES), feeds), expected)
            calls[way, count], models[way, count] = partial(session.run, None, feeds), (model, feeds)
        for way, flops in flops_of(row, count).items():
            result['gflops'][way][str(count)] = flops
    for (way, count), value in interleaved(calls, repeats, 'cpu').items():
        result['ms'][way][str(count)] = value
    for (way, count), (model, feeds) in models.items():
        result['part_ms'][way][str(count)] = parts_of(model, feeds, row.keys, repeats)
    return result


def parts_of(model: ModelProto, feeds: dict[str, np.ndarray], keys: int, repeats: int) -> dict[str, float]:
    """Milliseconds of a model by part; see `profile`."""
    with TemporaryDirectory() as folder:
        return profile(make_session(model, Path(folder) / 'profile'), feeds, repeats, model, keys)


def versions() -> dict[str, str]:
    """Versions of the packages that only this benchmark needs."""
    return versions_of('onnx', 'onnxscript', 'onnxruntime')


def markdown(results: list[dict[str, Any]]) -> str:
    """The rows, measured or read from the JSON file, as Markdown: milliseconds, then operations and time by part."""
    return '\n'.join([*_times(results), '', *_parts(results)])


def _times(results: list[dict[str, Any]]) -> Iterator[str]:
    counts = [str(count) for count in results[0]['queries']]
    heads = ('row', 'N_k', '', *counts, *(f'less with {count}' for count in counts[1:]))
    rows = (
        (result['row'], result['shape']['keys'], WAYS[way], *_time_cells(times, counts))
        for result in results
        for way, times in result['ms'].items()
    )
    return markdown_table(heads, rows, 'lrl')


def _time_cells(times: dict[str, float], counts: list[str]) -> list[str]:
    less = [f'{100 * (1 - times[count] / times[counts[0]]):.1f} %' for count in counts[1:]]
    return [f'{times[count]:.0f}' for count in counts] + less


def _parts(results: list[dict[str, Any]]) -> Iterator[str]:
    heads = ('row', 'N_q', '', *PARTS.values(), 'sum')
    rows = (
        (result['row'], count, f'{unit}, {WAYS[way]}', *_part_cells(by_count[str(count)], digits))
        for result in results
        for count in sorted({result['queries'][0], result['queries'][-1]}, reverse=True)
        for what, unit, digits in (('gflops', 'GFLOPs', 2), ('part_ms', 'ms', 1))
        for way, by_count in result[what].items()
    )
    return markdown_table(heads, rows, 'lrl')


def _part_cells(spent: dict[str, float], digits: int) -> list[str]:
    values = [spent.get(part, 0.0) for part in PARTS]
    return [f'{value:.{digits}f}' for value in (*values, sum(values))]
