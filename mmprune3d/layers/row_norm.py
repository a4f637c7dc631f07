"""Batch norms over points or voxels that support batches with a single row or none."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.dist import get_world_size
from torch import Tensor, nn


class FewRows:
    """Mixin for a ``BatchNorm1d`` that supports one row or none in training as well.

    torch does not train on a single row, which has no variance, and mmdet3d's ``NaiveSyncBatchNorm1d`` stops in a
    process without rows while the others wait for it. Here a single row is normalized by the running statistics, which
    are not changed; a process without rows contributes the running statistics. All other cases are as before.
    """

    def forward(self, rows: Tensor) -> Tensor:
        """Normalizes rows [N, C] or [N, C, L], where N may be 0."""
        count = rows.numel() // rows.shape[1]
        if not self.training or count > 1:
            return super().forward(rows)
        if type(self) is not RowBatchNorm1d and get_world_size() > 1:
            return super().forward(rows) if count else self._beside_others(rows)
        return F.batch_norm(rows, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)

    def _beside_others(self, rows: Tensor) -> Tensor:
        """Handles a process without rows: for the sums over processes, two rows with the running mean and variance."""
        spread = self.running_var.clamp(min=0).sqrt()
        two = torch.stack((self.running_mean - spread, self.running_mean + spread)).to(rows)
        two = two if rows.dim() == 2 else two[:, :, None].expand(-1, -1, rows.shape[2])
        return super().forward(torch.cat((rows, two)))[:0]


class RowBatchNorm1d(FewRows, nn.BatchNorm1d):
    """A ``BatchNorm1d`` that supports batches with a single row or none."""


def allow_few_rows(module: nn.Module) -> nn.Module:
    """Mixes `FewRows` into every ``BatchNorm1d`` in `module`, in place; only the classes change."""
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm1d) and not isinstance(norm, FewRows):
            norm.__class__ = _with_few_rows(type(norm))
    return module


def _reduce(norm: nn.BatchNorm1d) -> tuple[Any, ...]:
    """Lets copies, pickles and whole saved models name a class by its base: it is itself made at run time."""
    return _empty, (type(norm).__bases__[1],), norm.__dict__


def _empty(base: type[nn.BatchNorm1d]) -> nn.BatchNorm1d:
    """A norm without its state, for unpickling."""
    kind = _with_few_rows(base)
    return kind.__new__(kind)


@cache
def _with_few_rows(base: type[nn.BatchNorm1d]) -> type[nn.BatchNorm1d]:
    if base is nn.BatchNorm1d:
        return RowBatchNorm1d
    members = {'__module__': __name__, '__doc__': base.__doc__, '__reduce__': _reduce}
    return type(base.__name__, (FewRows, base), members)
