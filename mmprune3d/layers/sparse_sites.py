"""The input and output sites of a sparse layer of :mod:`mmprune3d.layers.sparse_conv`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmprune3d.ops.sparse_rulebook import Rulebook, strided_rulebook, submanifold_rulebook


@dataclass(frozen=True)
class Sites:
    """The data that layers with one ``indice_key`` share: a rulebook, and the input and output sites.

    Attributes:
        rulebook: Pairs of input and output rows for each kernel cell.
        kernel: Kernel size of each axis.
        dilation: Distance between neighbouring kernel cells of each axis.
        indices: Sites of the input [N, 1 + D].
        shape: Number of cells of the input grid along each axis.
        out_indices: Sites of the output [M, 1 + D]; the tensor `indices` itself for a submanifold layer.
        out_shape: Number of cells of the output grid along each axis.
    """

    rulebook: Rulebook
    kernel: list[int]
    dilation: list[int]
    indices: Tensor
    shape: list[int]
    out_indices: Tensor
    out_shape: list[int]

    @property
    def submanifold(self) -> bool:
        """Whether the output has the sites of the input."""
        return self.out_indices is self.indices

    def starts_at(self, indices: Tensor, shape: list[int]) -> bool:
        """Returns whether the input sites are `indices` in a grid of `shape`."""
        return shape == self.shape and (indices is self.indices or torch.equal(indices, self.indices))

    def inverse(self) -> Sites:
        """Sites of the inverse convolution: input and output are swapped."""
        book, there, back = self.rulebook.transposed(), (self.indices, self.shape), (self.out_indices, self.out_shape)
        return Sites(book, self.kernel, self.dilation, *back, *there)


def sites_of(layer: Any, input: Any) -> Sites:
    """Computes the input and output sites of a convolution or pooling layer of spconv.

    Args:
        layer: Layer with ``kernel_size``, ``stride``, ``padding``, ``dilation`` and ``subm``.
        input: Input of the layer, a ``SparseConvTensor``.
    """
    shape, geometry = input.spatial_shape, (layer.kernel_size, layer.dilation)
    where = (input.indices, shape, input.batch_size)
    if layer.subm:
        book = submanifold_rulebook(*where, *geometry)
        return Sites(book, *geometry, input.indices, shape, input.indices, shape)
    book, *out = strided_rulebook(*where, layer.kernel_size, layer.stride, layer.padding, layer.dilation)
    return Sites(book, *geometry, input.indices, shape, *out)
