"""A dense monocular head, used only in training, that trains the backbone with depth and shape.

Official PETR starts from a backbone that was pretrained for monocular 3D detection (FCOS3D or DD3D), because from
scratch the gradient of the few matched queries is not enough. This head gives every visible object one cell per image
with targets that do not depend on where the camera is mounted: depth divided by focal length, size, and the angle
between heading and line of sight.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from mmcv.cnn import ConvModule
from mmdet.utils import reduce_mean
from mmdet3d.registry import MODELS
from mmengine.model import BaseModule
from mmengine.model.weight_init import bias_init_with_prob
from torch import Tensor, nn

from mmprune3d.layers.settings_check import check_labels
from mmprune3d.ops.cameras import as_4x4, lidar2img_of

from .geometry import canvas_of, image_shapes_of
from .position import check_canvas

PARTS = {'offset': 2, 'depth': 1, 'size': 3, 'angle': 2}
"""Channels of the regression: sub-cell offset, log depth, log sizes, sine and cosine of the observation angle."""


class DenseTargets(NamedTuple):
    """Targets of the cells of a batch.

    Attributes:
        labels: Class of each cell [B * cameras, H, W] int64; the number of classes means background.
        cell: Flat index of every cell that holds an object [M] int64.
        values: Regression targets [M, 8], in the order of `PARTS`.
    """

    labels: Tensor
    cell: Tensor
    values: Tensor


class ProjectedBoxes(NamedTuple):
    """The boxes of one sample projected into one camera.

    Attributes:
        pixel: Projected centres [n, 2], x and y.
        depth: Depths [n] in metres along the optical axis.
        values: Regression targets [n, 8], except the offset (left at 0), which depends on the stride.
    """

    pixel: Tensor
    depth: Tensor
    values: Tensor


def project_boxes(boxes: Tensor, lidar2cam: Tensor, lidar2img: Tensor, focal: float) -> ProjectedBoxes:
    """Projects boxes [n, 7 or more] with z at the centre into one camera.

    Augmentation may have scaled the world; `lidar2cam` then contains the inverse scale, and the sizes are scaled back
    before they become targets. In a mirrored image the observation angle is mirrored.

    Args:
        boxes: Boxes in the lidar frame.
        lidar2cam: Pose of the camera [4, 4].
        lidar2img: Projection matrix [4, 4].
        focal: Focal length in pixels to which depths are normalized.
    """
    count = len(boxes)
    homogeneous = torch.cat((boxes[:, :3], boxes.new_ones(count, 1)), dim=1)
    image = homogeneous @ lidar2img.T
    depth = image[:, 2]
    pixel = image[:, :2] / depth.clamp(min=1e-3)[:, None]
    intrinsic = (lidar2img @ torch.linalg.inv(lidar2cam))[:2, :2]
    area = torch.det(intrinsic)
    scale = torch.det(lidar2cam[:3, :3]).abs() ** (1 / 3)
    centre = (homogeneous @ lidar2cam.T)[:, :3]
    heading = torch.stack((boxes[:, 6].cos(), boxes[:, 6].sin(), torch.zeros(count)), dim=1) @ lidar2cam[:3, :3].T
    angle = torch.atan2(heading[:, 0], heading[:, 2]) - torch.atan2(centre[:, 0], centre[:, 2])
    angle = angle * torch.sign(area)
    log_depth = (depth.clamp(min=1e-3) * focal / area.abs().sqrt()).log()
    log_size = (boxes[:, 3:6] * scale).log()
    columns = (torch.zeros(count, 2), log_depth[:, None], log_size, angle.sin()[:, None], angle.cos()[:, None])
    return ProjectedBoxes(pixel, depth, torch.cat(columns, dim=1))


@MODELS.register_module()
class PETR3DDenseAuxHead(BaseModule):
    """The auxiliary head: class heatmap, depth, offset, size and angle in every cell of the finest feature level.

    Args:
        num_classes: Number of classes.
        in_channels: Channels of the neck's outputs.
        feat_channels: Width of the convolutions.
        num_convs: Number of convolutions.
        focal: Focal length in pixels to which depths are normalized.
        loss_cls: Config of the classification loss; None for focal loss.
        loss_weights: Weights of the regression parts (names in `PARTS`); those that are not given are 1.
        loss_weight: Factor of all losses of this head.
        init_cfg: Initialization, as in ``BaseModule``.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        feat_channels: int = 64,
        num_convs: int = 2,
        focal: float = 400.0,
        loss_cls: dict | None = None,
        loss_weights: Mapping[str, float] | None = None,
        loss_weight: float = 1.0,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        unknown = set(loss_weights or ()) - set(PARTS)
        if unknown:
            raise ValueError(f'unknown loss {", ".join(sorted(unknown))}; valid are {", ".join(PARTS)}')
        self.num_classes = num_classes
        self.focal = focal
        self.loss_weight = loss_weight
        self.part_weights = {part: (loss_weights or {}).get(part, 1.0) for part in PARTS}
        self.loss_cls = MODELS.build(loss_cls or {'type': 'mmdet.FocalLoss', 'use_sigmoid': True})
        norm = {'type': 'GN', 'num_groups': 8}
        widths = [in_channels] + [feat_channels] * num_convs
        self.tower = nn.Sequential(
            *(ConvModule(widths[i], widths[i + 1], 3, padding=1, norm_cfg=norm) for i in range(num_convs))
        )
        self.cls = nn.Conv2d(widths[-1], num_classes, 1)
        self.reg = nn.Conv2d(widths[-1], sum(PARTS.values()), 1)

    def init_weights(self) -> None:
        """Initializes the convolutions, with a low initial probability for every class."""
        super().init_weights()
        nn.init.constant_(self.cls.bias, bias_init_with_prob(0.01))

    def forward(self, img_feats: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Computes class logits [B * cameras, classes, H, W] and regression values [B * cameras, 8, H, W], float32."""
        feats = self.tower(img_feats[0].flatten(0, 1))
        return self.cls(feats).float(), self.reg(feats).float()

    @torch.no_grad()
    @torch.autocast('cpu', enabled=False)
    def targets(self, batch_data_samples: Sequence[Any], num_cameras: int, cells: tuple[int, int]) -> DenseTargets:
        """Computes the targets of a batch, on the CPU (these are a few dozen boxes).

        If the centres of several objects fall into one cell the nearest object is used, of equally near ones the first.
        Objects behind a camera or outside its image are ignored.

        Raises:
            ValueError: If a label is not a class of the head, or the size of an image is not a multiple of the cells.
        """
        for sample in batch_data_samples:
            check_canvas(canvas_of(sample.metainfo), cells)
        classes = [sample.gt_instances_3d.labels_3d for sample in batch_data_samples]
        check_labels(classes, self.num_classes, 'aux_head.num_classes')
        labels = torch.full((len(batch_data_samples) * num_cameras, *cells), self.num_classes)
        values = torch.zeros(*labels.shape, sum(PARTS.values()))
        for i, sample in enumerate(batch_data_samples):
            meta, truth = sample.metainfo, sample.gt_instances_3d
            boxes = torch.cat((truth.bboxes_3d.gravity_center, truth.bboxes_3d.tensor[:, 3:]), dim=1).float().cpu()
            canvas, shapes = canvas_of(meta), image_shapes_of(meta, num_cameras)
            projections = torch.as_tensor(lidar2img_of(meta), dtype=torch.float32)
            for camera in range(num_cameras):
                lidar2cam = torch.as_tensor(as_4x4(meta['lidar2cam'][camera]), dtype=torch.float32)
                seen = project_boxes(boxes, lidar2cam, projections[camera], self.focal)
                image = i * num_cameras + camera
                self._fill(labels[image], values[image], seen, truth.labels_3d.cpu(), canvas, shapes[camera])
        cell = (labels.flatten() < self.num_classes).nonzero()[:, 0]
        return DenseTargets(labels, cell, values.flatten(0, 2)[cell])

    @staticmethod
    def _fill(
        labels: Tensor,
        values: Tensor,
        seen: ProjectedBoxes,
        classes: Tensor,
        canvas: tuple[int, int],
        shape: tuple[int, int],
    ) -> None:
        height, width = labels.shape
        position = seen.pixel * torch.tensor((width / canvas[1], height / canvas[0]))
        inside = (seen.pixel >= 0).all(1) & (seen.pixel[:, 0] < shape[1]) & (seen.pixel[:, 1] < shape[0])
        visible = inside & (seen.depth > 0.5)
        for box in reversed(seen.depth.argsort(stable=True).tolist()):  # the nearest is written last and stays
            if visible[box]:
                column, row = position[box].floor().long().tolist()
                labels[row, column] = classes[box]
                values[row, column] = seen.values[box]
                values[row, column, :2] = position[box] - position[box].floor()

    def loss(self, img_feats: Sequence[Tensor], batch_data_samples: Sequence[Any]) -> dict[str, Tensor]:
        """Computes ``aux_loss_cls`` and ``aux_loss_<part>`` for every part of `PARTS`.

        Args:
            img_feats: Feature levels [B, cameras, channels, H, W]; the first is used.
            batch_data_samples: ``Det3DDataSample`` with ``gt_instances_3d``, ``lidar2cam`` and ``cam2img``.
        """
        logits, values = self(img_feats)
        targets = self.targets(batch_data_samples, img_feats[0].shape[1], tuple(logits.shape[-2:]))
        labels, cell, wanted = (part.to(logits.device) for part in targets)
        num_objects = reduce_mean(logits.new_tensor([float(len(cell))])).clamp(min=1)[0]
        flat_logits = logits.permute(0, 2, 3, 1).flatten(0, 2)
        loss_cls = self.loss_cls(flat_logits, labels.flatten(), avg_factor=num_objects)
        losses = {'aux_loss_cls': self.loss_weight * loss_cls}
        error = (values.permute(0, 2, 3, 1).flatten(0, 2)[cell] - wanted).abs()
        for part, error_of_part in zip(PARTS, error.split(list(PARTS.values()), dim=1)):
            weight = self.loss_weight * self.part_weights[part]
            losses[f'aux_loss_{part}'] = weight * error_of_part.sum() / num_objects
        return losses
