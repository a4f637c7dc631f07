"""Exact versions of spconv's layers: spconv itself on a GPU, :mod:`mmprune3d.ops.sparse_conv` on a CPU.

spconv 2.3.8's build for the CPU loses rows with more than one thread, has no backward pass where torch has no CUDA, and
its maximum over a window starts at 0. The classes `NAMES` of this module are subclasses of spconv's classes of the same
names, with the same parameters, keys and layout; spconv is imported when one of them is used for the first time.
"""

from __future__ import annotations

import sys
from functools import cache
from typing import Any

import torch
from torch import nn

from mmprune3d.ops.sparse_conv import sparse_conv

from .sparse_pool import ExactGlobalMaxPool, ExactMaxPool
from .sparse_sites import Sites, sites_of

_FAMILIES = ('SubMConv', 'SparseConv', 'SparseInverseConv', 'SparseMaxPool')
NAMES = (*(f'{family}{axes}d' for family in _FAMILIES for axes in range(1, 5)), 'SparseGlobalMaxPool')
"""Names of spconv's classes that have an exact version."""
_SPCONV = 'spconv.pytorch'


def __getattr__(name: str) -> Any:
    if name in NAMES:
        return exact_class(name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}; its sparse layers are {", ".join(NAMES)}')


@cache
def exact_class(name: str) -> type[nn.Module]:
    """Returns the exact class for spconv's class `name`, one of ``NAMES``.

    Raises:
        ImportError: If spconv 2 is not installed; the message has the command that installs it.
    """
    try:
        import spconv.pytorch as spconv
    except ImportError as error:
        raise ImportError(
            'sparse convolutions need spconv 2: `pip install spconv-cu120` for a GPU (spconv-cu118 for CUDA 11), '
            '`pip install spconv==2.3.8` for a CPU'
        ) from error
    base = getattr(spconv, name)
    mixin = _mixin(base)
    # The name of an attribute of this module, which __getattr__ finds, so that a whole model can be pickled.
    return type(name, (mixin, base), {'__module__': __name__, '__doc__': mixin.__doc__})


def make_exact(model: nn.Module) -> int:
    """Makes the sparse convolutions and pools of any model exact on a CPU, in place.

    Only the class of each layer changes, if it is one of `NAMES` or a subclass that does not override ``forward``:
    parameters, hooks, state-dict keys and the version in the metadata are kept.

    Args:
        model: Any module, such as a detector with mmdet3d's ``SparseEncoder``.

    Returns:
        Number of layers that were changed; 0 in a second call.

    Raises:
        ValueError: If there is no GPU and the model has layers of spconv without an exact version (transposed
            convolutions, average pools, subclasses with a ``forward`` of their own); nothing is changed then. If there
            is a GPU, such a layer raises the error for features that are on the CPU.
    """
    if _SPCONV not in sys.modules:
        return 0
    left = {name: module for name, module in model.named_modules() if _computes(module) and not _is_exact(module)}
    classes = {name: _exact_version(type(module)) for name, module in left.items() if _covered(module)}
    refused = {name: type(module).__name__ for name, module in left.items() if name not in classes}
    if refused and not torch.cuda.is_available():
        raise ValueError(_refusal(refused))
    for name in refused:
        if _refuse_cpu not in left[name]._forward_pre_hooks.values():
            left[name].register_forward_pre_hook(_refuse_cpu)
    for name, exact in classes.items():
        left[name].__class__ = exact
    return len(classes)


def _refusal(layers: dict[str, str]) -> str:
    found = ', '.join(f'{name} ({kind})' for name, kind in layers.items())
    return (
        f'spconv is wrong or absent on a CPU, and these layers have no exact version: {found}. Valid are '
        f'{", ".join(NAMES)}, and subclasses that do not override forward; run this model on a GPU'
    )


def _refuse_cpu(module: nn.Module, args: tuple) -> None:
    """Forward pre-hook that raises an error if a layer without an exact version runs on a CPU."""
    if args and not args[0].features.is_cuda:
        raise ValueError(_refusal({getattr(module, 'name', None) or 'here': type(module).__name__}))


def _computes(module: nn.Module) -> bool:
    """Whether spconv itself computes in this layer; its other modules are plain torch."""
    spconv = sys.modules[_SPCONV]
    kinds = (spconv.conv.SparseConvolution, spconv.pool.SparseMaxPool)
    others = (getattr(spconv.pool, name, ()) for name in ('SparseAvgPool', 'SparseGlobalMaxOrAvgPool'))
    return isinstance(module, (*kinds, *(kind for kind in others if kind)))


def _is_exact(module: nn.Module) -> bool:
    return isinstance(module, (_ExactOnCPU, ExactMaxPool, ExactGlobalMaxPool))


def _covered(module: nn.Module) -> bool:
    return _mixin(type(module)) is not None and not getattr(module, 'transposed', False)


@cache
def _mixin(base: type[nn.Module]) -> type | None:
    """The mixin for a class of spconv, or for a subclass that computes like its base; None if there is none."""
    spconv = sys.modules[_SPCONV]
    roots = [
        (spconv.conv.SparseConvolution, _ExactOnCPU),
        (spconv.pool.SparseMaxPool, ExactMaxPool),
        (getattr(spconv, 'SparseGlobalMaxPool', None), ExactGlobalMaxPool),
    ]
    for root, mixin in roots:
        if root is not None and issubclass(base, root):
            parts = [(getattr(base, name, None), getattr(root, name, None)) for name in ('forward', '_conv_forward')]
            return mixin if all(ours is theirs for ours, theirs in parts) else None
    return None


def _exact_version(base: type[nn.Module]) -> type[nn.Module]:
    known = base.__name__ in NAMES and getattr(sys.modules[_SPCONV], base.__name__, None) is base
    return exact_class(base.__name__) if known else _exact_subclass(base)


@cache
def _exact_subclass(base: type[nn.Module]) -> type[nn.Module]:
    mixin = _mixin(base)
    members = {'__module__': base.__module__, '__doc__': base.__doc__, '__reduce_ex__': _reduce_subclass}
    return type(base.__name__, (mixin, base), members)


def _reduce_subclass(module: nn.Module, protocol: int) -> tuple:
    """Supports copies and pickles of a subclass, which has the name of its base and would not be found by it."""
    return _blank, (type(module).__mro__[2],), module.__dict__


def _blank(base: type[nn.Module]) -> nn.Module:
    exact = _exact_subclass(base)
    return exact.__new__(exact)


class _ExactOnCPU:
    """spconv's convolution of the same name, computed by spconv on a GPU and exactly, in plain torch, elsewhere."""

    def forward(self, input: Any, add_input: Any = None) -> Any:
        """Computes the convolution of a ``SparseConvTensor``; the arguments are those of spconv."""
        # spconv's own path for single cells is a plain matrix product (of the weight read as (in, out)).
        if input.features.is_cuda or self.conv1x1:
            return super().forward(input, add_input)
        if add_input is not None or self.act_type.name != 'None_' or input.is_quantized:
            raise NotImplementedError('fused additions, fused activations and int8 of spconv run on a GPU only')
        sites, indice_dict = self._inverse_sites(input) if self.inverse else self._sites(input)
        output = input.replace_feature(sparse_conv(input.features, self.weight, self.bias, sites.rulebook))
        output.indices, output.spatial_shape, output.indice_dict = sites.out_indices, sites.out_shape, indice_dict
        return output

    def _sites(self, input: Any) -> tuple[Sites, dict]:
        """The sites of the ``indice_key``, or new ones; and the dict of the output, in which they are stored."""
        # Submanifold layers without a key share sites too: mmdet3d gives the two halves of a SparseBasicBlock no key.
        key = self.indice_key
        if key is None and self.subm:
            key = ('submanifold', *self.kernel_size, *self.dilation)
        known = input.indice_dict.get(key)
        if known is not None and self._fits(known, input):
            return known, input.indice_dict
        if known is not None and self.indice_key is not None:
            raise ValueError(
                f'indice_key {key!r} belongs to other sites, another kernel or a strided convolution, or was made by '
                f'spconv; only submanifold convolutions with kernel {self.kernel_size} and dilation {self.dilation} at '
                'the same sites share a key (and make_exact() must see the whole model)'
            )
        sites = sites_of(self, input)
        return sites, input.indice_dict if key is None else {**input.indice_dict, key: sites}

    def _fits(self, known: Any, input: Any) -> bool:
        return (
            isinstance(known, Sites)
            and known.submanifold
            and self.subm
            and (known.kernel, known.dilation) == (self.kernel_size, self.dilation)
            and known.starts_at(input.indices, input.spatial_shape)
        )

    def _inverse_sites(self, input: Any) -> tuple[Sites, dict]:
        known = input.indice_dict.get(self.indice_key)
        strided = isinstance(known, Sites) and not known.submanifold and known.kernel == self.kernel_size
        if not strided or not known.inverse().starts_at(input.indices, input.spatial_shape):
            raise ValueError(
                f'an inverse convolution needs a strided convolution with the same kernel {self.kernel_size}, whose '
                f'output sites are its input sites; indice_key {self.indice_key!r} has none, keys of the input are '
                f'{list(input.indice_dict)}'
            )
        return known.inverse(), input.indice_dict
