"""BEVFusion's view transform, from camera features to a bird's-eye-view map (Lift, Splat, Shoot; arXiv 2008.05711)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from mmdet3d.registry import MODELS
from mmengine.logging import print_log
from torch import Tensor, nn

from mmprune3d.ops.bev_pool import bev_pool, cell_index
from mmprune3d.ops.grid import TOLERANCE

CLOSE = 1e-2
"""Tolerance when constants of a checkpoint and of the config are compared; in half precision they are rounded."""


def downsampler(channels: int, factor: int) -> nn.Module:
    """The convolutions after pooling: an identity for factor 1; three 3x3 ones that halve the map for factor 2.

    Raises:
        ValueError: If the factor is neither 1 nor 2.
    """
    if factor not in (1, 2):
        raise ValueError(f'downsample={factor} must be 1 or 2')
    if factor == 1:
        return nn.Identity()
    layers: list[nn.Module] = []
    for stride in (1, factor, 1):
        layers += [nn.Conv2d(channels, channels, 3, stride=stride, padding=1, bias=False)]
        layers += [nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def constant(values: Tensor) -> nn.Parameter:
    """A parameter without gradient: mmdet3d stores constants as parameters, so checkpoints contain them."""
    return nn.Parameter(values, requires_grad=False)


@MODELS.register_module()
class BEVFusion3DLSSTransform(nn.Module):
    """Lifts image features along their viewing rays and sums them up in the cells of the BEV grid.

    The weights are those of mmdet3d's ``LSSTransform``, including the constants `dx`, `bx`, `nx` (cell size, centre of
    the first cell, number of cells) and `frustum` ([D, h, w, 3]: pixel u and v, depth in metres), which are parameters
    without gradient there.

    Args:
        in_channels: Channels of the image features.
        out_channels: Channels C of the BEV map.
        image_size: Height and width of the images in pixels, padding included.
        feature_size: Height h and width w of the image features.
        xbound: Lower limit, upper limit and cell size of the grid along x in metres.
        ybound: Lower limit, upper limit and cell size of the grid along y in metres.
        zbound: Lower limit, upper limit and cell size of the grid along z in metres. With several cells along z the map
            has that many times more channels, and `downsample` must be 1.
        dbound: First depth, end (exclusive) and step in metres; they give D depths.
        downsample: 1, or 2 for convolutions that halve the map.

    Raises:
        ValueError: If `downsample` is not 1 or 2, the grid is empty, `dbound` has no depths, or `image_size` is not a
            multiple of `feature_size`. A grid whose cells do not fill its limits is logged as a warning.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        image_size: tuple[int, int],
        feature_size: tuple[int, int],
        xbound: tuple[float, float, float],
        ybound: tuple[float, float, float],
        zbound: tuple[float, float, float],
        dbound: tuple[float, float, float],
        downsample: int = 1,
    ) -> None:
        super().__init__()
        bounds = (xbound, ybound, zbound)
        # Rounded down as in mmdet3d, where a range of 9.6 m with cells of 0.8 m has 11 cells (floating-point error).
        self.grid_shape = tuple(int((upper - lower) / size) for lower, upper, size in bounds)
        if min(self.grid_shape) < 1:
            raise ValueError(f'xbound, ybound, zbound give a grid of {self.grid_shape} cells; each must be at least 1')
        self.bounds = tuple(tuple(float(value) for value in bound) for bound in bounds)
        self._check_sizes(image_size, feature_size, dbound)
        self.image_size = tuple(image_size)
        self.dx = constant(torch.tensor([float(size) for _, _, size in bounds]))
        self.bx = constant(torch.tensor([lower + size / 2 for lower, _, size in bounds]))
        self.nx = constant(torch.tensor(self.grid_shape))
        self.frustum = constant(self._make_frustum(feature_size, dbound))
        self.depthnet = self._make_depthnet(in_channels, len(self.frustum) + out_channels)
        self.downsample = downsampler(out_channels, downsample)

    def _check_sizes(
        self, image_size: Sequence[int], feature_size: Sequence[int], dbound: tuple[float, float, float]
    ) -> None:
        for axis, (lower, upper, size), cells in zip('xyz', self.bounds, self.grid_shape):
            if abs((upper - lower) / size - cells) > TOLERANCE:
                print_log(
                    f'view_transform.{axis}bound: {(upper - lower) / size:.6g} cells of {size:g} from {lower:g} to '
                    f'{upper:g}; {cells} are made, which end at {lower + cells * size:g}: camera features beyond are '
                    'dropped, and a LiDAR map of the whole range has another size',
                    logger='current',
                    level=logging.WARNING,
                )
        if any(side % cells for side, cells in zip(image_size, feature_size, strict=True)):
            raise ValueError(
                f'view_transform.image_size={[*image_size]} must be a multiple of feature_size={[*feature_size]}: '
                'images are padded to a multiple of pad_size_divisor of the data_preprocessor, and image_size is their '
                'size after padding'
            )
        first, end, step = dbound
        if not (0 < first < end and step > 0):
            raise ValueError(
                f'view_transform.dbound={[*dbound]} must be first depth, end and step in metres with '
                '0 < first < end and step > 0'
            )

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Loads the state dict, except constants that were computed with other settings; these cause a warning."""
        for name in ('dx', 'bx', 'nx', 'frustum'):
            own, loaded = getattr(self, name), state_dict.get(prefix + name)
            if loaded is None or loaded.shape != own.shape:
                continue
            if not torch.allclose(loaded.to(own).float(), own.float(), rtol=CLOSE, atol=CLOSE):
                print_log(
                    f'{prefix}{name} of the checkpoint was computed with another image_size, xbound, ybound, zbound or '
                    'dbound; it is not loaded, and the settings of the config are used',
                    logger='current',
                    level=logging.WARNING,
                )
                state_dict[prefix + name] = own.detach()
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _make_frustum(self, feature_size: tuple[int, int], dbound: tuple[float, float, float]) -> Tensor:
        """Frustum [D, h, w, 3]: pixel u, v and depth in metres; the outermost cells are at the image corners."""
        (height, width), (h, w) = self.image_size, feature_size
        depths = torch.arange(*dbound, dtype=torch.float32)
        axes = (depths, torch.linspace(0, height - 1, h), torch.linspace(0, width - 1, w))
        d, v, u = torch.meshgrid(*axes, indexing='ij')
        return torch.stack((u, v, d), dim=-1)

    def _make_depthnet(self, in_channels: int, channels: int) -> nn.Module:
        return nn.Conv2d(in_channels, channels, 1)

    @torch.no_grad()
    def geometry(
        self, camera_intrinsics: Tensor, camera2lidar: Tensor, img_aug_matrix: Tensor, lidar_aug_matrix: Tensor
    ) -> Tensor:
        """Computes the points of the frustum: [B, N, D, h, w, 3] float32, metres in the augmented lidar frame.

        The small matrices are inverted and multiplied in float64. Autocast has no effect.

        Args:
            camera_intrinsics: Intrinsic matrices [B, N, 4, 4] or [B, N, 3, 3].
            camera2lidar: Camera poses [B, N, 4, 4].
            img_aug_matrix: Augmentation of (u, v, depth) in each image [B, N, 4, 4].
            lidar_aug_matrix: Augmentation of the points of each sample [B, 4, 4].
        """
        with torch.autocast(self.frustum.device.type, enabled=False):
            image, lidar = img_aug_matrix.double(), lidar_aug_matrix.double().unsqueeze(1)
            camera = lidar @ camera2lidar.double()
            unaugment = image[..., :3, :3].inverse()
            rays = camera[..., :3, :3] @ camera_intrinsics[..., :3, :3].double().inverse()
            points = self.frustum.float().flatten(0, 2) - image[..., None, :3, 3].float()
            points = points @ unaugment.mT.float()
            points[..., :2] *= points[..., 2:]
            points = points @ rays.mT.float() + camera[..., None, :3, 3].float()
        return points.unflatten(2, self.frustum.shape[:3])

    def predict_depth(self, img_feats: Tensor, **inputs: Any) -> Tensor:
        """Predicts depth logits and context [B * N, D + C, h, w] from image features [B * N, in_channels, h, w]."""
        return self.depthnet(img_feats)

    def forward(
        self,
        img_feats: Tensor,
        points: Sequence[Tensor] | None,
        lidar2image: Tensor,
        camera_intrinsics: Tensor,
        camera2lidar: Tensor,
        img_aug_matrix: Tensor,
        lidar_aug_matrix: Tensor,
        metas: Sequence[dict] | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Transforms image features to a BEV map.

        Args:
            img_feats: Image features [B, N, in_channels, h, w].
            points: Augmented points of each sample [P, 3 or more]; used only by transforms that take depth from them.
            lidar2image: Projections [B, N, 4, 4], from points before augmentation to (u d, v d, d) before augmentation.
            camera_intrinsics: Intrinsic matrices [B, N, 4, 4].
            camera2lidar: Camera poses [B, N, 4, 4].
            img_aug_matrix: Augmentation of (u, v, depth) in each image [B, N, 4, 4].
            lidar_aug_matrix: Augmentation of the points of each sample [B, 4, 4].
            metas: Not used.
            **kwargs: Not used.

        Returns:
            The map [B, nz * C, nx, ny]; with ``downsample=2`` nx and ny are halved (rounded up).

        Raises:
            ValueError: If the size of the features differs from `feature_size`.
        """
        B, N, _, *size = img_feats.shape
        D, *expected = self.frustum.shape[:3]
        if size != expected:
            raise ValueError(f'image features of {size} do not match feature_size={expected}')
        predicted = self.predict_depth(
            img_feats.flatten(0, 1),
            points=points,
            lidar2image=lidar2image,
            img_aug_matrix=img_aug_matrix,
            lidar_aug_matrix=lidar_aug_matrix,
        ).unflatten(0, (B, N))
        places = self.geometry(camera_intrinsics, camera2lidar, img_aug_matrix, lidar_aug_matrix)
        cells = cell_index(places, self.bx - self.dx / 2, self.dx, self.grid_shape)
        bev = bev_pool(predicted[:, :, :D].softmax(dim=2), predicted[:, :, D:], cells, self.grid_shape)
        return self.downsample(bev)
