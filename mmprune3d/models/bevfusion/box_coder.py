"""Encoding of boxes as the values that the TransFusion head regresses.

A box is (x, y, z of the bottom face, l, w, h, yaw[, vx, vy]) in metres, radians and metres per second, yaw
counter-clockwise from x. A code is (x, y in cells of the map, z of the centre in metres, log l, log w, log h, sin yaw,
cos yaw[, vx, vy]).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from mmdet3d.registry import TASK_UTILS
from torch import Tensor


@TASK_UTILS.register_module()
class BEVFusion3DBoxCoder:
    """Encodes boxes for the TransFusion head and decodes its outputs.

    Args:
        pc_range: Origin of the map, x and y in metres; further numbers are ignored.
        out_size_factor: Voxels per cell of the map along each axis.
        voxel_size: Size of a voxel along x and y in metres; further numbers are ignored.
        post_center_range: Range in which the bottom centre of a detection must lie (limits included): lower x, y, z,
            upper x, y, z in metres. None keeps all detections.
        score_threshold: Score that a detection must exceed. None and 0 keep all, including those with score 0.
        code_size: 8, or 10 with velocities.

    Raises:
        ValueError: If `code_size` is neither 8 nor 10, or `post_center_range` does not have six numbers.
    """

    def __init__(
        self,
        pc_range: Sequence[float],
        out_size_factor: int,
        voxel_size: Sequence[float],
        post_center_range: Sequence[float] | None = None,
        score_threshold: float | None = None,
        code_size: int = 8,
    ) -> None:
        if code_size not in (8, 10):
            raise ValueError(f'code_size must be 8, or 10 with velocities, got {code_size}')
        if post_center_range is not None and len(post_center_range) != 6:
            raise ValueError(
                f'post_center_range must be six numbers, lower x, y, z, upper x, y, z, got {list(post_center_range)}'
            )
        self.origin = tuple(pc_range[:2])
        self.cell_size = tuple(out_size_factor * size for size in voxel_size[:2])
        self.post_center_range = post_center_range
        self.score_threshold = score_threshold
        self.code_size = code_size

    def encode(self, boxes: Tensor) -> Tensor:
        """Encodes boxes [..., 7 or 9] as codes [..., code_size].

        Raises:
            ValueError: If the codes have velocities and the boxes do not.
        """
        x, y, z, length, width, height, yaw = boxes[..., :7].unbind(-1)
        columns = [
            (x - self.origin[0]) / self.cell_size[0],
            (y - self.origin[1]) / self.cell_size[1],
            z + height * 0.5,
            length.log(),
            width.log(),
            height.log(),
            yaw.sin(),
            yaw.cos(),
        ]
        codes = torch.stack(columns, dim=-1)
        if self.code_size == 8:
            return codes
        if boxes.shape[-1] < 9:
            raise ValueError(
                'the boxes of the data have no velocity, but bbox_coder.code_size is 10: set code_size=8, code_weights '
                'of 8 numbers and common_heads without vel, or with_velocity=True of the dataset'
            )
        return torch.cat((codes, boxes[..., 7:9]), dim=-1)

    def decode(self, predictions: Mapping[str, Tensor]) -> Tensor:
        """Decodes the outputs of a head to boxes [B, P, 7], or [B, P, 9] with ``vel``; the outputs are not modified.

        Args:
            predictions: ``center`` [B, 2, P], ``height`` [B, 1, P], ``dim`` [B, 3, P], ``rot`` [B, 2, P] (sine and
                cosine, not necessarily with norm 1) and optionally ``vel`` [B, 2, P].
        """
        size = predictions['dim'].exp()
        x = predictions['center'][:, :1] * self.cell_size[0] + self.origin[0]
        y = predictions['center'][:, 1:2] * self.cell_size[1] + self.origin[1]
        bottom = predictions['height'] - size[:, 2:3] * 0.5
        yaw = torch.atan2(predictions['rot'][:, :1], predictions['rot'][:, 1:2])
        velocity = [predictions['vel']] if 'vel' in predictions else []
        return torch.cat((x, y, bottom, size, yaw, *velocity), dim=1).transpose(1, 2)

    def keep(self, boxes: Tensor, scores: Tensor) -> Tensor:
        """Marks detections, boxes [..., 7+] with scores [...], that pass the range and score limits: bool [...]."""
        keep = scores > self.score_threshold if self.score_threshold else torch.ones_like(scores, dtype=torch.bool)
        if self.post_center_range is not None:
            limits = boxes.new_tensor(self.post_center_range)
            inside = (boxes[..., :3] >= limits[:3]) & (boxes[..., :3] <= limits[3:])
            keep = keep & inside.all(-1)
        return keep
