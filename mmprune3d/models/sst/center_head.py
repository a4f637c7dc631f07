"""CenterPoint's head for boxes with and without velocities.

mmdet3d 1.4's ``CenterHead`` reads two velocities from every ground-truth box and from every prediction, so it fails on
the boxes of KITTI and Waymo, which have seven columns. It also copies single numbers from the device for every object.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmdet3d.models.dense_heads import CenterHead
from mmdet3d.registry import MODELS
from mmengine.structures import InstanceData
from torch import Tensor, nn

from mmprune3d.models.bevfusion.heatmap_targets import heatmap_targets

from .agreement import check_centre_head, check_map

CHANNELS = {'reg': 2, 'height': 1, 'dim': 3, 'rot': 2}
"""Channels of the maps that every head predicts; together with two for ``vel`` they are a box's code."""

NMS_TYPES = ('circle', 'rotate')


@MODELS.register_module()
class SSTCenterHead(CenterHead):
    """A ``CenterHead`` that also supports boxes without velocities, with the same arguments and state-dict keys.

    Without ``vel`` in `common_heads` a box has a code of 8 numbers (offset x, y in cells, z of the centre, log l, w, h,
    sin and cos of yaw) and predictions have 7 columns (x, y, z of the bottom, l, w, h, yaw); velocities of the ground
    truth are not used. With ``vel`` the code has 10 numbers and predictions have 9 columns, or 7 if the box coder's
    `code_size` is 7. Ground truth without velocities is then allowed if the last two `code_weights` are 0, which is how
    SST's official Waymo configs are written.

    Args:
        common_heads: Channels and numbers of convolutions of ``reg``, ``height``, ``dim``, ``rot`` and, where
            velocities are predicted, ``vel``.
        kwargs: Arguments of ``CenterHead``. `train_cfg` and `test_cfg` are those of the detector.

    Raises:
        ValueError: If a map is missing, unknown or has another number of channels, if the length of `code_weights` is
            not that of a box code, or if the coder's `code_size` includes velocities that are not predicted; if coder,
            `train_cfg` and `tasks` disagree, `nms_type` is unknown, or the size of the map differs from `train_cfg`.
    """

    def __init__(self, common_heads: dict[str, Sequence[int]], **kwargs: Any) -> None:
        super().__init__(common_heads=common_heads, **kwargs)
        check_centre_head(self.bbox_coder, self.train_cfg, kwargs['tasks'])
        nms_type = (self.test_cfg or {}).get('nms_type', 'rotate')
        if nms_type not in NMS_TYPES:
            raise ValueError(f'test_cfg.nms_type is {nms_type!r}; valid are {", ".join(NMS_TYPES)}')
        self.with_velocity = 'vel' in common_heads
        expected = {**CHANNELS, 'vel': 2} if self.with_velocity else CHANNELS
        found = {name: channels for name, (channels, _) in common_heads.items()}
        if found != expected:
            raise ValueError(f'common_heads have the channels {found}; valid are {CHANNELS}, optionally with vel of 2')
        self.code_length = sum(expected.values())
        sizes = (7, 9) if self.with_velocity else (7,)
        if self.bbox_coder.code_size not in sizes:
            raise ValueError(
                f'the bbox_coder has code_size={self.bbox_coder.code_size}; valid {self._which} are {sizes}'
            )
        if self.train_cfg is not None:
            self._check_code_weights(self.train_cfg.get('code_weights'))

    def init_weights(self) -> None:
        """Initializes the biases of heatmaps so that scores start near 0.

        mmdet3d's own ``init_weights`` of the task heads is never called (mmengine does not descend into a plain
        ``ModuleList``), so that its scores start at 0.5 everywhere and the loss is hundreds of times larger.
        """
        super().init_weights()
        for head in self.task_heads:
            last = (head.cls_head if hasattr(head, 'cls_head') else head.heatmap)[-1]
            nn.init.constant_(last.bias, head.init_bias)

    def forward_single(self, x: Tensor) -> list[dict[str, Tensor]]:
        """Computes the predictions of each task from a map [B, in_channels, ny, nx]."""
        x = self.shared_conv(x)
        # Maps of tokens are channels-last, which mmcv's deformable convolution does not support on a CPU.
        return [task(x.contiguous() if hasattr(task, 'feature_adapt_cls') else x) for task in self.task_heads]

    @property
    def _which(self) -> str:
        return 'with vel in common_heads' if self.with_velocity else 'without vel in common_heads'

    def _check_code_weights(self, weights: Sequence[float] | None) -> None:
        if weights is None or len(weights) != self.code_length:
            parts = 'x, y, z, l, w, h, sin, cos' + (', vx, vy' if self.with_velocity else '')
            raise ValueError(
                f'train_cfg.code_weights is {weights}; {self._which} it must be a list of {self.code_length} ({parts})'
            )

    def get_targets_single(self, gt_instances_3d: InstanceData) -> tuple[list[Tensor], ...]:
        """Computes the targets of one sample, without a copy to the host for each object.

        Args:
            gt_instances_3d: ``bboxes_3d`` of 7 or 9 columns and ``labels_3d``. Objects whose label belongs to no task
                are ignored, and so are boxes without a footprint or with their centre outside of the map.

        Returns:
            For each task: the heatmap [classes, ny, nx] float32, codes [max_objs, 8 or 10] float32, cells [max_objs]
            int64 (y * nx + x) and the mask of used rows [max_objs] uint8. At most `max_objs` objects are kept, ordered
            by class and then as in the ground truth, like in ``CenterHead``.

        Raises:
            ValueError: If objects have no velocities although velocities have a weight, or if boxes have neither 7 nor
                9 columns.
        """
        labels = gt_instances_3d.labels_3d
        boxes = gt_instances_3d.bboxes_3d
        boxes = torch.cat((boxes.gravity_center, boxes.tensor[:, 3:]), dim=1).to(labels.device)
        boxes = self._with_code_columns(boxes)
        first, tasks = 0, []
        order = labels.argsort(stable=True)
        for classes in self.num_classes:
            rows = order[(labels[order] >= first) & (labels[order] < first + classes)]
            tasks.append(self._task_targets(boxes[rows], labels[rows] - first, classes))
            first += classes
        return tuple(map(list, zip(*tasks)))

    def _with_code_columns(self, boxes: Tensor) -> Tensor:
        """Boxes [N, 7 or 9] with the columns that are predicted."""
        if boxes.shape[1] not in (7, 9):
            raise ValueError(f'boxes have {boxes.shape[1]} columns; valid are 7, and 9 with velocities')
        if not self.with_velocity or boxes.shape[1] == 9:
            return boxes[:, : 9 if self.with_velocity else 7]
        if len(boxes) and any(self.train_cfg['code_weights'][8:]):
            raise ValueError(
                'the head predicts velocities and the boxes have none: set the last two code_weights to 0, or take vel '
                'out of common_heads'
            )
        return torch.cat((boxes, boxes.new_zeros(len(boxes), 2)), dim=1)

    def _task_targets(self, boxes: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Heatmap, codes, cells and mask of one task, for its boxes [N, 7 or 9] (z of the centre) and labels [N]."""
        cfg = self.train_cfg
        stride, most = cfg['out_size_factor'], cfg['max_objs'] * cfg['dense_reg']
        nx, ny = (size // stride for size in cfg['grid_size'][:2])
        boxes, labels = boxes[:most], labels[:most]
        voxel = boxes.new_tensor(cfg['voxel_size'][:2])
        size = boxes[:, 3:5] / voxel / stride
        centre = (boxes[:, :2] - boxes.new_tensor(cfg['point_cloud_range'][:2])) / voxel / stride
        cell = centre.int()
        used = ((size > 0) & (cell >= 0) & (cell < cell.new_tensor([nx, ny]))).all(1)

        # In units of cells, and with x and y exchanged because these maps are [y, x]. Unused boxes get size 0, which is
        # not drawn.
        drawn = torch.cat((centre.flip(1), boxes[:, 2:3], (size * used[:, None]).flip(1)), dim=1)
        shape, overlap = (1, classes, ny, nx), cfg['gaussian_overlap']
        heatmap = heatmap_targets([drawn], [labels], shape, (0.0, 0.0), (1.0, 1.0), overlap, cfg['min_radius'])[0]

        sides, yaw = boxes[:, 3:6], boxes[:, 6:7]
        sides = sides.log() if self.norm_bbox else sides
        code = torch.cat((centre - cell, boxes[:, 2:3], sides, yaw.sin(), yaw.cos(), boxes[:, 7:]), dim=1)
        codes, mask = boxes.new_zeros(most, self.code_length), labels.new_zeros(most, dtype=torch.uint8)
        index = labels.new_zeros(most, dtype=torch.long)
        codes[: len(boxes)] = code.where(used[:, None], 0)
        index[: len(boxes)] = (cell[:, 1] * nx + cell[:, 0]).where(used, 0)
        mask[: len(boxes)] = used
        return heatmap, codes, index, mask

    def loss_by_feat(
        self, preds_dicts: tuple[list[dict]], batch_gt_instances_3d: list[InstanceData], *args: Any, **kwargs: Any
    ) -> dict[str, Tensor]:
        """Computes the losses of the heatmap and the boxes of each task, as ``CenterHead`` does.

        Unlike there, the predictions are not modified and can be used again.

        Args:
            preds_dicts: For each task a list of one dict of maps [B, channels, ny, nx].
            batch_gt_instances_3d: Boxes and labels of each sample.
            args: Not used, as in ``CenterHead``.
            kwargs: Not used, as in ``CenterHead``.
        """
        check_map(preds_dicts[0][0]['heatmap'].shape, self.train_cfg)
        # CenterHead computes the sigmoid in place and always concatenates velocities, here possibly with 0 channels.
        copies = tuple(
            [{'vel': maps['reg'][:, :0], **maps, 'heatmap': maps['heatmap'].clone()} for maps in levels]
            for levels in preds_dicts
        )
        return super().loss_by_feat(copies, batch_gt_instances_3d, *args, **kwargs)

    def predict_by_feat(
        self, preds_dicts: tuple[list[dict]], batch_input_metas: list[dict], *args: Any, **kwargs: Any
    ) -> list[InstanceData]:
        """Decodes the boxes of each sample, with as many columns as the coder's `code_size`.

        Args:
            preds_dicts: For each task a list of one dict of maps [B, channels, ny, nx].
            batch_input_metas: Meta information of each sample, with ``box_type_3d``.
            args: Not used, as in ``CenterHead``.
            kwargs: Not used, as in ``CenterHead``.

        Returns:
            ``bboxes_3d``, ``scores_3d`` and ``labels_3d`` of each sample.
        """
        check_map(preds_dicts[0][0]['heatmap'].shape, self.train_cfg)
        if self.bbox_coder.code_size == 7:
            preds_dicts = tuple(
                [{name: part for name, part in maps.items() if name != 'vel'} for maps in levels]
                for levels in preds_dicts
            )
        return super().predict_by_feat(preds_dicts, batch_input_metas, *args, **kwargs)
