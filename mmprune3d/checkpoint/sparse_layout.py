"""Detection of the order in which the weights of sparse convolutions are stored.

spconv 2 stores (out, k, k, k, in), spconv 1 and mmcv (k, k, k, in, out). mmdet3d distinguishes them by a version in the
``_metadata`` of the state dict, which is lost in any copy as a plain dict: weights of spconv 2 are then permuted again,
silently if all five sizes are equal. Therefore the shapes decide: that of the tensor itself; if it matches both orders,
those of the other tensors, which come from the same program; and if these are ambiguous too, the metadata.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

SPCONV_2 = 2
"""The version that mmdet3d writes and expects for (out, k, k, k, in)."""


def with_sparse_versions(model: nn.Module, state_dict: Mapping[str, Tensor]) -> dict[str, dict[str, Any]]:
    """Returns the metadata of a state dict with the versions of sparse convolutions that follow from the shapes.

    Args:
        model: Model for the weights; its sparse convolutions have the layout of spconv 2.
        state_dict: Name of each tensor -> tensor, with or without ``_metadata``. It is not modified.

    Returns:
        Name of each module -> its metadata. It is that of `state_dict` for modules that are not sparse convolutions,
        and if no shape distinguishes the two orders.
    """
    metadata = dict(getattr(state_dict, '_metadata', None) or {})
    sparse = dict(_sparse_convolutions(model, state_dict))
    orders = {name: _order(state_dict[f'{name}.weight'].shape, module.weight.shape) for name, module in sparse.items()}
    known = set(orders.values()) - {None}
    common = known.pop() if len(known) == 1 else None
    for name, order in orders.items():
        version = order or common
        if version is not None:
            metadata[name] = {**metadata.get(name, {}), 'version': version}
    return metadata


def _sparse_convolutions(model: nn.Module, state_dict: Mapping[str, Tensor]) -> Iterator[tuple[str, nn.Module]]:
    """Names and modules with 5-dimensional weights of spconv, recognized by the name of their base class."""
    for name, module in model.named_modules():
        weight = module._parameters.get('weight')
        if weight is None or weight.dim() != 5 or f'{name}.weight' not in state_dict:
            continue
        if any(base.__name__ == 'SparseModule' for base in type(module).__mro__):
            yield name, module


def _order(saved: tuple[int, ...], model: tuple[int, ...]) -> int | None:
    """2 for the order of spconv 2, 1 for the older order, None if the shape matches both or neither."""
    new, old = saved == model, saved[-1:] + saved[:-1] == model
    return None if new == old else SPCONV_2 if new else 1
