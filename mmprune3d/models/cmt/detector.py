"""The CMT detector: a LiDAR stream to a bird's-eye-view map, a camera stream, and one head over the tokens of both."""

from __future__ import annotations

from typing import Any

import torch
from mmdet3d.models.detectors.base import Base3DDetector
from mmdet3d.registry import MODELS
from mmengine.structures import InstanceData
from torch import Tensor, nn

from mmprune3d.layers.row_norm import allow_few_rows
from mmprune3d.layers.sparse_conv import make_exact
from mmprune3d.models.petr.grid_mask import PETR3DGridMask


@MODELS.register_module()
class CMT3D(Base3DDetector):
    """Camera-LiDAR detector whose decoder attends to the tokens of both sensors (Cross Modal Transformer).

    The inputs are those of ``Det3DDataPreprocessor`` with ``voxel=True``: ``voxels`` (hard voxels with coordinates
    (batch, z, y, x)) and ``imgs`` [B, cameras, 3, H, W]; data samples hold the camera matrices. One stream may be left
    out: with ``CMT3DImageHead`` there are cameras only, with ``CMT3DLidarHead`` LiDAR only.

    Args:
        pts_bbox_head: Config of the head.
        data_preprocessor: Config of the data preprocessor.
        pts_voxel_encoder: Config of the encoder from the points of a voxel to its features.
        pts_middle_encoder: Config of the encoder from voxels to a map, or None for no LiDAR stream.
        pts_backbone: Config of the backbone of the map.
        pts_neck: Config of the neck of the map.
        img_backbone: Config of the image backbone, or None for no camera stream.
        img_neck: Config of the image neck.
        use_grid_mask: Whether to apply the GridMask augmentation in training.
        train_cfg: Must be None; exists because mmdet3d's ``init_model`` passes it to every detector.
        test_cfg: Must be None, for the same reason.
        init_cfg: Initialization, as in ``BaseModule``.

    Raises:
        ValueError: If the head needs a stream that has no config, or a stream has a config and the head ignores it.
    """

    def __init__(
        self,
        pts_bbox_head: dict,
        data_preprocessor: dict | None = None,
        pts_voxel_encoder: dict | None = None,
        pts_middle_encoder: dict | None = None,
        pts_backbone: dict | None = None,
        pts_neck: dict | None = None,
        img_backbone: dict | None = None,
        img_neck: dict | None = None,
        use_grid_mask: bool = False,
        train_cfg: None = None,
        test_cfg: None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(data_preprocessor=data_preprocessor, init_cfg=init_cfg)
        if train_cfg is not None or test_cfg is not None:
            raise ValueError('CMT3D takes no train_cfg and test_cfg; set matching and decoding in pts_bbox_head')
        self.pts_voxel_encoder = _build(pts_voxel_encoder)
        self.pts_middle_encoder = _build(pts_middle_encoder)
        if self.pts_middle_encoder is not None:
            make_exact(self.pts_middle_encoder)  # sparse convolutions, which spconv alone computes wrongly on a CPU
            allow_few_rows(self.pts_middle_encoder)
        self.pts_backbone = _build(pts_backbone)
        self.pts_neck = _build(pts_neck)
        self.img_backbone = _build(img_backbone)
        self.img_neck = _build(img_neck)
        self.pts_bbox_head = MODELS.build(pts_bbox_head)
        self.grid_mask = PETR3DGridMask() if use_grid_mask else nn.Identity()
        head = self.pts_bbox_head
        streams = (('pts_middle_encoder', head.uses_points), ('img_backbone', head.uses_images))
        for name, needed in streams:
            if needed != (getattr(self, name) is not None):
                verb = 'needs' if needed else 'does not use'
                raise ValueError(f'{type(head).__name__} {verb} {name}: change the head or that setting')

    def extract_img_feat(self, imgs: Tensor) -> list[Tensor]:
        """Computes the image features of images [B, cameras, 3, H, W]: [B, cameras, C, h, w] per level."""
        feats = self.img_backbone(self.grid_mask(imgs.flatten(0, 1)).contiguous())
        if self.img_neck is not None:
            feats = self.img_neck(feats)
        return [level.unflatten(0, imgs.shape[:2]) for level in feats]

    def extract_pts_feat(self, voxels: dict[str, Tensor], batch_size: int) -> Tensor:
        """Computes the bird's-eye-view map [B, channels, y, x] of hard voxels."""
        points, counts, coordinates = voxels['voxels'], voxels['num_points'], voxels['coors']
        shape = getattr(self.pts_middle_encoder, 'sparse_shape', None)
        if shape is not None:
            # The published configs of 0.1 m have fewer cells than the range; sparse convolutions would take a voxel
            # beyond the last column for one of the next row.
            inside = (coordinates[:, 1:] < torch.as_tensor(shape, device=coordinates.device)).all(1)
            points, counts, coordinates = points[inside], counts[inside], coordinates[inside]
        feats = self.pts_voxel_encoder(points, counts, coordinates)
        feats = self.pts_middle_encoder(feats, coordinates, batch_size)
        for module in (self.pts_backbone, self.pts_neck):
            feats = feats if module is None else module(feats)
        return feats if isinstance(feats, Tensor) else feats[0]

    def extract_feat(self, batch_inputs_dict: dict[str, Any], batch_size: int) -> tuple[Tensor | None, Any]:
        """Computes the features of both streams: a map or None, and levels of image features or None."""
        pts_feats = img_feats = None
        if self.pts_middle_encoder is not None:
            if 'voxels' not in batch_inputs_dict:
                raise ValueError('CMT3D needs voxels: set voxel=True and voxel_layer in data_preprocessor')
            pts_feats = self.extract_pts_feat(batch_inputs_dict['voxels'], batch_size)
        if self.img_backbone is not None:
            img_feats = self.extract_img_feat(batch_inputs_dict['imgs'])
        return pts_feats, img_feats

    def loss(self, batch_inputs_dict: dict[str, Any], batch_data_samples: list, **kwargs: object) -> dict[str, Tensor]:
        """Computes the losses of the head."""
        feats = self.extract_feat(batch_inputs_dict, len(batch_data_samples))
        return self.pts_bbox_head.loss(*feats, batch_data_samples)

    def predict(self, batch_inputs_dict: dict[str, Any], batch_data_samples: list, **kwargs: object) -> list:
        """Returns the data samples with ``pred_instances_3d``: ``bboxes_3d``, ``scores_3d``, ``labels_3d``."""
        feats = self.extract_feat(batch_inputs_dict, len(batch_data_samples))
        found = self.pts_bbox_head.predict(*feats, batch_data_samples)
        return self.add_pred_to_datasample(batch_data_samples, found, [InstanceData() for _ in found])

    def _forward(self, batch_inputs_dict: dict[str, Any], batch_data_samples: list, **kwargs: object) -> Any:
        """Returns the raw outputs of the head; see ``CMT3DHead.forward_tensors``."""
        feats = self.extract_feat(batch_inputs_dict, len(batch_data_samples))
        return self.pts_bbox_head(*feats, [sample.metainfo for sample in batch_data_samples])


def _build(config: dict | None) -> nn.Module | None:
    return None if config is None else MODELS.build(config)
