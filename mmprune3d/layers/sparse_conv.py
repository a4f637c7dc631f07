"""spconv's 3D convolutions, exact on a CPU: spconv itself on a GPU, :mod:`mmprune3d.ops.sparse_conv` elsewhere.

spconv 2.3.8's build for the CPU loses rows with more than one thread, and cannot go backward where torch has no CUDA.
``SubMConv3d``, ``SparseConv3d`` and ``SparseInverseConv3d`` of this module are subclasses of spconv's classes of the
same names, with the same parameters, keys and layout; spconv is imported when one of them is first asked for.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from mmprune3d.ops.sparse_conv import sparse_conv
from mmprune3d.ops.sparse_rulebook import Rulebook, strided_rulebook, submanifold_rulebook

NAMES = ('SubMConv3d', 'SparseConv3d', 'SparseInverseConv3d')
_SPCONV = 'spconv.pytorch.conv'


def __getattr__(name: str) -> Any:
    if name in NAMES:
        return exact_class(name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}; its sparse convolutions are {NAMES}')


@cache
def exact_class(name: str) -> type[nn.Module]:
    """The exact class for spconv's class `name`, one of ``NAMES``.

    Raises:
        ImportError: Without spconv 2; the message says what to type.
    """
    try:
        import spconv.pytorch as spconv
    except ImportError as error:
        raise ImportError(
            'sparse convolutions need spconv 2: `pip install spconv-cu120` for a GPU (spconv-cu118 for CUDA 11), '
            '`pip install spconv==2.3.8` for a CPU'
        ) from error
    # Named like an attribute of this module, which __getattr__ finds: a model can be pickled whole.
    return type(name, (_ExactOnCPU, getattr(spconv, name)), {'__module__': __name__, '__doc__': _ExactOnCPU.__doc__})


def make_exact(model: nn.Module) -> int:
    """Makes the sparse convolutions of a model of others exact on a CPU, in place.

    Only the class of each spconv ``SubMConv3d``, ``SparseConv3d`` and ``SparseInverseConv3d`` changes: parameters,
    hooks, state-dict keys and the version in the metadata stay. Subclasses of these, and spconv's other layers, are
    left alone.

    Args:
        model: Any module, such as a detector with mmdet3d's ``SparseEncoder``.

    Returns:
        How many convolutions were changed; 0 in a second call.
    """
    if _SPCONV not in sys.modules:
        return 0
    plain = {getattr(sys.modules[_SPCONV], name): name for name in NAMES}
    found = [module for module in model.modules() if type(module) in plain]
    for module in found:
        module.__class__ = exact_class(plain[type(module)])
    return len(found)


@dataclass(frozen=True)
class _Sites:
    """What layers with one ``indice_key`` share: a rulebook and the sites on both sides of it."""

    rulebook: Rulebook
    kernel: list[int]
    dilation: list[int]
    indices: Tensor
    shape: list[int]
    out_indices: Tensor
    out_shape: list[int]

    @property
    def submanifold(self) -> bool:
        return self.out_indices is self.indices

    def starts_at(self, indices: Tensor, shape: list[int]) -> bool:
        return shape == self.shape and (indices is self.indices or torch.equal(indices, self.indices))

    def inverse(self) -> _Sites:
        book, there, back = self.rulebook.transposed(), (self.indices, self.shape), (self.out_indices, self.out_shape)
        return _Sites(book, self.kernel, self.dilation, *back, *there)


class _ExactOnCPU:
    """spconv's convolution of the same name, computed by spconv on a GPU and exactly, in plain torch, elsewhere."""

    def forward(self, input: Any, add_input: Any = None) -> Any:
        """The convolution of a ``SparseConvTensor``; see spconv for the arguments."""
        # spconv's own path for single cells is a plain matrix product (of the weight read as (in, out)).
        if input.features.is_cuda or self.conv1x1:
            return super().forward(input, add_input)
        if add_input is not None or self.act_type.name != 'None_' or input.is_quantized:
            raise NotImplementedError('fused additions, fused activations and int8 of spconv run on a GPU only')
        sites, indice_dict = self._inverse_sites(input) if self.inverse else self._sites(input)
        output = input.replace_feature(sparse_conv(input.features, self.weight, self.bias, sites.rulebook))
        output.indices, output.spatial_shape, output.indice_dict = sites.out_indices, sites.out_shape, indice_dict
        return output

    def _sites(self, input: Any) -> tuple[_Sites, dict]:
        """Those of the ``indice_key``, or new ones; and the dict of the output, which knows them."""
        # Submanifold layers without a key share too: mmdet3d gives none to the two halves of a SparseBasicBlock.
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
        sites = self._new_sites(input)
        return sites, input.indice_dict if key is None else {**input.indice_dict, key: sites}

    def _fits(self, known: Any, input: Any) -> bool:
        return (
            isinstance(known, _Sites)
            and known.submanifold
            and self.subm
            and (known.kernel, known.dilation) == (self.kernel_size, self.dilation)
            and known.starts_at(input.indices, input.spatial_shape)
        )

    def _new_sites(self, input: Any) -> _Sites:
        shape, geometry = input.spatial_shape, (self.kernel_size, self.dilation)
        where = (input.indices, shape, input.batch_size)
        if self.subm:
            book = submanifold_rulebook(*where, *geometry)
            return _Sites(book, *geometry, input.indices, shape, input.indices, shape)
        book, *out = strided_rulebook(*where, self.kernel_size, self.stride, self.padding, self.dilation)
        return _Sites(book, *geometry, input.indices, shape, *out)

    def _inverse_sites(self, input: Any) -> tuple[_Sites, dict]:
        known = input.indice_dict.get(self.indice_key)
        strided = isinstance(known, _Sites) and not known.submanifold and known.kernel == self.kernel_size
        if not strided or not known.inverse().starts_at(input.indices, input.spatial_shape):
            raise ValueError(
                f'an inverse convolution goes back through a strided one with its kernel {self.kernel_size}, from the '
                f'sites that one led to; indice_key {self.indice_key!r} has none, those of the input: '
                f'{list(input.indice_dict)}'
            )
        return known.inverse(), input.indice_dict
