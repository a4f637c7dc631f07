"""Tensors in lists, tuples and dicts: one way to change or to list them, on top of torch's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map

# torch's module is private by name only: torch.func and torch.export stand on it, and it is in every version since 1.8.
# What it does not open are classes that it does not know, among them subclasses of dict and list: they are passed on as
# they are. So are OpenMMLab's data elements (BaseDataElement, InstanceData): a sample is annotations with boxes, masks
# and meta data of which some must not be changed, and it has methods of its own to move or convert it.


def map_tensors(tree: Any, change: Callable[[Tensor], Any]) -> Any:
    """`tree` with every tensor replaced by what `change` makes of it; of sparse tensors, the features.

    Args:
        tree: Tensors in lists, tuples (named ones too) and dicts, nested as they like. Everything else is passed on.
        change: From a tensor to what replaces it.
    """

    def changed(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return change(leaf)
        if is_sparse(leaf):
            return leaf.replace_feature(change(leaf.features))
        return leaf

    return tree_map(changed, tree)


def tensors_in(tree: Any) -> Iterator[Tensor]:
    """Every floating-point tensor of `tree`, which is as for `map_tensors`; of sparse tensors, the features."""
    for leaf in tree_flatten(tree)[0]:
        values = leaf.features if is_sparse(leaf) else leaf
        if isinstance(values, Tensor) and values.is_floating_point():
            yield values


def is_sparse(value: Any) -> bool:
    """Whether `value` is a sparse tensor of spconv or of mmcv."""
    return hasattr(value, 'replace_feature') and isinstance(value.features, Tensor)
