"""Detectors with dynamic voxels (MVX-Net, DV-SECOND) on a CPU.

mmcv's ``DynamicScatter`` is CUDA only, so no ``DynamicVFE`` of mmdet3d runs without a GPU. On a GPU only those batches
are computed differently on which mmdet3d fails: it takes the number of samples from the last point, so that a last
sample without points is missing, and it treats a sample with a single point as an empty one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from torch import Tensor, nn

from mmprune3d.layers.row_norm import allow_few_rows
from mmprune3d.layers.settings_check import warn_of_misfits
from mmprune3d.layers.sparse_conv import make_exact
from mmprune3d.ops.dynamic_scatter import dynamic_scatter, voxels_of_points


def make_cpu_ready(model: nn.Module) -> int:
    """Makes a detector with dynamic voxels and sparse convolutions run, with exact results, on a CPU; in place.

    Only the classes of the modules change: parameters, hooks and state-dict keys stay. Batches may have samples with
    one point or none, or no point at all. Dynamic voxels that do not fill the range are logged as a warning, with sizes
    and ranges that fit.

    Args:
        model: A detector of mmdet3d, such as ``DynamicMVXFasterRCNN``, or any other module.

    Returns:
        Number of modules whose computation changed; 0 in a second call.
    """
    changed = make_exact(model) + _lay_over(model, _MIXINS)
    if changed:
        _lay_over(model, _FOR_FEW_POINTS)
        allow_few_rows(model)
        voxels = getattr(getattr(model, 'data_preprocessor', None), 'voxel_layer', None)
        if hasattr(voxels, 'voxel_size') and hasattr(voxels, 'point_cloud_range'):
            warn_of_misfits('data_preprocessor.voxel_layer', list(voxels.point_cloud_range), list(voxels.voxel_size))
    return changed


def _lay_over(model: nn.Module, mixins: dict[str, type]) -> int:
    changed = 0
    for module in model.modules():
        mixin = next((mixins[base.__name__] for base in type(module).__mro__ if base.__name__ in mixins), None)
        if mixin is not None and not isinstance(module, mixin):
            module.__class__ = _mixed(mixin, type(module))
            changed += 1
    return changed


@cache
def _mixed(mixin: type, base: type) -> type:
    return type(base.__name__, (mixin, base), {'__module__': __name__, '__doc__': base.__doc__})


class _TorchScatter:
    """Mixin for a ``DynamicScatter`` that reduces points to voxels in plain torch."""

    average_points: bool

    def forward(self, points: Tensor, coors: Tensor) -> tuple[Tensor, Tensor]:
        """Applies `forward_single` to all samples; coordinates are [N, 4], the sample first."""
        return super().forward(points, coors) if len(points) else (points, coors)

    def forward_single(self, points: Tensor, coors: Tensor) -> tuple[Tensor, Tensor]:
        """Reduces points [N, C] with coordinates [N, 3] to features [M, C] and coordinates [M, 3] of voxels."""
        if points.is_cuda:
            return super().forward_single(points, coors)
        return dynamic_scatter(points, coors, 'mean' if self.average_points else 'max')


class _TorchLookup:
    """Mixin for a ``DynamicVFE`` that finds the voxel of each point without an array of the grid (720 MB on KITTI)."""

    def map_voxel_center_to_point(self, pts_coors: Tensor, voxel_mean: Tensor, voxel_coors: Tensor) -> Tensor:
        """Copies the features of voxels to their points: [N, C]."""
        if not len(voxel_mean):  # all points are out of the range
            return voxel_mean.new_zeros(len(pts_coors), *voxel_mean.shape[1:])
        if voxel_mean.is_cuda:
            return super().map_voxel_center_to_point(pts_coors, voxel_mean, voxel_coors)
        return voxel_mean[voxels_of_points(pts_coors, voxel_coors)]


class _OnePoint:
    """Mixin for a ``PointFusion``, which otherwise drops the point axis if there is a single point."""

    def sample_single(self, img_feats: Tensor, pts: Tensor, img_meta: dict) -> Tensor:
        """Samples image features [N, C] at the points [N, 3] of one sample."""
        if len(pts) != 1:
            return super().sample_single(img_feats, pts, img_meta)
        return super().sample_single(img_feats, pts.expand(2, -1), img_meta)[:1]


class _AllSamples:
    """Mixin for a ``MVXTwoStageDetector`` that takes the batch size from the number of point clouds."""

    def extract_pts_feat(self, voxel_dict: dict | None, points: list[Tensor] | None = None, **kwargs: Any) -> Any:
        """Computes the features of the points, one tensor [B, C, ny, nx] per level."""
        if not voxel_dict or not points:
            return super().extract_pts_feat(voxel_dict, points, **kwargs)
        voxel_dict, points = _with_a_point(voxel_dict, points)
        with _batch_size(self.pts_middle_encoder, len(points)):
            return super().extract_pts_feat(voxel_dict, points, **kwargs)


class _AllSamplesAlone:
    """Mixin for a ``VoxelNet`` that takes the batch size from the number of point clouds."""

    def extract_feat(self, batch_inputs_dict: dict) -> Any:
        """Computes the features of the points, one tensor [B, C, ny, nx] per level."""
        voxel_dict, points = _with_a_point(batch_inputs_dict['voxels'], batch_inputs_dict['points'])
        with _batch_size(self.middle_encoder, len(points)):
            return super().extract_feat({**batch_inputs_dict, 'voxels': voxel_dict, 'points': points})


@contextmanager
def _batch_size(encoder: nn.Module, number: int) -> Iterator[None]:
    """Replaces the batch size in calls of a middle encoder (features, coordinates, batch size) in this context."""
    handle = encoder.register_forward_pre_hook(lambda _, inputs: (*inputs[:2], number))
    try:
        yield
    finally:
        handle.remove()


def _with_a_point(voxel_dict: dict, points: list[Tensor]) -> tuple[dict, list[Tensor]]:
    """Dynamic voxels and points of a batch; a batch without points gets one outside of the range, hence no voxel."""
    if len(voxel_dict['coors']) or 'num_points' in voxel_dict:
        return voxel_dict, points
    lone = points[-1].new_ones(1, points[-1].shape[1])  # not at the sensor, where it would have no pixel
    coors = voxel_dict['coors'].new_full((1, voxel_dict['coors'].shape[1]), -1)
    coors[:, 0] = len(points) - 1
    return {**voxel_dict, 'voxels': lone, 'coors': coors}, [*points[:-1], lone]


_MIXINS: dict[str, type] = {'DynamicScatter': _TorchScatter, 'DynamicVFE': _TorchLookup}
"""Name of a class in mmcv or mmdet3d -> its mixin."""
_FOR_FEW_POINTS: dict[str, type] = {
    'PointFusion': _OnePoint,
    'MVXTwoStageDetector': _AllSamples,
    'VoxelNet': _AllSamplesAlone,
}
"""Name of a class -> its mixin for batches with few points; on all other batches these mixins change nothing."""
