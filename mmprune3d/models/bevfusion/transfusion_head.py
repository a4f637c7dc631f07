"""TransFusion's detection head on BEVFusion's fused map (Bai et al., CVPR 2022; Liu et al., ICRA 2023).

The cells with the highest class scores of a heatmap become object queries, a transformer decoder lets them attend to
the whole map, and small networks predict boxes from them. State-dict keys are those of mmdet3d's project BEVFusion.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule
from mmdet3d.models.dense_heads.centerpoint_head import SeparateHead
from mmdet3d.registry import MODELS, TASK_UTILS
from mmengine.structures import InstanceData
from torch import Tensor, nn

from mmprune3d.pruning.selection import top_indices

from . import transfusion_nms as nms
from .agreement import check_head
from .transfusion_losses import CODE_PARTS, heatmap_loss, layer_losses
from .transfusion_targets import TargetMaker, Targets

Outputs = tuple[list[dict[str, Tensor]]]
"""One list per input level with one dict per head, as in mmdet3d; here there is one level and one head."""


@MODELS.register_module()
class BEVFusion3DTransFusionHead(nn.Module):
    """The detection head of BEVFusion: detects objects on a map in bird's-eye view (TransFusion, CVPR 2022).

    Args:
        bbox_coder: Config of :class:`BEVFusion3DBoxCoder`.
        decoder_layer: Config of :class:`BEVFusion3DDecoderLayer`.
        common_heads: Channels and number of convolutions of ``center``, ``height``, ``dim``, ``rot`` and optionally
            ``vel``.
        num_proposals: Number of object queries per sample.
        auxiliary: Whether every decoder layer is supervised, or only the last.
        in_channels: Channels of the map.
        hidden_channel: Channels of the queries.
        num_classes: Number of classes.
        num_decoder_layers: Number of decoder layers.
        nms_kernel_size: Side length in cells, odd, of the neighbourhood in which only the cell with the highest score
            becomes a query.
        bn_momentum: Momentum of all batch norms.
        num_heatmap_convs: Number of convolutions of the classification output.
        conv_cfg: Config of the convolutions of the outputs.
        norm_cfg: Config of the norm layers of the outputs.
        bias: Whether convolutions have a bias; ``'auto'``: only those without a norm layer behind them.
        heatmap_bias: Initial bias of both class outputs. None keeps torch's default, as the official code does; with
            -2.19 all classes start with a probability of 0.1, which helps short trainings.
        loss_cls: Config of the classification loss of the queries; must have ``use_sigmoid=True``.
        loss_bbox: Config of the loss of the box codes.
        loss_heatmap: Config of the loss of the dense heatmap.
        train_cfg: ``assigner``, the settings of :class:`.transfusion_targets.TargetMaker`, and optionally
            ``code_weights`` (one per entry of the box code) and ``grid_size`` (see `test_cfg`). None: the head cannot
            compute losses.
        test_cfg: ``dataset`` (``'nuScenes'``, ``'Waymo'`` or None; selects the classes of small objects), ``nms_type``
            (None, ``'circle'`` or ``'rotate'``), and optionally ``grid_size`` (voxels along x and y) with
            ``out_size_factor`` (voxels per cell), against which the size of the map is checked.

    Raises:
        ValueError: If a setting is not one of those above, or if `bbox_coder`, `train_cfg` and `test_cfg` describe
            different maps.
    """

    def __init__(
        self,
        bbox_coder: dict,
        decoder_layer: dict,
        common_heads: Mapping[str, Sequence[int]],
        num_proposals: int = 128,
        auxiliary: bool = True,
        in_channels: int = 384,
        hidden_channel: int = 128,
        num_classes: int = 4,
        num_decoder_layers: int = 3,
        nms_kernel_size: int = 1,
        bn_momentum: float = 0.1,
        num_heatmap_convs: int = 2,
        conv_cfg: dict | None = None,
        norm_cfg: dict | None = None,
        bias: bool | str = 'auto',
        heatmap_bias: float | None = None,
        loss_cls: dict | None = None,
        loss_bbox: dict | None = None,
        loss_heatmap: dict | None = None,
        train_cfg: dict | None = None,
        test_cfg: dict | None = None,
    ) -> None:
        super().__init__()
        self.num_proposals = num_proposals
        self.auxiliary = auxiliary
        self.num_classes = num_classes
        self.num_decoder_layers = num_decoder_layers
        self.nms_kernel_size = nms_kernel_size
        self.bn_momentum = bn_momentum
        self.heatmap_bias = heatmap_bias
        self.train_cfg = train_cfg
        self.test_cfg = test_cfg or {}
        self.bbox_coder = TASK_UTILS.build(bbox_coder)
        self._check(loss_cls, common_heads)
        check_head(self.bbox_coder, self.train_cfg, self.test_cfg)
        self.loss_cls = MODELS.build(loss_cls or {'type': 'mmdet.FocalLoss', 'use_sigmoid': True})
        self.loss_bbox = MODELS.build(loss_bbox or {'type': 'mmdet.L1Loss', 'loss_weight': 0.25})
        self.loss_heatmap = MODELS.build(loss_heatmap or {'type': 'mmdet.GaussianFocalLoss'})
        self.target_maker = self._target_maker()

        self.shared_conv = nn.Conv2d(in_channels, hidden_channel, 3, padding=1, bias=bool(bias))
        block = ConvModule(hidden_channel, hidden_channel, 3, padding=1, bias=bias, norm_cfg={'type': 'BN2d'})
        last = nn.Conv2d(hidden_channel, num_classes, 3, padding=1, bias=bool(bias))
        self.heatmap_head = nn.Sequential(block, last)
        self.class_encoding = nn.Conv1d(num_classes, hidden_channel, 1)
        self.decoder = nn.ModuleList(MODELS.build(deepcopy(decoder_layer)) for _ in range(num_decoder_layers))
        outputs = {**common_heads, 'heatmap': (num_classes, num_heatmap_convs)}
        conv_cfg, norm_cfg = conv_cfg or {'type': 'Conv1d'}, norm_cfg or {'type': 'BN1d'}
        self.prediction_heads = nn.ModuleList(
            SeparateHead(hidden_channel, dict(outputs), conv_cfg=conv_cfg, norm_cfg=norm_cfg, bias=bias)
            for _ in range(num_decoder_layers)
        )
        self.init_weights()

    def init_weights(self) -> None:
        """Initializes the decoder's matrices (Xavier), the momentum of batch norms and the biases of class outputs."""
        for parameter in self.decoder.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
        for module in self.modules():
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
                module.momentum = self.bn_momentum
        if self.heatmap_bias is not None:
            for outputs in (self.heatmap_head, *(head.heatmap for head in self.prediction_heads)):
                nn.init.constant_(outputs[-1].bias, self.heatmap_bias)

    def forward(self, feats: Tensor | Sequence[Tensor], metas: Sequence[dict] | None = None) -> Outputs:
        """Computes the raw outputs of all supervised decoder layers.

        Args:
            feats: The map [B, in_channels, x, y], or a sequence with this map as its only element.
            metas: Not used.

        Returns:
            ``([outputs],)`` with ``center`` [B, 2, P] in cells, ``height`` [B, 1, P] (of the box centre, in metres),
            ``dim`` [B, 3, P] (logarithms of metres), ``rot`` [B, 2, P] (sine, cosine), ``vel`` [B, 2, P], the logits
            ``heatmap`` [B, classes, P] and ``dense_heatmap`` [B, classes, x, y], ``query_heatmap_score``
            [B, classes, num_proposals], and ``query_labels`` [B, num_proposals]. P is `num_proposals`, multiplied by
            the number of layers if `auxiliary`.

        Raises:
            ValueError: If there are several maps, or the size of the map differs from ``test_cfg``.
        """
        if not isinstance(feats, Tensor):
            if len(feats) != 1:
                raise ValueError(f'the TransFusion head takes one map, got {len(feats)}')
            feats = feats[0]
        self._check_grid(feats, self.test_cfg, 'test_cfg')
        shared = self.shared_conv(feats)
        dense_heatmap = self.heatmap_head(shared)
        cells = shared.flatten(2)
        cell_pos = cell_centres(shared, self.class_encoding.weight.dtype)
        # The choice of cells is not differentiable: the heatmap is trained by its own loss alone.
        index, labels, scores = self._propose(dense_heatmap.detach())
        # The class embedding tells a query which class of the heatmap it was made from.
        one_hot = F.one_hot(labels, self.num_classes).transpose(1, 2).to(cells)
        query = cells.gather(2, index[:, None].expand(-1, cells.shape[1], -1)) + self.class_encoding(one_hot)
        layers = self._decode(query, cell_pos[0, index], cells, cell_pos)
        kept = layers if self.auxiliary else layers[-1:]
        outputs = {key: torch.cat([layer[key] for layer in kept], dim=-1) for key in kept[0]}
        outputs |= {'query_heatmap_score': scores, 'dense_heatmap': dense_heatmap, 'query_labels': labels}
        return ([outputs],)

    def loss(self, batch_feats: Tensor | Sequence[Tensor], batch_data_samples: Sequence[Any]) -> dict[str, Tensor]:
        """Computes the losses of a batch.

        Args:
            batch_feats: The map, as in :meth:`forward`.
            batch_data_samples: Data samples with ``gt_instances_3d`` (``bboxes_3d`` and ``labels_3d``).
        """
        outputs = self(batch_feats, [sample.metainfo for sample in batch_data_samples])
        return self.loss_by_feat(outputs, [sample.gt_instances_3d for sample in batch_data_samples])

    def get_targets(self, outputs: Outputs, batch_gt_instances_3d: Sequence[InstanceData]) -> Targets:
        """Computes the targets of the outputs: matched boxes, labels and the heatmap.

        Raises:
            ValueError: If the head has no ``train_cfg``.
        """
        if self.target_maker is None:
            raise ValueError('the head was built without train_cfg, so it has no assigner and cannot compute targets')
        predictions = outputs[0][0]
        self._check_grid(predictions['dense_heatmap'], self.train_cfg, 'train_cfg')
        boxes = [instances.bboxes_3d.tensor for instances in batch_gt_instances_3d]
        labels = [instances.labels_3d for instances in batch_gt_instances_3d]
        return self.target_maker(predictions, self._num_supervised, boxes, labels)

    def loss_by_feat(self, outputs: Outputs, batch_gt_instances_3d: Sequence[InstanceData]) -> dict[str, Tensor]:
        """Computes the losses of the heatmap and of every supervised layer, and ``matched_ious``.

        ``matched_ious`` (the mean IoU of matched boxes) is a figure for the log and not a loss; its name does not
        contain "loss", so mmengine does not add it to the total.
        """
        targets, predictions = self.get_targets(outputs, batch_gt_instances_3d), outputs[0][0]
        by_layer = layer_losses(
            predictions,
            targets,
            self._num_supervised,
            self.loss_cls,
            self.loss_bbox,
            self.train_cfg.get('code_weights'),
        )
        loss_heatmap = heatmap_loss(predictions['dense_heatmap'], targets.heatmap, self.loss_heatmap)
        return {'loss_heatmap': loss_heatmap, **by_layer, 'matched_ious': targets.matched_ious}

    def predict(self, batch_feats: Tensor | Sequence[Tensor], batch_input_metas: Sequence[dict]) -> list[InstanceData]:
        """Computes the detections of every sample; see :meth:`predict_by_feat`."""
        return self.predict_by_feat(self(batch_feats, batch_input_metas), batch_input_metas)

    def predict_by_feat(self, outputs: Outputs, metas: Sequence[dict]) -> list[InstanceData]:
        """Decodes the outputs to detections, one ``InstanceData`` per sample.

        The outputs of the last layer are used. A query keeps the class of the heatmap peak that it was made from; its
        score is the heatmap's score times the score of its own classification.

        Args:
            outputs: Raw outputs of :meth:`forward`.
            metas: Meta information of each sample, with ``box_type_3d``, the class of the boxes.

        Returns:
            ``bboxes_3d``, ``scores_3d`` and ``labels_3d`` for each sample.
        """
        outputs = outputs[0][0]
        parts = [part for part in (*CODE_PARTS, 'heatmap') if part in outputs]
        last = {part: outputs[part][..., -self.num_proposals :].float() for part in parts}
        labels = outputs['query_labels']
        scores = last['heatmap'].sigmoid() * outputs['query_heatmap_score']
        scores = scores.gather(1, labels[:, None])[:, 0]
        boxes = self.bbox_coder.decode(last)
        detections = []
        for keep, *found, meta in zip(self.bbox_coder.keep(boxes, scores), boxes, scores, labels, metas, strict=True):
            found = [item[keep] for item in found]
            survivors = nms.suppress(*found, self.test_cfg)
            kept_boxes, kept_scores, kept_labels = (item[survivors] for item in found)
            kept_boxes = meta['box_type_3d'](kept_boxes, box_dim=kept_boxes.shape[-1])
            detections.append(InstanceData(bboxes_3d=kept_boxes, scores_3d=kept_scores, labels_3d=kept_labels))
        return detections

    @property
    def _num_supervised(self) -> int:
        return self.num_decoder_layers if self.auxiliary else 1

    def _propose(self, dense_logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Cells and classes [B, num_proposals] of the highest peaks, and the scores of all classes at these cells."""
        heatmap = nms.peaks(dense_logits.float().sigmoid(), self.nms_kernel_size, self.test_cfg.get('dataset'))
        heatmap = heatmap.flatten(2)
        # Cells compete with each other over all classes, so one cell can give several queries of different classes.
        best = top_indices(heatmap.flatten(1), self.num_proposals)
        index, labels = best % heatmap.shape[2], best // heatmap.shape[2]
        return index, labels, heatmap.gather(2, index[:, None].expand(-1, self.num_classes, -1))

    def _decode(self, query: Tensor, query_pos: Tensor, cells: Tensor, cell_pos: Tensor) -> list[dict[str, Tensor]]:
        """The outputs of every layer; the centres that a layer predicts are the query positions of the next."""
        layers = []
        for layer, head in zip(self.decoder, self.prediction_heads, strict=True):
            query = layer(query, cells, query_pos, cell_pos)
            outputs = head(query)
            outputs['center'] = outputs['center'] + query_pos.transpose(1, 2)
            # Every layer is trained by its own losses; no gradient flows back through the positions.
            query_pos = outputs['center'].detach().transpose(1, 2)
            layers.append(outputs)
        return layers

    def _target_maker(self) -> TargetMaker | None:
        if not self.train_cfg:
            return None
        return TargetMaker(self.train_cfg, TASK_UTILS.build(self.train_cfg['assigner']), self.bbox_coder)

    def _check(self, loss_cls: dict | None, common_heads: Mapping[str, Sequence[int]]) -> None:
        nms.check(self.test_cfg, self.num_classes)
        if loss_cls is not None and not loss_cls.get('use_sigmoid'):
            raise ValueError(
                f'loss_cls needs use_sigmoid=True, because queries have no background class; got {loss_cls}'
            )
        if self.nms_kernel_size % 2 == 0:
            raise ValueError(f'nms_kernel_size must be odd, got {self.nms_kernel_size}')
        if not set(CODE_PARTS[:4]) <= set(common_heads) <= set(CODE_PARTS):
            raise ValueError(
                f'common_heads must be {", ".join(CODE_PARTS)} (the last is optional), got {list(common_heads)}'
            )
        expected = 10 if 'vel' in common_heads else 8
        if self.bbox_coder.code_size != expected:
            raise ValueError(
                f'bbox_coder.code_size is {self.bbox_coder.code_size}, but these common_heads need {expected}'
            )
        weights = (self.train_cfg or {}).get('code_weights')
        if weights and len(weights) != expected:
            raise ValueError(
                f'train_cfg.code_weights has {len(weights)} entries, but these common_heads need {expected}'
            )

    def _check_grid(self, feats: Tensor, config: Mapping[str, Any], name: str) -> None:
        if not config.get('grid_size'):
            return
        expected = [size // config['out_size_factor'] for size in config['grid_size'][:2]]
        if list(feats.shape[-2:]) != expected:
            raise ValueError(f'{name} has {expected} cells along x and y, but the map has {list(feats.shape[-2:])}')


def cell_centres(feats: Tensor, dtype: torch.dtype) -> Tensor:
    """Centres [1, x * y, 2] of the cells of maps [B, C, x, y], in cells; in `dtype`, as 16 bits would round them."""
    x, y = (torch.arange(size, device=feats.device, dtype=dtype) + 0.5 for size in feats.shape[-2:])
    return torch.cartesian_prod(x, y)[None]
