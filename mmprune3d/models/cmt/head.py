"""The CMT heads: LiDAR and image tokens are the keys of one decoder (Cross Modal Transformer, ICCV 2023).

Adapters use the attributes that they use in our PETR: ``head.transformer.decoder`` (with its key pruner),
``head.class_logits`` and ``head.learned_points``. The keys are the bird's-eye-view cells, row by row, then the image
cells, camera by camera.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from mmcv.cnn import ConvModule
from mmdet.models.layers.transformer import inverse_sigmoid
from mmdet3d.registry import MODELS, TASK_UTILS
from mmengine.model import BaseModule
from mmengine.structures import InstanceData
from torch import Tensor, nn

from mmprune3d.layers.attention import Keys
from mmprune3d.layers.gpq import PrunableEmbedding
from mmprune3d.models.petr.checks import check_counts, check_same_classes, check_truth
from mmprune3d.models.petr.decoder import PETR3DTransformer, flatten_cameras
from mmprune3d.models.petr.denoising import DenoisingBatch, DenoisingQueries
from mmprune3d.models.petr.geometry import canvas_of, img2lidar_of
from mmprune3d.models.petr.head import PETR3DHead, gravity_boxes
from mmprune3d.models.petr.position import depth_bins
from mmprune3d.ops.cameras import lidar2img_of

from .losses import CmtLoss
from .position import bev_cells, pixel_rays, point_rays, pos2embed
from .task_heads import CLASS_HEAD, SeparateTaskHead

COMMON_HEADS = {'center': (2, 2), 'height': (1, 2), 'dim': (3, 2), 'rot': (2, 2), 'vel': (2, 2)}
CODE_WEIGHTS = (2.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.2, 0.2)


def mlp(width: int, hidden: int, out: int) -> nn.Sequential:
    """Two linear layers with a ReLU between them."""
    return nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, out))


@MODELS.register_module()
class CMT3DHead(BaseModule):
    """The detection head of CMT for LiDAR and cameras.

    Args:
        tasks: Tasks, each with ``num_class`` and ``class_names``; labels count through the tasks.
        bbox_coder: Config of the box coder, ``CMT3DBBoxCoder``.
        grid_size: Number of voxels along x, y and z.
        in_channels: Channels of the bird's-eye-view features.
        num_query: Number of learned queries.
        hidden_dim: Width C of the tokens, and channels of the image features.
        depth_num: Number of depths along each ray.
        downsample_scale: Voxels per bird's-eye-view cell, along x and y.
        transformer: Arguments of ``PETR3DTransformer``, whose `feedforward_channels` is 1024 unless given.
        common_heads: Box branches of a task: name -> number of outputs, number of convolutions.
        separate_head: Arguments ``final_kernel`` and ``init_bias`` of ``SeparateTaskHead``.
        code_weights: Weight of every entry of the box code in the loss and the matching.
        denoising: Arguments of ``DenoisingQueries``, or None for no denoising.
        loss_cls: Config of the classification loss.
        loss_bbox: Config of the box loss.
        init_cfg: Initialization, as in ``BaseModule``.

    Raises:
        ValueError: If the box coder has another number of classes than the tasks, or a number is not valid.
    """

    uses_points = True
    uses_images = True

    def __init__(
        self,
        tasks: Sequence[Mapping[str, Any]],
        bbox_coder: dict,
        grid_size: Sequence[int],
        in_channels: int = 512,
        num_query: int = 900,
        hidden_dim: int = 256,
        depth_num: int = 64,
        downsample_scale: int = 8,
        transformer: dict | None = None,
        common_heads: Mapping[str, Sequence[int]] | None = None,
        separate_head: dict | None = None,
        code_weights: Sequence[float] = CODE_WEIGHTS,
        denoising: dict | None = None,
        loss_cls: dict | None = None,
        loss_bbox: dict | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        check_counts(num_query=num_query, depth_num=depth_num, downsample_scale=downsample_scale)
        self.class_counts = [task['num_class'] for task in tasks]
        self.num_classes = sum(self.class_counts)
        self.bbox_coder = TASK_UTILS.build(bbox_coder)
        check_same_classes(self.num_classes, self.bbox_coder.num_classes, 'pts_bbox_head.bbox_coder')
        self.num_query, self.depth_num, self.embed_dims = num_query, depth_num, hidden_dim
        self.grid_size, self.downsample_scale = list(grid_size), downsample_scale
        self.denoising = None if denoising is None else DenoisingQueries(**denoising)
        self.set_loss = CmtLoss(self.class_counts, loss_cls, loss_bbox)
        # Not in the state dict: official checkpoints have no such key.
        self.register_buffer('code_weights', torch.tensor(code_weights), persistent=False)

        self.transformer = PETR3DTransformer(
            **{'embed_dims': hidden_dim, 'feedforward_channels': 1024, **(transformer or {})}
        )
        self.reference_points = PrunableEmbedding(num_query, 3)
        self.bev_embedding = mlp(hidden_dim * 2, hidden_dim, hidden_dim)
        if self.uses_points:
            norm_cfg = {'type': 'BN2d'}
            self.shared_conv = ConvModule(in_channels, hidden_dim, 3, padding=1, bias=False, norm_cfg=norm_cfg)
        if self.uses_images:
            self.rv_embedding = mlp(depth_num * 3, hidden_dim * 4, hidden_dim)
        branches = dict(common_heads or COMMON_HEADS)
        self.task_heads = nn.ModuleList(
            SeparateTaskHead(
                hidden_dim, {**branches, CLASS_HEAD: (count, 2)}, self.transformer.num_layers, **(separate_head or {})
            )
            for count in self.class_counts
        )

    def init_weights(self) -> None:
        """Initializes reference points uniformly in the range, and every class with a low probability."""
        super().init_weights()
        nn.init.uniform_(self.reference_points.weight, 0, 1)
        for task in self.task_heads:
            task.init_weights()

    def learned_points(self) -> Tensor:
        """Reference points of the learned queries that are not pruned: [N_q, 3] in 0..1 of the detection range."""
        return self.reference_points.weight

    def class_logits(self, layer: int, query: Tensor) -> Tensor:
        """Class logits [B, N_q, classes] of all tasks, for the queries of decoder layer `layer` after the norm."""
        return torch.cat([task.branch(CLASS_HEAD, layer, query) for task in self.task_heads], dim=-1).float()

    def query_positions(
        self, points: Tensor, lidar2img: Tensor | None, img2lidar: Tensor | None, canvas: tuple[int, int] | None
    ) -> Tensor:
        """Computes the positional embedding [B, N, C] of reference points [B, N, 3] (CMT, section 3.3)."""
        embedding = self.bev_embedding(pos2embed(points[..., :2], self.embed_dims))
        if self.uses_images:
            rays, seen = point_rays(points, lidar2img, img2lidar, canvas, self._depths(points), self._range)
            # A sum, not a mean, as published; points that no camera sees have no image part.
            embedding = embedding + (self.rv_embedding(rays) * seen[..., None]).sum(1)
        return embedding

    def bev_positions(self) -> Tensor:
        """Computes the positional embedding [cells, C] of the bird's-eye-view keys (CMT, section 3.2)."""
        device = self.reference_points.weight.device
        cells = bev_cells(self.grid_size, self.downsample_scale, device)
        return self.bev_embedding(pos2embed(cells, self.embed_dims))

    def image_positions(self, img2lidar: Tensor, canvas: tuple[int, int], cells: tuple[int, int]) -> Tensor:
        """Computes the positional embedding [B, cameras, H, W, C] of the image keys (CMT, section 3.2)."""
        rays = pixel_rays(img2lidar, canvas, cells, self._depths(img2lidar), self._range)
        return self.rv_embedding(rays)

    def forward_tensors(
        self,
        pts_feats: Tensor | None,
        img_feats: Tensor | None,
        lidar2img: Tensor | None,
        img2lidar: Tensor | None,
        canvas: tuple[int, int] | None,
        denoising: DenoisingBatch | None = None,
    ) -> list[dict[str, Tensor]]:
        """Computes the outputs from tensors alone, without meta information.

        Args:
            pts_feats: Bird's-eye-view features [B, channels, h, w], or None for the camera head.
            img_feats: Image features [B, cameras, C, H, W], or None for the LiDAR head.
            lidar2img: Projection matrices [B, cameras, 4, 4] float32, or None for the LiDAR head.
            img2lidar: Their inverses, or None.
            canvas: Height and width in pixels of the padded images, or None.
            denoising: Denoising queries to put before the learned ones, or None.

        Returns:
            The outputs of every task: name -> [layers, B, N_q, outputs], centres in metres, denoising queries first.
        """
        contents, positions = [], []
        if self.uses_points:
            contents.append(self.shared_conv(pts_feats).flatten(2).transpose(1, 2))
            positions.append(self.bev_positions().expand(len(pts_feats), -1, -1))
        if self.uses_images:
            contents.append(flatten_cameras(img_feats))
            positions.append(self.image_positions(img2lidar, canvas, tuple(img_feats.shape[-2:])).flatten(1, 3))
        content, key_pos = torch.cat(contents, dim=1), torch.cat(positions, dim=1)
        points = self.learned_points().expand(len(content), -1, -1)
        if denoising is not None:
            points = torch.cat((denoising.points, points), dim=1)
        # Numbers outside of 0..1 are clamped, and nothing else: official CMT has this detour too.
        query_pos = self.query_positions(inverse_sigmoid(points).sigmoid(), lidar2img, img2lidar, canvas)
        decoded = self.transformer.decoder(
            torch.zeros_like(query_pos),
            Keys(content + key_pos, content),
            query_pos,
            self.class_logits,
            None if denoising is None else denoising.self_attn_mask,
            0 if denoising is None else denoising.num,
        )
        return [self._located(task(decoded.queries), points) for task in self.task_heads]

    def _located(self, task: dict[str, Tensor], points: Tensor) -> dict[str, Tensor]:
        """Adds the reference points to the first three outputs and scales them to the range."""
        bounds = points.new_tensor(self._range)
        raw = torch.cat((task['center'], task['height']), dim=-1).float()
        scaled = (raw + inverse_sigmoid(points)).sigmoid() * (bounds[3:] - bounds[:3]) + bounds[:3]
        # "height" is the log of the length in the box code, although it is treated like a height here (as published).
        return {**task, 'center': scaled[..., :2], 'height': scaled[..., 2:]}

    @property
    def _range(self) -> list[float]:
        return self.bbox_coder.pc_range

    def _depths(self, like: Tensor) -> Tensor:
        return depth_bins(self.depth_num, 1.0, self._range[3], linear_increasing=False, device=like.device)

    def forward(
        self,
        pts_feats: Tensor | Sequence[Tensor] | None,
        img_feats: Tensor | Sequence[Tensor] | None,
        metas: Sequence[Mapping[str, Any]],
        denoising: DenoisingBatch | None = None,
    ) -> list[dict[str, Tensor]]:
        """Computes the outputs from features and meta information.

        Args:
            pts_feats: Bird's-eye-view features [B, channels, h, w], or several levels of which the first is used.
            img_feats: Image features [B, cameras, C, H, W], or several levels of which the first is used.
            metas: Meta information of each sample; camera matrices and ``pad_shape`` if the head has image keys.
            denoising: Denoising queries to put before the learned ones, or None.

        Returns:
            The outputs of every task; see :meth:`forward_tensors`.

        Raises:
            ValueError: If the features of a sensor that the head needs are missing.
        """
        pts_feats, img_feats = first_level(pts_feats), first_level(img_feats)
        lidar2img = img2lidar = canvas = None
        for needed, feats, sensor in ((self.uses_points, pts_feats, 'LiDAR'), (self.uses_images, img_feats, 'camera')):
            if needed and feats is None:
                raise ValueError(f'{type(self).__name__} needs {sensor} features, but got None')
        if self.uses_images:
            matrices = np.stack([lidar2img_of(meta) for meta in metas])
            device = img_feats.device
            lidar2img = torch.as_tensor(matrices, dtype=torch.float32, device=device)
            img2lidar = img2lidar_of(metas, device)
            canvas = canvas_of(metas[0])
        return self.forward_tensors(pts_feats, img_feats, lidar2img, img2lidar, canvas, denoising)

    def loss(self, pts_feats: Any, img_feats: Any, batch_data_samples: Sequence[Any]) -> dict[str, Tensor]:
        """Computes the losses of all decoder layers; the features are those of :meth:`forward`."""
        metas = [sample.metainfo for sample in batch_data_samples]
        labels, boxes = zip(*map(self._truth, batch_data_samples))
        queries = self._denoising(boxes)
        tasks = self(pts_feats, img_feats, metas, queries)
        first = 0 if queries is None else queries.num
        learned = [{name: value[:, :, first:] for name, value in task.items()} for task in tasks]
        losses = self.set_loss.matched(learned, labels, boxes, self.code_weights)
        if queries is not None:
            noised = [{name: value[:, :, :first] for name, value in task.items()} for task in tasks]
            split, weight = self.denoising.split, self.denoising.weight
            found = self.set_loss.denoised(noised, labels, boxes, self.code_weights, queries, split)
            losses |= {name: weight * value for name, value in found.items()}
        return losses

    def _denoising(self, boxes: Sequence[Tensor]) -> DenoisingBatch | None:
        """Draws denoising queries, in so many groups that there are not more of them than learned queries."""
        if self.denoising is None:
            return None
        num_learned = len(self.learned_points())
        largest = max(1, *(len(sample) for sample in boxes))
        drawn = self.denoising
        groups = max(1, min(drawn.groups, num_learned // largest))
        fitted = DenoisingQueries(groups, drawn.noise_scale, drawn.noise_trans, drawn.split, drawn.weight)
        return fitted.make(list(boxes), self._range, num_learned)

    def _truth(self, sample: Any) -> tuple[Tensor, Tensor]:
        """Labels [n] and boxes [n, 7 or 9] of one sample."""
        check_truth(sample, self.num_classes, len(self.code_weights))
        boxes, labels = sample.gt_instances_3d.bboxes_3d, sample.gt_instances_3d.labels_3d
        device = self.code_weights.device
        return labels.to(device), gravity_boxes(boxes)[:, : len(self.code_weights) - 1].to(device)

    def predict(self, pts_feats: Any, img_feats: Any, batch_data_samples: Sequence[Any]) -> list[InstanceData]:
        """Computes the final boxes of every sample; the features are those of :meth:`forward`."""
        metas = [sample.metainfo for sample in batch_data_samples]
        found = self.bbox_coder.decode(self(pts_feats, img_feats, metas))
        return [PETR3DHead.to_instances(meta, *sample) for meta, sample in zip(metas, found, strict=True)]


@MODELS.register_module()
class CMT3DImageHead(CMT3DHead):
    """The detection head of CMT for cameras alone; the arguments are those of ``CMT3DHead``."""

    uses_points = False


@MODELS.register_module()
class CMT3DLidarHead(CMT3DHead):
    """The detection head of CMT for LiDAR alone; the arguments are those of ``CMT3DHead``."""

    uses_images = False


def first_level(feats: Tensor | Sequence[Tensor] | None) -> Tensor | None:
    """The first of several levels of features."""
    return feats if feats is None or isinstance(feats, Tensor) else feats[0]
