"""BEVFusion's view transform with an additional depth input, the projected lidar points."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmdet3d.registry import MODELS
from torch import Tensor, nn

from mmprune3d.models.bevfusion.view_transform import BEVFusion3DLSSTransform


@torch.no_grad()
def depth_image(
    points: Tensor, lidar2image: Tensor, img_aug_matrix: Tensor, lidar_aug_matrix: Tensor, size: tuple[int, int]
) -> Tensor:
    """Draws the depth of the lidar points into the images of one sample.

    Of several points in one pixel the last one in the cloud is kept, on every device; this is what mmdet3d does on a
    CPU. The points are not modified. Autocast has no effect.

    Args:
        points: Augmented points [P, 3 or more], x, y, z in metres first.
        lidar2image: Projections [N, 4, 4], from points before augmentation to (u d, v d, d) before augmentation.
        img_aug_matrix: Augmentation of (u, v, depth) in each image [N, 4, 4].
        lidar_aug_matrix: Augmentation of the points [4, 4].
        size: Height and width of the images in pixels.

    Returns:
        Depth images [N, 1, height, width] float32 in metres; 0 in pixels without a point.
    """
    height, width = size
    with torch.autocast(points.device.type, enabled=False):
        project = (lidar2image.double() @ lidar_aug_matrix.double().inverse()).float()
        seen = project[:, :3, :3] @ points[:, :3].float().T + project[:, :3, 3:]
        distance = seen[:, 2]
        divisor = seen[:, 2:].clamp(1e-5, 1e5)
        image = img_aug_matrix.float()
        moved = image[:, :2, :3] @ torch.cat((seen[:, :2] / divisor, divisor), dim=1) + image[:, :2, 3:]
    column, row = moved.unbind(1)
    camera, point = ((row >= 0) & (row < height) & (column >= 0) & (column < width)).nonzero(as_tuple=True)
    pixel = (camera * height + row[camera, point].long()) * width + column[camera, point].long()
    depth = distance.new_zeros(len(lidar2image) * height * width)
    last = torch.full_like(depth, -1, dtype=torch.int64).scatter_reduce_(0, pixel, point, 'amax')
    kept = last[pixel] == point
    depth[pixel[kept]] = distance[camera, point][kept]
    return depth.view(-1, 1, height, width)


@MODELS.register_module()
class BEVFusion3DDepthLSSTransform(BEVFusion3DLSSTransform):
    """A `BEVFusion3DLSSTransform` that predicts depth from image features and the depth images of the lidar points.

    The weights are those of mmdet3d's ``DepthLSSTransform``, and the arguments those of `BEVFusion3DLSSTransform`.

    Attributes:
        mask_points: If True the depth images stay empty. For models whose LiDAR input is switched off; otherwise the
            camera stream would still use it.

    Raises:
        ValueError: If `feature_size` is not an eighth of `image_size`, the size of the downsampled depth images.
    """

    def __init__(self, in_channels: int, *args: Any, **kwargs: Any) -> None:
        super().__init__(in_channels, *args, **kwargs)
        expected = [-(-side // 8) for side in self.image_size]
        if [*self.frustum.shape[1:3]] != expected:
            raise ValueError(f'feature_size must be {expected}, an eighth of image_size={[*self.image_size]}')
        self.mask_points = False
        self.dtransform = nn.Sequential(
            *_block(1, 8, 1), *_block(8, 32, 5, stride=4, padding=2), *_block(32, 64, 5, stride=2, padding=2)
        )

    def _make_depthnet(self, in_channels: int, channels: int) -> nn.Module:
        return nn.Sequential(
            *_block(in_channels + 64, in_channels, 3, padding=1),
            *_block(in_channels, in_channels, 3, padding=1),
            nn.Conv2d(in_channels, channels, 1),
        )

    def depth_images(
        self, points: Sequence[Tensor] | None, lidar2image: Tensor, img_aug_matrix: Tensor, lidar_aug_matrix: Tensor
    ) -> Tensor:
        """Computes `depth_image` for every sample: [B, N, 1, height, width]; zeros if `mask_points`.

        Raises:
            ValueError: If the batch has no points.
        """
        if self.mask_points:
            return lidar2image.new_zeros(*lidar2image.shape[:2], 1, *self.image_size, dtype=torch.float32)
        if points is None:
            raise ValueError(
                'BEVFusion3DDepthLSSTransform needs LiDAR points for its depth, and the batch has none: let the '
                "pipeline load them (keys=['points', 'img'] of Pack3DDetInputs), or use BEVFusion3DLSSTransform"
            )
        samples = zip(points, lidar2image, img_aug_matrix, lidar_aug_matrix, strict=True)
        return torch.stack([depth_image(*sample, self.image_size) for sample in samples])

    def predict_depth(self, img_feats: Tensor, **inputs: Any) -> Tensor:
        """Predicts depth logits and context [B * N, D + C, h, w] from image features [B * N, in_channels, h, w]."""
        images = self.depth_images(**inputs).flatten(0, 1).to(self.dtransform[0].weight.dtype)
        return self.depthnet(torch.cat([self.dtransform(images), img_feats], dim=1))


def _block(in_channels: int, out_channels: int, kernel: int, **kwargs: int) -> tuple[nn.Module, ...]:
    """A convolution with bias, batch norm and ReLU, as three modules to match the numbering of the checkpoints."""
    convolution = nn.Conv2d(in_channels, out_channels, kernel, **kwargs)
    return convolution, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)
