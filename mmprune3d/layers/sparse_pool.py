"""Mixins for spconv's pooling layers; they are used by :mod:`mmprune3d.layers.sparse_conv`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmprune3d.ops.sparse_conv import sparse_max_pool

from .sparse_sites import sites_of


class ExactMaxPool:
    """spconv's ``SparseMaxPool``, computed by spconv on a GPU and exactly, in plain torch, elsewhere."""

    def forward(self, input: Any) -> Any:
        """Computes the maximum over the active sites in each window of a ``SparseConvTensor``."""
        if input.features.is_cuda:
            return super().forward(input)
        if input.is_quantized:
            raise NotImplementedError('int8 of spconv runs on a GPU only')
        key, known = self.indice_key, input.indice_dict
        if key is not None and key in known:
            raise ValueError(
                f'indice_key {key!r} of a {type(self).__name__} is already used; a pool needs a key of its own'
            )
        sites = sites_of(self, input)
        output = input.replace_feature(sparse_max_pool(input.features, sites.rulebook))
        output.indices, output.spatial_shape = sites.out_indices, sites.out_shape
        output.indice_dict = known if key is None else {**known, key: sites}
        return output


class ExactGlobalMaxPool:
    """spconv's ``SparseGlobalMaxPool`` with support for CPUs, which spconv does not have."""

    def forward(self, input: Any) -> Tensor:
        """Computes the maximum over all active sites of each sample: [B, C].

        Raises:
            ValueError: If a sample has no active site.
        """
        if input.features.is_cuda:
            return super().forward(input)
        samples = input.indices[:, 0].long()
        empty = (torch.bincount(samples, minlength=input.batch_size) == 0).nonzero().flatten().tolist()
        if empty:
            raise ValueError(f'samples {empty} have no active sites, so their maximum is not defined')
        return torch.stack([input.features[samples == i].max(0).values for i in range(input.batch_size)])
