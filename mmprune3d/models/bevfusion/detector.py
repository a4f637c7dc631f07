"""The BEVFusion detector: a camera and a LiDAR stream, each to a bird's-eye-view map, then fuser, backbone and head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from mmdet3d.models.detectors.base import Base3DDetector
from mmdet3d.registry import MODELS
from mmengine.structures import InstanceData
from torch import Tensor, nn

from mmprune3d.layers.row_norm import allow_few_rows

from .agreement import check_cameras, check_canvas, check_place, check_point_columns, check_voxels
from .voxelization import BEVFusion3DVoxelization

MATRICES = {
    'lidar2img': 'lidar2image',
    'cam2img': 'camera_intrinsics',
    'cam2lidar': 'camera2lidar',
    'img_aug_matrix': 'img_aug_matrix',
    'lidar_aug_matrix': 'lidar_aug_matrix',
}
"""Key of a sample's meta information -> argument of the view transform."""

_OPTIONAL = ('img_aug_matrix', 'lidar_aug_matrix')


@MODELS.register_module()
class BEVFusion3D(Base3DDetector):
    """Camera-LiDAR detector in bird's-eye view (BEVFusion of MIT, as in mmdet3d's ``projects/BEVFusion``).

    The state dict has the same keys as there, so the published checkpoint loads without conversion. One stream may be
    left out: without `pts_middle_encoder` the detector uses cameras only, without `img_backbone` LiDAR only. All maps
    are [B, channels, x, y].

    The inputs are those of ``Det3DDataPreprocessor``: ``imgs`` [B, cameras, 3, H, W] and ``points`` (per sample
    [points, features], x, y, z in metres first); data samples hold the matrices that `MATRICES` lists (4 x 4, one per
    camera, except ``lidar_aug_matrix``, one per sample). The inputs are not modified, so a batch can be used again.

    Args:
        data_preprocessor: Config of the data preprocessor; its ``voxelize_cfg`` are the arguments of
            :class:`~mmprune3d.models.bevfusion.voxelization.BEVFusion3DVoxelization`.
        pts_voxel_encoder: Config of the encoder from the points of a voxel to its features. With
            ``voxelize_reduce=True`` the mean is used instead and this setting has no effect.
        pts_middle_encoder: Config of the encoder from voxels to a map, or None for no LiDAR stream.
        img_backbone: Config of the image backbone, or None for no camera stream.
        img_neck: Config of the image neck.
        view_transform: Config of the transform from image features to a map.
        fusion_layer: Config of the fuser; may be None if there is only one stream.
        pts_backbone: Config of the backbone of the fused map (it runs *after* the fusion, despite its name).
        pts_neck: Config of the neck of the fused map.
        bbox_head: Config of the detection head.
        train_cfg: Must be None; exists because mmdet3d's ``init_model`` passes it to every detector.
        test_cfg: Must be None, for the same reason.
        init_cfg: Initialization, as in ``BaseModule``.

    Raises:
        ValueError: If there is no stream, two streams without a fuser, or an incomplete camera stream; if settings of
            the parts do not agree (see ``agreement.py``); or if a batch has images or points of another size than set.
    """

    def __init__(
        self,
        data_preprocessor: dict | None = None,
        pts_voxel_encoder: dict | None = None,
        pts_middle_encoder: dict | None = None,
        img_backbone: dict | None = None,
        img_neck: dict | None = None,
        view_transform: dict | None = None,
        fusion_layer: dict | None = None,
        pts_backbone: dict | None = None,
        pts_neck: dict | None = None,
        bbox_head: dict | None = None,
        train_cfg: None = None,
        test_cfg: None = None,
        init_cfg: dict | None = None,
    ) -> None:
        preprocessor = dict(data_preprocessor or {})  # a copy, because the caller may build the same config again
        voxelize_cfg = preprocessor.pop('voxelize_cfg', None)
        preprocessor.setdefault('type', 'Det3DDataPreprocessor')
        super().__init__(data_preprocessor=preprocessor, init_cfg=init_cfg)
        _check_streams(img_backbone, view_transform, pts_middle_encoder, fusion_layer, voxelize_cfg)
        if train_cfg is not None or test_cfg is not None:
            raise ValueError('BEVFusion3D takes no train_cfg and test_cfg; set matching and decoding in bbox_head')
        # In the order of the official state dict.
        self.img_backbone = _build(img_backbone)
        self.img_neck = _build(img_neck)
        self.view_transform = _build(view_transform)
        self.pts_voxel_layer = None
        if pts_middle_encoder is not None:
            self.pts_voxel_layer = BEVFusion3DVoxelization(**voxelize_cfg)
        self.pts_voxel_encoder = _build(pts_voxel_encoder)
        if self.pts_voxel_encoder is not None:
            allow_few_rows(self.pts_voxel_encoder)
        self._voxel_encoder_cfg = dict(pts_voxel_encoder or {})
        self.pts_middle_encoder = _build(pts_middle_encoder)
        self.fusion_layer = _build(fusion_layer)
        self.pts_backbone = _build(pts_backbone)
        self.pts_neck = _build(pts_neck)
        self.bbox_head = _build(bbox_head)
        check_voxels(self.pts_voxel_layer, self.pts_middle_encoder)
        check_place(self.pts_voxel_layer, self.view_transform, self.bbox_head)

    def init_weights(self) -> None:
        """Initializes each child as configured.

        mmengine's own function also logs the mean of every parameter, which fails for the integer parameter ``nx``.
        """
        for child in self.children():
            if hasattr(child, 'init_weights'):
                child.init_weights()
        self._is_init = True

    def extract_img_feat(self, inputs: Mapping[str, Any], metas: list[dict]) -> Tensor:
        """Computes the map of the camera stream [B, channels, x, y]."""
        imgs = inputs['imgs']
        check_canvas(imgs.shape[-2:], getattr(self.view_transform, 'image_size', None))
        check_cameras(imgs.shape[1], metas)
        feats = self.img_backbone(imgs.flatten(0, 1).contiguous())
        if self.img_neck is not None:
            feats = self.img_neck(feats)
        if not isinstance(feats, Tensor):
            feats = feats[0]
        feats = feats.unflatten(0, imgs.shape[:2])
        return self.view_transform(feats, inputs.get('points'), **camera_matrices(metas, feats.device), metas=metas)

    def extract_pts_feat(self, inputs: Mapping[str, Any], metas: list[dict]) -> Tensor:
        """Computes the map of the LiDAR stream [B, channels, x, y]."""
        points = inputs['points']
        check_point_columns(points, self.pts_voxel_layer, self._voxel_encoder_cfg, self.pts_middle_encoder)
        feats, coords, counts = self.pts_voxel_layer([cloud.float() for cloud in points])
        if not self.pts_voxel_layer.voxelize_reduce:
            feats = self.pts_voxel_encoder(feats, counts, coords)
        bev = self.pts_middle_encoder(feats, coords, len(points))
        return bev if self.pts_voxel_layer.axes == 'xyz' else bev.transpose(2, 3)

    def extract_feat(self, batch_inputs_dict: Mapping[str, Any], batch_input_metas: list[dict]) -> list[Tensor]:
        """Computes the fused map after backbone and neck: one tensor [B, channels, x, y] per level."""
        maps = []
        if self.img_backbone is not None:
            maps.append(self.extract_img_feat(batch_inputs_dict, batch_input_metas))
        if self.pts_middle_encoder is not None:
            maps.append(self.extract_pts_feat(batch_inputs_dict, batch_input_metas))
        bev = self.fusion_layer(maps) if self.fusion_layer is not None else maps[0]
        feats = self.pts_backbone(bev)
        return feats if self.pts_neck is None else self.pts_neck(feats)

    def loss(self, batch_inputs_dict: dict[str, Any], batch_data_samples: list, **kwargs: object) -> dict[str, Tensor]:
        """Computes the losses of the head."""
        feats = self.extract_feat(batch_inputs_dict, [sample.metainfo for sample in batch_data_samples])
        return self.bbox_head.loss(feats, batch_data_samples)

    def predict(self, batch_inputs_dict: dict[str, Any], batch_data_samples: list, **kwargs: object) -> list:
        """Returns the data samples with ``pred_instances_3d``: ``bboxes_3d``, ``scores_3d``, ``labels_3d``."""
        metas = [sample.metainfo for sample in batch_data_samples]
        found = self.bbox_head.predict(self.extract_feat(batch_inputs_dict, metas), metas)
        return self.add_pred_to_datasample(batch_data_samples, found, [InstanceData() for _ in found])

    def _forward(self, batch_inputs_dict: dict[str, Any], batch_data_samples: list, **kwargs: object) -> Any:
        """Returns the raw outputs of the head."""
        metas = [sample.metainfo for sample in batch_data_samples]
        return self.bbox_head(self.extract_feat(batch_inputs_dict, metas), metas)


def camera_matrices(metas: list[dict], device: torch.device) -> dict[str, Tensor]:
    """Collects the camera matrices of a batch as arguments of the view transform, each [B, ...] float32.

    Raises:
        KeyError: If a sample's meta information lacks one of `MATRICES` (augmentation matrices may be missing).
    """
    stacked = {}
    for key, argument in MATRICES.items():
        each = []
        for number, meta in enumerate(metas):
            if key not in meta and key not in _OPTIONAL:
                raise KeyError(
                    f'sample {number} has no {key} in its meta information; BEVFusion3D needs {", ".join(MATRICES)}: '
                    'add them to meta_keys of Pack3DDetInputs'
                )
            default = np.broadcast_to(np.eye(4), (len(meta['lidar2img']), 4, 4) if key == 'img_aug_matrix' else (4, 4))
            each.append(np.asarray(meta.get(key, default), dtype=np.float32))
        stacked[argument] = torch.from_numpy(np.stack(each)).to(device)
    return stacked


def _build(config: dict | None) -> nn.Module | None:
    return None if config is None else MODELS.build(config)


def _check_streams(
    img_backbone: dict | None,
    view_transform: dict | None,
    pts_middle_encoder: dict | None,
    fusion_layer: dict | None,
    voxelize_cfg: dict | None,
) -> None:
    if img_backbone is None and pts_middle_encoder is None:
        raise ValueError(
            'BEVFusion3D needs a camera stream (img_backbone), a LiDAR stream (pts_middle_encoder), or both'
        )
    if (img_backbone is None) != (view_transform is None):
        raise ValueError('img_backbone and view_transform must be given together, or both left out')
    if img_backbone is not None and pts_middle_encoder is not None and fusion_layer is None:
        raise ValueError('two streams need a fusion_layer, such as dict(type="BEVFusion3DConvFuser", ...)')
    if pts_middle_encoder is not None and voxelize_cfg is None:
        raise ValueError('the LiDAR stream needs data_preprocessor=dict(voxelize_cfg=dict(point_cloud_range=..., ...))')
