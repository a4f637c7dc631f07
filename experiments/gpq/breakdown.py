"""Operations and times of the parts of a decoder: operations by arithmetic, times by ONNX Runtime's profile."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from mmprune3d.export.graph import shapes_of

if TYPE_CHECKING:
    from onnx import ModelProto

    from .models import Row

SCOPE = 'pkg.torch.onnx.name_scopes'
"""Metadata of a node in which torch's exporter names the modules that it comes from."""
SUFFIX = '_kernel_time'
"""How the event of a node's computation ends in ONNX Runtime's profile."""
PARTS = {
    'self': 'self-attention',
    'cross': 'cross-attention',
    'keys': 'K, V of the keys',
    'ffn': 'FFN',
    'heads': 'heads',
    'positions': 'key positions',
    'rest': 'norms, rest',
}
"""Parts of a decoder or a head, in the order of the tables. `cross` depends on the queries: their projection, scores,
weighted sum and output; `keys` costs the same for any number of queries. Only whole heads have `positions`."""
MODULES = (
    ('ffns', 'ffn'),
    ('branch', 'heads'),
    ('position_encoder', 'positions'),
    ('adapt_pos3d', 'positions'),
    ('input_proj', 'keys'),
    ('attentions.0', 'self'),
    ('attentions.1', 'cross'),
)
"""(piece of a module name, part that the module belongs to); the first that fits counts."""

LAYOUT = frozenset({'Reshape', 'Transpose', 'Squeeze', 'Unsqueeze'})
"""Operators that, outside of all modules, belong to the part that makes their input."""


def decoder_flops(row: Row, queries: int, lean: bool = False) -> dict[str, float]:
    """GFLOPs of a decoder and the heads of its last layer: products only, a multiply-add as two.

    Args:
        row: Sizes of the decoder.
        queries: N_q.
        lean: Whether the first self-attention is left out, as in ``LeanDecoder`` (if there is no memory).

    Returns:
        GFLOPs by part of `PARTS`, without parts that have none, and ``total``.
    """
    square, attended = 2 * row.width**2, queries + row.memory
    own = 2 * (queries + attended) * square + 4 * queries * attended * row.width
    flops = {
        'self': own * (row.layers - (lean and not row.memory)),
        'cross': row.layers * (2 * queries * square + 4 * queries * row.keys * row.width),
        'keys': row.layers * 2 * row.keys * square,
        'ffn': row.layers * 4 * queries * row.width * row.feedforward,
        'heads': queries * (4 * square + 2 * row.width * (row.classes + 10)),
    }
    return {name: value / 1e9 for name, value in {**flops, 'total': sum(flops.values())}.items()}


def head_flops(row: Row, queries: int, lean: bool = False) -> dict[str, float]:
    """GFLOPs of a whole head: the projection of the features counts as `keys`, that of the queries as `rest`.

    Args:
        row: Sizes of the head.
        queries: N_q.
        lean: See `decoder_flops`.
    """
    width, flops = row.width, decoder_flops(row, queries, lean)
    rays = 2 * 9 * row.keys
    embeddings = 2 * row.keys * 4 * width * (3 * row.depths + 3 * width // 2 + 2 * width)
    more = {'keys': 2 * row.keys * width**2, 'positions': rays + embeddings, 'rest': 2 * queries * width**2 * 5 // 2}
    for name, value in more.items():
        flops[name] = flops.get(name, 0.0) + value / 1e9
        flops['total'] += value / 1e9
    return flops


def part_by_shape(shape: Sequence[int | None], keys: int, cells: tuple[int, int] | None = None) -> str | None:
    """Part of a node outside of all modules, by the shape of its output, or None: tensors of keys have N_k rows."""
    if cells is not None and tuple(shape[-2:]) == cells:
        return 'positions'
    return 'keys' if keys in shape else None


def label(model: ModelProto, queries: int, keys: int, cells: tuple[int, int] | None = None) -> None:
    """Names every node ``part/number``, in place: ONNX Runtime keeps names when it fuses nodes.

    Args:
        model: The model as torch exported it, with the scopes of its nodes and the shapes of tensors.
        queries: N_q; must differ from N_k and from C / heads.
        keys: N_k.
        cells: (H, W) of the feature maps of a whole head, or None for a decoder.
    """
    shapes, parts = shapes_of(model), {'img_feats': 'keys'}
    for index, node in enumerate(model.graph.node):
        scope = next((entry.value for entry in node.metadata_props if entry.key == SCOPE), '')
        part = next((part for piece, part in MODULES if piece in scope), None)
        shape = shapes.get(node.output[0], ())
        is_map = len(shape) == 4 and shape[-2:] == (queries, keys)
        if part == 'cross' and keys in shape and not is_map:
            part = 'keys'
        if part is None and node.op_type in LAYOUT:
            part = parts.get(node.input[0])
        parts[node.output[0]] = part = part or part_by_shape(shape, keys, cells) or 'rest'
        node.name = f'{part}/{index}'


def profile(session: Any, feeds: dict[str, Any], repeats: int, model: ModelProto, keys: int) -> dict[str, float]:
    """Milliseconds per part of one run: the sum of its nodes' medians.

    Args:
        session: A session of the labelled model that writes a profile.
        feeds: Inputs by name.
        repeats: Runs that count; one more warms up.
        model: The labelled model, see `label`. ONNX Runtime renames convolutions after their outputs and adds nodes;
            the parts of these are found by shape.
        keys: N_k.
    """
    for _ in range(repeats + 1):
        session.run(None, feeds)
    file = Path(session.end_profiling())
    events = json.loads(file.read_text())
    file.unlink()
    made_by = {name: node.name for node in model.graph.node for name in node.output}
    times: dict[tuple[str, str], list[float]] = defaultdict(list)
    for event in events:
        if event.get('cat') == 'Node' and event['name'].endswith(SUFFIX):
            name = event['name'].removesuffix(SUFFIX).removesuffix('_nchwc')
            part = made_by.get(name, name).partition('/')[0]
            if part not in PARTS:
                shapes = [shape for entry in event['args']['output_type_shape'] for shape in entry.values()]
                part = next((found for shape in shapes if (found := part_by_shape(shape, keys))), 'rest')
            times[part, event['args']['node_index']].append(event['dur'] / 1e3)
    spent = dict.fromkeys(PARTS, 0.0)
    for (part, _), values in times.items():
        spent[part] += median(values[1:])
    return spent
