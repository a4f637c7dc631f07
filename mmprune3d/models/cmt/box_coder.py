"""Box coder of CMT: the most confident (query, class) pairs over all tasks together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from mmdet3d.registry import TASK_UTILS
from torch import Tensor

from mmprune3d.models.petr.box_coder import PETR3DBoxCoder, decode_boxes, encode_boxes
from mmprune3d.pruning.selection import top_indices

from .task_heads import CLASS_HEAD

BOX_HEADS = ('center', 'height', 'dim', 'rot', 'vel')
"""Order in which the branches are concatenated. The names mislead: with the code (cx, cy, log l, log w, cz, log h, sin,
cos, vx, vy) the branch "height" is log l, and cz is the second number of "dim"."""


def box_codes(task: Mapping[str, Tensor], prefix: str = '') -> Tensor:
    """Concatenates the box branches of a task to codes [..., 8 or 10]; see :data:`BOX_HEADS` for what they mean."""
    return torch.cat([task[prefix + name] for name in BOX_HEADS if prefix + name in task], dim=-1)


def normalize_bbox(boxes: Tensor) -> Tensor:
    """Encodes boxes [..., 7 or 9] (z at the centre) as codes [..., 8 or 10]."""
    return encode_boxes(boxes, 'mmdet3d')


def denormalize_bbox(codes: Tensor) -> Tensor:
    """Decodes codes [..., 8 or 10] to boxes [..., 7 or 9], z at the centre."""
    return decode_boxes(codes, 'mmdet3d')


@TASK_UTILS.register_module()
class CMT3DBBoxCoder(PETR3DBoxCoder):
    """Selects the final boxes of all tasks, without non-maximum suppression.

    Args:
        pc_range: Lower x, y, z and upper x, y, z in metres; the head predicts centres relative to this range.
        post_center_range: Range in which the centre of a final box must lie, in metres; None keeps all.
        max_num: Number of (query, class) pairs with the highest scores that are decoded, over all tasks. If there are
            fewer pairs, as after query pruning, all are decoded (official CMT fails if there are fewer queries).
        score_threshold: Score that a final box must exceed; None and 0 keep all.
        num_classes: Number of classes of all tasks together.
        voxel_size: Ignored; official configs have it.

    Raises:
        ValueError: If a range is not valid, or `max_num` or `num_classes` is less than 1.
    """

    def __init__(
        self,
        pc_range: Sequence[float],
        post_center_range: Sequence[float] | None = None,
        max_num: int = 300,
        score_threshold: float | None = None,
        num_classes: int = 10,
        voxel_size: Sequence[float] | None = None,
    ) -> None:
        super().__init__(pc_range, post_center_range, max_num, score_threshold, num_classes)

    def decode(self, tasks: Sequence[Mapping[str, Tensor]]) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Selects the final boxes of every sample, by descending score.

        Args:
            tasks: Outputs of every task, name -> [layers, B, N_q, outputs]; the last layer is decoded.

        Returns:
            Boxes [n, 7 or 9] with z at the centre, scores [n] in 0..1 and labels [n] int64 of each sample.
        """
        logits = torch.cat([task[CLASS_HEAD][-1] for task in tasks], dim=-1)
        codes = torch.stack([box_codes(task)[-1] for task in tasks], dim=2)
        widths = torch.tensor([task[CLASS_HEAD].shape[-1] for task in tasks], device=logits.device)
        task_of = torch.arange(len(tasks), device=logits.device).repeat_interleave(widths)
        return [self.decode_single(*sample, task_of) for sample in zip(logits, codes)]

    def decode_single(self, logits: Tensor, codes: Tensor, task_of: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Selects the final boxes of one sample.

        Args:
            logits: Class logits [N_q, classes] of all tasks.
            codes: Box codes [N_q, tasks, 8 or 10].
            task_of: Task of every class [classes] int64.
        """
        scores = logits.float().sigmoid().flatten()
        index = top_indices(scores, min(self.max_num, len(scores)))
        scores = scores[index]
        labels = index % logits.shape[-1]
        query = torch.div(index, logits.shape[-1], rounding_mode='floor')
        boxes = denormalize_bbox(codes.float()[query, task_of[labels]])
        return self.inside(boxes, scores, labels)
