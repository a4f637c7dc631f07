"""The pillar feature encoder of SST: small layers on the points, each followed by a reduction over the pillar."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmcv.cnn import build_norm_layer
from mmdet3d.registry import MODELS
from torch import Tensor, nn

from mmprune3d.layers.row_norm import allow_few_rows
from mmprune3d.layers.settings_check import check_columns
from mmprune3d.ops.dynamic_scatter import PointGroups, group_points, reduce_points

MODES = {'max': 'max', 'avg': 'mean'}


class PointLayer(nn.Module):
    """Linear layer, norm and ReLU on points [N, in_channels]; a module of its own to match SST's state-dict keys."""

    def __init__(self, in_channels: int, out_channels: int, norm_cfg: dict) -> None:
        super().__init__()
        self.linear = nn.Linear(in_channels, out_channels, bias=False)
        self.norm = allow_few_rows(build_norm_layer(norm_cfg, out_channels)[1])

    def forward(self, points: Tensor) -> Tensor:
        """Computes features [N, out_channels] from points [N, in_channels]."""
        return F.relu(self.norm(self.linear(points)))


@MODELS.register_module()
class SSTDynamicVFE(nn.Module):
    """Dynamic voxel feature encoder of SST, on CPU and GPU, correct for every grid size.

    mmdet3d's ``DynamicVFE`` is CUDA only and rounds Waymo's 468 x 468 grid down to 467 columns, which mixes up voxels.
    Here voxels are identified by their coordinates alone. The state dict is that of SST.

    Args:
        in_channels: Number of features of a point, x, y, z first.
        feat_channels: Widths of the layers.
        with_distance: Whether to add the distance to the sensor to the features.
        with_cluster_center: Whether to add the offset from the mean of the voxel's points.
        with_voxel_center: Whether to add the offset from the centre of the voxel.
        voxel_size: Size of a voxel along x, y, z in metres.
        point_cloud_range: Lower limits x, y, z, then upper limits, in metres.
        norm_cfg: Config of the norms.
        mode: Reduction of the points of a voxel, ``'max'`` or ``'avg'``.

    Raises:
        ValueError: If `mode` is unknown, or `feat_channels` is empty.
    """

    def __init__(
        self,
        in_channels: int = 4,
        feat_channels: Sequence[int] = (64, 128),
        with_distance: bool = False,
        with_cluster_center: bool = False,
        with_voxel_center: bool = False,
        voxel_size: Sequence[float] = (0.32, 0.32, 6),
        point_cloud_range: Sequence[float] = (-74.88, -74.88, -2, 74.88, 74.88, 4),
        norm_cfg: dict | None = None,
        mode: str = 'max',
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        if mode not in MODES:
            raise ValueError(f'unknown mode {mode!r}; valid are {", ".join(MODES)}')
        if not feat_channels:
            raise ValueError('feat_channels must have at least one width')
        self.with_distance = with_distance
        self.with_cluster_center = with_cluster_center
        self.with_voxel_center = with_voxel_center
        self.voxel_size, self.point_cloud_range = list(voxel_size), list(point_cloud_range)
        self.reduce = MODES[mode]
        norm_cfg = norm_cfg or dict(type='BN1d', eps=1e-3, momentum=0.01)
        inputs = in_channels + with_distance + 3 * (with_cluster_center + with_voxel_center)
        widths = [inputs, *(2 * width for width in feat_channels[:-1])]
        layers = (PointLayer(i, o, norm_cfg) for i, o in zip(widths, feat_channels, strict=True))
        self.vfe_layers = nn.ModuleList(layers)
        self.out_channels = feat_channels[-1]

    def forward(self, points: Tensor, coors: Tensor) -> tuple[Tensor, Tensor]:
        """Encodes the points of a batch as voxel features.

        Args:
            points: Points [N, in_channels], x, y, z in metres first.
            coors: Voxel of each point [N, 4], integers: sample, z, y, x; points with a negative number are outside of
                the grid and are left out.

        Returns:
            Features [M, feat_channels[-1]] and coordinates [M, 4] of the occupied voxels, in lexicographic order.

        Raises:
            ValueError: If the number of columns of the points is not `in_channels`.
        """
        check_columns(points.shape[1], self.in_channels, 'voxel_encoder.in_channels')
        inside = (coors >= 0).all(dim=1)
        if not inside.all():
            points, coors = points[inside], coors[inside]
        if len(points) == 0:
            return self._without_points(points), coors
        voxels = group_points(coors)
        features = self._decorate(points, coors, voxels)
        for number, layer in enumerate(self.vfe_layers):
            features = layer(features)
            reduced = reduce_points(features, voxels, self.reduce)
            if number < len(self.vfe_layers) - 1:
                features = torch.cat((features, reduced[voxels.voxel]), dim=1)
        return reduced, voxels.coords

    def _without_points(self, points: Tensor) -> Tensor:
        """Passes features [0, C] through all layers, because other processes wait for their norms and gradients."""
        features = points.new_zeros(0, self.vfe_layers[0].linear.in_features)
        for number, layer in enumerate(self.vfe_layers):
            features = layer(features if number == 0 else torch.cat((features, features), dim=1))
        return features

    def _decorate(self, points: Tensor, coors: Tensor, voxels: PointGroups) -> Tensor:
        """Adds the offsets to the points: [N, inputs of the first layer]."""
        columns = [points]
        if self.with_cluster_center:
            columns.append(points[:, :3] - reduce_points(points[:, :3], voxels, 'mean')[voxels.voxel])
        if self.with_voxel_center:
            size, lower = points.new_tensor(self.voxel_size), points.new_tensor(self.point_cloud_range[:3])
            columns.append(points[:, :3] - ((coors[:, [3, 2, 1]].to(points) + 0.5) * size + lower))
        if self.with_distance:
            columns.append(points[:, :3].norm(dim=1, keepdim=True))
        return torch.cat(columns, dim=1)
