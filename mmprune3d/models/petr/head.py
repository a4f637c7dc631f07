"""The PETR head: position embedding, decoder and branches (Position Embedding Transformation, ECCV 2022).

Adapters use these attributes: ``head.transformer.decoder`` (see ``decoder.py`` for its key pruner),
``head.class_logits`` (classification of a layer's queries), ``head.learned_points`` (the only place where learned
queries are read) and ``head.forward_tensors`` (tensors in, tensors out, for export and timing).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmdet.models.layers.transformer import inverse_sigmoid
from mmdet3d.registry import MODELS, TASK_UTILS
from mmengine.model import BaseModule
from mmengine.model.weight_init import bias_init_with_prob
from mmengine.structures import InstanceData
from torch import Tensor, nn

from mmprune3d.layers.gpq import PrunableEmbedding

from .checks import check_cameras, check_codes, check_counts, check_depth, check_same_classes, check_truth
from .denoising import DenoisingBatch, DenoisingQueries
from .geometry import canvas_of, image_shapes_of, img2lidar_of
from .losses import SetLoss
from .position import depth_bins, embed_cells, embed_points, frustum_embedding, padded_cells

POSITION_RANGE = (-61.2, -61.2, -10.0, 61.2, 61.2, 10.0)


def conv_mlp(in_channels: int, hidden: int, out_channels: int) -> nn.Sequential:
    """Builds two 1x1 convolutions with a ReLU between them."""
    return nn.Sequential(nn.Conv2d(in_channels, hidden, 1), nn.ReLU(), nn.Conv2d(hidden, out_channels, 1))


def cls_branch(embed_dims: int, num_layers: int, num_classes: int) -> nn.Sequential:
    """Builds a classification branch: linear layers with layer norms, then the class logits."""
    layers: list[nn.Module] = []
    for _ in range(num_layers):
        layers += [nn.Linear(embed_dims, embed_dims), nn.LayerNorm(embed_dims), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.Linear(embed_dims, num_classes))


def reg_branch(embed_dims: int, num_layers: int, code_size: int) -> nn.Sequential:
    """Builds a regression branch: linear layers, then the box code."""
    layers: list[nn.Module] = []
    for _ in range(num_layers):
        layers += [nn.Linear(embed_dims, embed_dims), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(embed_dims, code_size))


@MODELS.register_module()
class PETR3DHead(BaseModule):
    """The detection head of PETR: detects objects from the features of several cameras.

    Parameters have the names and shapes of official PETR, including one entry per decoder layer for the shared
    branches. Box regression, geometry and losses run in float32, also under autocast.

    Args:
        num_classes: Number of classes, without background.
        in_channels: Channels of the image features.
        transformer: Config of the transformer.
        bbox_coder: Config of the box coder; its ``convention`` sets the meaning of the regression outputs.
        num_query: Number of learned queries.
        num_reg_fcs: Number of hidden layers of the branches.
        depth_num: Number of depths along each ray.
        depth_start: First depth in metres.
        lid: Whether depth steps increase linearly (LID) instead of being uniform.
        position_range: Lower x, y, z and upper x, y, z in metres, for the position embedding; the upper x is also the
            last depth.
        code_weights: Weight of every entry of the box code in the loss: 10, or 8 for a detector without velocities.
            The values of the config are used; those in a checkpoint are ignored.
        share_branches: Whether all decoder layers use the same classification branch and the same regression branch.
        all_layers_at_test: Whether `predict` computes the branches of all layers instead of the last one only.
        assigner: Config of the matching (training only).
        loss_cls: Config of the classification loss; sigmoid.
        loss_bbox: Config of the box loss.
        denoising: Arguments of :class:`DenoisingQueries`, or None for no denoising.
        init_cfg: Initialization, as in ``BaseModule``.

    Raises:
        ValueError: If the number of code weights is neither 8 nor 10, the box coder has another number of classes, or
            a number is not valid.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        transformer: dict,
        bbox_coder: dict,
        num_query: int = 900,
        num_reg_fcs: int = 2,
        depth_num: int = 64,
        depth_start: float = 1.0,
        lid: bool = True,
        position_range: Sequence[float] = POSITION_RANGE,
        code_weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.2, 0.2),
        share_branches: bool = True,
        all_layers_at_test: bool = False,
        assigner: dict | None = None,
        loss_cls: dict | None = None,
        loss_bbox: dict | None = None,
        denoising: dict | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        check_counts(num_classes=num_classes, num_query=num_query, depth_num=depth_num)
        check_depth(depth_start, position_range)
        check_codes(code_weights)
        self.num_classes = num_classes
        self.num_query = num_query
        self.depth_num = depth_num
        self.depth_start = depth_start
        self.lid = lid
        self.position_range = list(position_range)
        self.all_layers_at_test = all_layers_at_test
        self.bbox_coder = TASK_UTILS.build(bbox_coder)
        check_same_classes(num_classes, self.bbox_coder.num_classes, 'pts_bbox_head.bbox_coder')
        self.denoising = None if denoising is None else DenoisingQueries(**denoising)
        self.set_loss = SetLoss(num_classes, self.bbox_coder, assigner, loss_cls, loss_bbox)
        self.register_buffer('code_weights', torch.tensor(code_weights))

        self.transformer = MODELS.build(transformer)
        width, num_layers = self.transformer.embed_dims, self.transformer.num_layers
        self.embed_dims = width
        self.input_proj = nn.Conv2d(in_channels, width, 1)
        # With shared branches one module is listed once per decoder layer (the list repeats the reference, it does not
        # copy). There is then one set of parameters, yet `cls_branches[layer]` works for every layer and the state dict
        # has an entry per layer (`cls_branches.0.` to `cls_branches.5.`), as the checkpoints of official PETR have.
        # Models of its family without shared branches (PETRv2, MV2D) need a module per layer.
        made = range(1 if share_branches else num_layers)
        cls_branches = [cls_branch(width, num_reg_fcs, num_classes) for _ in made]
        reg_branches = [reg_branch(width, num_reg_fcs, len(self.code_weights)) for _ in made]
        repeat = num_layers // len(made)
        self.cls_branches = nn.ModuleList(cls_branches * repeat)
        self.reg_branches = nn.ModuleList(reg_branches * repeat)
        self.adapt_pos3d = conv_mlp(width * 3 // 2, width * 4, width)
        self.position_encoder = conv_mlp(depth_num * 3, width * 4, width)
        self.reference_points = PrunableEmbedding(num_query, 3)
        self.query_embedding = nn.Sequential(nn.Linear(width * 3 // 2, width), nn.ReLU(), nn.Linear(width, width))

    def init_weights(self) -> None:
        """Initializes reference points uniformly in the range, and every class with a low probability."""
        super().init_weights()
        nn.init.uniform_(self.reference_points.weight, 0, 1)
        for branch in self.cls_branches:
            nn.init.constant_(branch[-1].bias, bias_init_with_prob(0.01))

    def learned_points(self) -> Tensor:
        """Reference points of the learned queries that are not pruned: [N_q, 3] in 0..1 of the detection range."""
        return self.reference_points.weight

    def class_logits(self, layer: int, query: Tensor) -> Tensor:
        """Class logits [B, N_q, classes], float32, of the queries of decoder layer `layer` after the norm."""
        return self.cls_branches[layer](query).float()

    def box_codes(self, layer: int, query: Tensor, points: Tensor) -> Tensor:
        """Box codes [B, N_q, S], float32, centres in metres, of the queries of decoder layer `layer` after the norm.

        Args:
            layer: Index of the decoder layer.
            query: Queries after the norm [B, N_q, C].
            points: Reference points [B, N_q, 3] in 0..1.
        """
        raw = self.reg_branches[layer](query).float()
        slots = self.bbox_coder.layout.centre
        bounds = raw.new_tensor(self.bbox_coder.pc_range)
        centre = (raw[..., list(slots)] + inverse_sigmoid(points.float())).sigmoid()
        columns = list(raw.unbind(-1))
        for slot, value in zip(slots, (centre * (bounds[3:] - bounds[:3]) + bounds[:3]).unbind(-1)):
            columns[slot] = value
        return torch.stack(columns, dim=-1)

    def key_positions(
        self, img2lidar: Tensor, mask: Tensor | None, canvas: tuple[int, int], cells: tuple[int, int]
    ) -> Tensor:
        """Computes the positional embedding of all keys (PETR, sections 3.2 and 3.3).

        Args:
            img2lidar: Inverse projection matrices [B, cameras, 4, 4] float32.
            mask: Padding of the images [B, cameras, H, W] bool, True for padding, or None.
            canvas: Height and width in pixels of the padded images.
            cells: Height H and width W of the feature map.

        Returns:
            Embeddings [B, cameras, C, H, W].
        """
        with torch.autocast(img2lidar.device.type, enabled=False):
            depths = depth_bins(self.depth_num, self.depth_start, self.position_range[3], self.lid, img2lidar.device)
            frustum = frustum_embedding(img2lidar, depths, canvas, cells, self.position_range)
            if mask is None:  # without padding one mask serves all samples
                mask = torch.zeros((1, img2lidar.shape[1], *cells), dtype=torch.bool, device=img2lidar.device)
            sine = embed_cells(mask, self.embed_dims // 2)
        rays = self.position_encoder(frustum.flatten(0, 1)).unflatten(0, img2lidar.shape[:2])
        return rays + self.adapt_pos3d(sine.flatten(0, 1)).unflatten(0, sine.shape[:2])

    def forward_tensors(
        self,
        img_feats: Tensor,
        img2lidar: Tensor,
        mask: Tensor | None,
        canvas: tuple[int, int],
        all_layers: bool = True,
        denoising: DenoisingBatch | None = None,
    ) -> dict[str, Tensor]:
        """Computes the outputs from tensors alone, without meta information.

        Args:
            img_feats: Image features [B, cameras, channels, H, W].
            img2lidar: Inverse projection matrices [B, cameras, 4, 4] float32.
            mask: Padding of the images [B, cameras, H, W] bool, True for padding, or None.
            canvas: Height and width in pixels of the padded images.
            all_layers: Return the outputs of all decoder layers, or of the last one only.
            denoising: Denoising queries to put before the learned ones, or None.

        Returns:
            ``all_cls_scores``, logits [layers or 1, B, N_q, classes], and ``all_bbox_preds``, box codes
            [layers or 1, B, N_q, S] with centres in metres. Denoising queries come first; if a pruner removes queries,
            N_q is the number of those that are left.
        """
        cells = img_feats.shape[-2:]
        memory = self.input_proj(img_feats.flatten(0, 1)).unflatten(0, img_feats.shape[:2])
        points = self.learned_points().expand(len(img_feats), -1, -1)
        if denoising is not None:
            points = torch.cat((denoising.points, points), dim=1)
        query_pos = self.query_embedding(embed_points(points, self.embed_dims // 2))
        decoded = self.transformer(
            memory,
            self.key_positions(img2lidar, mask, canvas, cells),
            query_pos,
            score_fn=self.class_logits,
            mask=mask,
            self_attn_mask=None if denoising is None else denoising.self_attn_mask,
            num_denoising=0 if denoising is None else denoising.num,
            all_layers=all_layers,
        )
        outputs, points = decoded.queries, decoded.reduce(points)
        layers = range(self.transformer.num_layers - len(outputs), self.transformer.num_layers)
        return {
            'all_cls_scores': torch.stack([self.class_logits(i, out) for i, out in zip(layers, outputs)]),
            'all_bbox_preds': torch.stack([self.box_codes(i, out, points) for i, out in zip(layers, outputs)]),
        }

    def forward(
        self,
        img_feats: Tensor | Sequence[Tensor],
        metas: Sequence[Mapping[str, Any]],
        all_layers: bool = True,
        denoising: DenoisingBatch | None = None,
    ) -> dict[str, Tensor]:
        """Computes the outputs from image features and meta information.

        Args:
            img_feats: Image features [B, cameras, channels, H, W], or several levels of which the first is used.
            metas: Meta information of each sample: ``cam2img`` and ``lidar2cam`` (or ``lidar2img``), ``pad_shape``, and
                ``img_shape`` (one size, or one per camera).
            all_layers: Return the outputs of all decoder layers, or of the last one only.
            denoising: Denoising queries to put before the learned ones, or None.

        Returns:
            The dictionary that :meth:`forward_tensors` returns.
        """
        feats = img_feats if isinstance(img_feats, Tensor) else img_feats[0]
        canvas = canvas_of(metas[0])
        shapes = [image_shapes_of(meta, feats.shape[1]) for meta in metas]
        mask = padded_cells(shapes, canvas, tuple(feats.shape[-2:]))
        mask = None if mask is None else mask.to(feats.device)
        img2lidar = img2lidar_of(metas, feats.device)
        check_cameras(feats.shape[1], img2lidar.shape[1])
        return self.forward_tensors(feats, img2lidar, mask, canvas, all_layers, denoising)

    def loss(self, img_feats: Sequence[Tensor], batch_data_samples: Sequence[Any]) -> dict[str, Tensor]:
        """Computes the losses of all decoder layers.

        Args:
            img_feats: Image features, as in :meth:`forward`.
            batch_data_samples: ``Det3DDataSample`` with ``gt_instances_3d``.

        Returns:
            ``loss_cls`` and ``loss_bbox`` of the last layer, the same with the prefixes ``d0.``, ``d1.`` ... for the
            other layers, and ``dn_loss_cls`` and ``dn_loss_bbox`` likewise if there are denoising queries.

        Raises:
            ValueError: If the head predicts velocities and the boxes have none, or a label is not a class of the head.
        """
        boxes, labels = zip(*map(self._truth, batch_data_samples))
        queries = None
        if self.denoising is not None:
            queries = self.denoising.make(boxes, self.bbox_coder.pc_range, len(self.learned_points()))
        outputs = self(img_feats, [sample.metainfo for sample in batch_data_samples], denoising=queries)
        logits, codes = outputs['all_cls_scores'], outputs['all_bbox_preds']
        first = 0 if queries is None else queries.num
        losses = self.set_loss.matched(logits[:, :, first:], codes[:, :, first:], labels, boxes, self.code_weights)
        if queries is not None:
            noised = self.set_loss.denoised(
                logits[:, :, :first], codes[:, :, :first], labels, boxes, self.code_weights, queries
            )
            losses |= {name: self.denoising.weight * value for name, value in noised.items()}
        return losses

    def _truth(self, sample: Any) -> tuple[Tensor, Tensor]:
        """Boxes [n, 7 or 9] (with velocities only if the head predicts them) and labels [n] of one sample."""
        check_truth(sample, self.num_classes, len(self.code_weights))
        boxes, labels = sample.gt_instances_3d.bboxes_3d, sample.gt_instances_3d.labels_3d
        device = self.code_weights.device
        return gravity_boxes(boxes)[:, : len(self.code_weights) - 1].to(device), labels.to(device)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Loads the state dict, except the code weights, which are settings: those of the config stay."""
        if f'{prefix}code_weights' in state_dict:
            state_dict[f'{prefix}code_weights'] = self.code_weights
        super()._load_from_state_dict(state_dict, prefix, *args)

    def predict(self, img_feats: Sequence[Tensor], batch_data_samples: Sequence[Any]) -> list[InstanceData]:
        """Computes the final boxes of every sample.

        Args:
            img_feats: Image features, as in :meth:`forward`.
            batch_data_samples: ``Det3DDataSample`` with meta information.

        Returns:
            ``bboxes_3d`` (z at the bottom, as in mmdet3d), ``scores_3d`` and ``labels_3d`` of each sample, by
            descending score.
        """
        metas = [sample.metainfo for sample in batch_data_samples]
        outputs = self(img_feats, metas, all_layers=self.all_layers_at_test)
        last = zip(metas, outputs['all_cls_scores'][-1], outputs['all_bbox_preds'][-1], strict=True)
        return [self.to_instances(meta, *self.bbox_coder.decode(logits, codes)) for meta, logits, codes in last]

    @staticmethod
    def to_instances(meta: Mapping[str, Any], boxes: Tensor, scores: Tensor, labels: Tensor) -> InstanceData:
        """Packs decoded boxes [n, 7 or 9], z at the centre, into the ``InstanceData`` of one sample."""
        box_type = meta['box_type_3d']
        wrapped = box_type(boxes, box_dim=boxes.shape[-1], origin=(0.5, 0.5, 0.5))
        return InstanceData(bboxes_3d=wrapped, scores_3d=scores, labels_3d=labels)


def gravity_boxes(boxes: Any) -> Tensor:
    """Converts boxes of mmdet3d to a tensor [n, 7 or 9], with z at the centre instead of the bottom."""
    return torch.cat((boxes.gravity_center, boxes.tensor[:, 3:]), dim=1)
