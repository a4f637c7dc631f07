"""Detectors with dynamic voxels (MVX-Net, DV-SECOND) on a CPU.

mmcv's ``DynamicScatter`` is CUDA only, so that no ``DynamicVFE`` of mmdet3d runs without a GPU. On a GPU nothing
changes.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from torch import Tensor, nn

from mmprune3d.layers.sparse_conv import make_exact
from mmprune3d.ops.dynamic_scatter import dynamic_scatter, voxels_of_points


def make_cpu_ready(model: nn.Module) -> int:
    """Makes a detector with dynamic voxels and sparse convolutions run, exactly, on a CPU; in place.

    Only the classes of the modules change: parameters, hooks and state-dict keys stay.

    Args:
        model: A detector of mmdet3d, such as ``DynamicMVXFasterRCNN``, or any other module.

    Returns:
        How many modules were changed; 0 in a second call.
    """
    changed = make_exact(model)
    for module in model.modules():
        mixin = next((_MIXINS[base.__name__] for base in type(module).__mro__ if base.__name__ in _MIXINS), None)
        if mixin is not None and not isinstance(module, mixin):
            module.__class__ = _mixed(mixin, type(module))
            changed += 1
    return changed


@cache
def _mixed(mixin: type, base: type) -> type:
    return type(base.__name__, (mixin, base), {'__module__': __name__, '__doc__': base.__doc__})


class _TorchScatter:
    """Of a ``DynamicScatter``: points of one sample to voxels."""

    average_points: bool

    def forward_single(self, points: Tensor, coors: Tensor) -> tuple[Tensor, Tensor]:
        """Features [M, C] and coordinates [M, 3] of the voxels of points [N, C] with coordinates [N, 3]."""
        if points.is_cuda:
            return super().forward_single(points, coors)
        return dynamic_scatter(points, coors, 'mean' if self.average_points else 'max')


class _TorchLookup:
    """Of a ``DynamicVFE``: the way back, without an array of all voxels of the grid (720 MB a sample on KITTI)."""

    def map_voxel_center_to_point(self, pts_coors: Tensor, voxel_mean: Tensor, voxel_coors: Tensor) -> Tensor:
        """The features [N, C] of the voxels that the points are in."""
        if voxel_mean.is_cuda:
            return super().map_voxel_center_to_point(pts_coors, voxel_mean, voxel_coors)
        return voxel_mean[voxels_of_points(pts_coors, voxel_coors)]


_MIXINS: dict[str, Any] = {'DynamicScatter': _TorchScatter, 'DynamicVFE': _TorchLookup}
"""Name of a class in mmcv or mmdet3d -> what is laid over it."""
