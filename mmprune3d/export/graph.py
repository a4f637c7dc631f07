"""ONNX graphs for runtimes that plan ahead, such as TensorRT: static shapes, and no TopK that is too large for it."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterator
from types import ModuleType
from typing import TYPE_CHECKING

from mmengine.logging import print_log

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TensorProto

TENSORRT_TOPK = 3840
"""Largest k of a TopK that TensorRT builds."""
DATA_DEPENDENT = frozenset(
    {'NonZero', 'Unique', 'Compress', 'NonMaxSuppression', 'If', 'Loop', 'Scan', 'SequenceMap', 'ConcatFromSequence'}
)
"""Operators whose output shapes, or whose very execution, depend on values. (ONNX has no Sort: it would be a TopK.)"""


def optional(name: str) -> ModuleType:
    """Imports a package that only the export needs.

    Raises:
        ImportError: If it is not installed; the message says what to type.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"export needs {name}. Type: pip install 'mmprune3d[deploy]'") from error


def check_static(model: ModelProto) -> None:
    """Checks that neither shapes nor control flow in a graph depend on the values of its inputs.

    Raises:
        ValueError: If the graph has an operator of `DATA_DEPENDENT`, or a tensor with a dynamic shape.
    """
    used = sorted({node.op_type for node in model.graph.node} & DATA_DEPENDENT)
    if used:
        raise ValueError(f'the graph depends on values: it contains {", ".join(used)}')
    shapes = shapes_of(model)
    names = [name for node in model.graph.node for name in node.output if name]
    unknown = [name for name in names if None in shapes.get(name, (None,))]
    if unknown:
        raise ValueError(f'shapes are not static: {len(unknown)} tensors, the first ones {", ".join(unknown[:3])}')


def shapes_of(model: ModelProto) -> dict[str, tuple[int | None, ...]]:
    """The shape of every tensor of a graph that declares one; None stands for a dynamic size."""
    graph, shapes = model.graph, {}
    for info in (*graph.input, *graph.value_info, *graph.output):
        if info.type.tensor_type.HasField('shape'):
            dims = info.type.tensor_type.shape.dim
            shapes[info.name] = tuple(dim.dim_value if dim.HasField('dim_value') else None for dim in dims)
    return shapes


def topk_sizes(model: ModelProto) -> dict[str, int]:
    """The name and the k of every TopK in a graph.

    Raises:
        ValueError: If a k is computed, which TensorRT does not allow.
    """
    from_bytes = optional('onnx').numpy_helper.to_array
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes = [node for node in model.graph.node if node.op_type == 'TopK']
    computed = [node.name for node in nodes if node.input[1] not in constants]
    if computed:
        raise ValueError(f'k is not a constant in TopK {", ".join(computed)}')
    return {node.name: int(from_bytes(constants[node.input[1]]).item()) for node in nodes}


def warn_large_topk(model: ModelProto, limit: int = TENSORRT_TOPK) -> None:
    """Warns of every TopK whose k is above `limit`, which TensorRT would refuse."""
    for name, k in topk_sizes(model).items():
        if k > limit:
            print_log(
                f'TopK {name} selects {k}, TensorRT stops at {limit}. Use --split-topk, or keep fewer keys after '
                'each pruning layer (a larger r)',
                logger='current',
                level=logging.WARNING,
            )


def split_topk(model: ModelProto, limit: int = TENSORRT_TOPK) -> None:
    """Replaces every TopK with k above `limit` by several smaller ones that find the same elements, in place.

    Each smaller TopK is followed by a ScatterElements that sets the elements it found to minus infinity, so that the
    next one finds others. The elements are those of one TopK, their order may differ.

    Args:
        model: A model with static shapes. The elements to choose from must be finite.
        limit: Largest k that is left as it is.
    """
    sizes, shapes = topk_sizes(model), shapes_of(model)
    nodes: list[NodeProto] = []
    for node in model.graph.node:
        k = sizes.get(node.name, 0) if node.op_type == 'TopK' else 0
        if k <= limit:
            nodes.append(node)
            continue
        count = -(-k // limit)
        parts = [k // count + (part < k % count) for part in range(count)]
        model.graph.initializer.extend(_part_constants(node, parts, shapes[node.input[0]]))
        nodes.extend(_parts(node, parts))
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _attribute(node: NodeProto, name: str, default: int) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == name), default)


def _part_constants(node: NodeProto, parts: list[int], shape: tuple[int, ...]) -> Iterator[TensorProto]:
    """The constants of the parts: the k of each, and the values that overwrite what all parts but the last found."""
    import numpy as np

    from_array = optional('onnx').numpy_helper.from_array
    lowest = np.float32(-np.inf if _attribute(node, 'largest', 1) else np.inf)
    for part, size in enumerate(parts):
        found = list(shape)
        found[_attribute(node, 'axis', -1)] = size
        yield from_array(np.array([size], np.int64), f'{node.name}_k{part}')
        if part + 1 < len(parts):
            yield from_array(np.full(found, lowest), f'{node.name}_lowest{part}')


def _parts(node: NodeProto, parts: list[int]) -> Iterator[NodeProto]:
    make_node = optional('onnx').helper.make_node
    scores, axis = node.input[0], _attribute(node, 'axis', -1)
    for part in range(len(parts)):
        name = f'{node.name}_part{part}'
        topk = make_node('TopK', [scores, f'{node.name}_k{part}'], [f'{name}_values', f'{name}_index'], name)
        topk.attribute.extend(node.attribute)
        yield topk
        if part + 1 < len(parts):
            found = [scores, f'{name}_index', f'{node.name}_lowest{part}']
            scores = f'{name}_rest'
            yield make_node('ScatterElements', found, [scores], f'{name}_hide', axis=axis)
    for output, what in zip(node.output, ('values', 'index')):
        pieces = [f'{node.name}_part{part}_{what}' for part in range(len(parts))]
        yield make_node('Concat', pieces, [output], f'{node.name}_{what}', axis=axis)


def tidied(model: ModelProto, properties: dict[str, str]) -> ModelProto:
    """A copy with shapes for all tensors, `properties` as its metadata, and without the traces that torch leaves.

    torch's exporter attaches to every node the Python lines that it comes from: most of a small file, and the paths of
    whoever exported it. Every TopK sorts, the only kind that TensorRT's parser documents.
    """
    model = optional('onnx').shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    graph = model.graph
    for part in (graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ''
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == 'TopK' and attribute.name == 'sorted':
                attribute.i = 1
    for key, value in properties.items():
        model.metadata_props.add(key=key, value=value)
    return model
