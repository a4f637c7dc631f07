"""Floating point operations of fusion detectors, sparse convolutions included, as a function of their widths."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.modules.conv import _ConvTransposeNd

from mmprune3d.layers.slim import is_depthwise, is_sparse_conv, weight_layout
from mmprune3d.ops.sparse_rulebook import strided_rulebook, submanifold_rulebook

from .flops import count_flops


@dataclass(frozen=True)
class LayerCosts:
    """FLOPs of one call of a model, by the weights that they are done with.

    Attributes:
        per_element: Name of a weight -> FLOPs per element of it; they do not change with the width of the layer.
        shapes: Name of a weight -> its shape.
        fixed: FLOPs that belong to no layer, such as those of attention.
    """

    per_element: Mapping[str, float]
    shapes: Mapping[str, tuple[int, ...]]
    fixed: float = 0.0

    @property
    def total(self) -> float:
        """FLOPs of the whole call."""
        return self.fixed + sum(each * math.prod(self.shapes[name]) for name, each in self.per_element.items())


def count_costs(model: nn.Module, call: Callable[[], object]) -> LayerCosts:
    """Counts the FLOPs (a multiply-add counts as two) of one `call`, by weight.

    The operations of a convolution or linear layer are 2 * uses * elements of its weight, and `uses` does not change
    with its width: output positions (input positions of a transposed convolution), tokens, or the mean number of pairs
    of sites per kernel cell of a sparse convolution, which depends on the sample. What is left of the total that torch
    counts (attention, and matrix products of other kinds) is `LayerCosts.fixed`. Element-wise work does not count, and
    what has no counter is named in the log (see `measure.flops`).

    Args:
        model: The model, in evaluation mode.
        call: Runs the model on one recorded sample.

    Raises:
        ValueError: If a sparse convolution is transposed or inverse, or no layer ran.
    """
    uses: dict[str, float] = {}

    def watch(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple, output: Any) -> None:
            uses[name] = uses.get(name, 0.0) + _uses(module, args[0], output)

        return hook

    counted = {n: m for n, m in model.named_modules() if weight_layout(m) is not None or is_depthwise(m)}
    sparse = {name: module for name, module in counted.items() if is_sparse_conv(module)}
    handles = [module.register_forward_hook(watch(name)) for name, module in counted.items()]
    try:
        spent = count_flops(call, sparse)
    finally:
        for handle in handles:
            handle.remove()
    if not uses:
        raise ValueError('no convolution or linear layer ran')
    modules = {f'{name}.weight': counted[name] for name in uses}
    per_element = {f'{name}.weight': 2 * count for name, count in uses.items()}
    shapes = {name: tuple(module.weight.shape) for name, module in modules.items()}
    dense = sum(
        per_element[f'{name}.weight'] * math.prod(shapes[f'{name}.weight']) for name in uses if name not in sparse
    )
    by_torch = spent['total'] * 1e9 - sum(spent[name] * 1e9 for name in sparse)
    return LayerCosts(per_element, shapes, fixed=float(round(by_torch - dense)))


def gflops_by_part(costs: LayerCosts, parts: Mapping[str, Iterable[str]]) -> dict[str, float]:
    """GFLOPs (1e9) per part of a model, with `rest` (layers of no part, and what belongs to no layer) and `total`.

    Args:
        costs: What `count_costs` returned.
        parts: Name -> prefixes of modules, for example ``{'camera': ['img_backbone', 'img_neck']}``; they must not
            overlap.
    """
    spent = {name: each * math.prod(costs.shapes[name]) for name, each in costs.per_element.items()}
    counts = {
        part: sum(value for name, value in spent.items() if any(name.startswith(f'{prefix}.') for prefix in prefixes))
        for part, prefixes in parts.items()
    }
    counts |= {'rest': costs.total - sum(counts.values()), 'total': costs.total}
    return {name: value / 1e9 for name, value in counts.items()}


def _uses(module: Any, value: Any, output: Any) -> float:
    """Multiply-adds per element of a layer's weight in one call."""
    if is_sparse_conv(module):
        return _pairs(module, value) / math.prod(module.kernel_size)
    if isinstance(module, nn.Linear):
        return value.numel() / module.in_features
    if isinstance(module, _ConvTransposeNd):
        return value.numel() / module.in_channels
    return output.numel() / module.out_channels


def _pairs(module: Any, value: Any) -> int:
    """Pairs of an input and an output site, over all kernel cells."""
    if module.transposed or module.inverse:
        raise ValueError('transposed and inverse sparse convolutions are not counted')
    where = (value.indices, value.spatial_shape, value.batch_size)
    if module.subm:
        book = submanifold_rulebook(*where, module.kernel_size, module.dilation)
    else:
        book, _, _ = strided_rulebook(*where, module.kernel_size, module.stride, module.padding, module.dilation)
    return sum(len(rows) for rows, _ in book.pairs)
