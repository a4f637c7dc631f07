"""The PETR detector: image backbone and neck over all cameras, then the head."""

from __future__ import annotations

from typing import Any

import torch
from mmdet3d.models.detectors.base import Base3DDetector
from mmdet3d.registry import MODELS
from mmengine.structures import InstanceData
from torch import Tensor, nn

from .checks import check_same_classes
from .grid_mask import PETR3DGridMask


@MODELS.register_module()
class PETR3D(Base3DDetector):
    """Multi-camera 3D detector with position embedding transformation (PETR).

    The inputs are those of ``Det3DDataPreprocessor``: ``inputs['imgs']`` [B, cameras, 3, H, W], and data samples whose
    meta information holds the camera matrices (see ``geometry.py``). They are not modified, so a batch can be used
    again.

    Args:
        img_backbone: Config of the image backbone.
        pts_bbox_head: Config of the head (the name is that of official PETR, for its checkpoints).
        img_neck: Config of the neck, or None.
        use_grid_mask: Whether to apply the GridMask augmentation in training.
        aux_head: Config of a dense auxiliary head, which is used only in training, or None.
        aux_only: Train the backbone and the neck with the auxiliary head alone, at a fraction of the cost of a full
            step: monocular pretraining, from which official PETR starts as well.
        freeze_images: Freeze backbone and neck and train the head alone, at a fraction of the cost.
        channels_last: Keep images and convolution weights with channels innermost, which suits bfloat16 on CPUs and
            half precision on GPUs. Results and checkpoints are the same.
        train_cfg: Must be None; exists because mmdet3d's ``init_model`` passes it to every detector.
        test_cfg: Must be None, for the same reason.
        data_preprocessor: Config of the data preprocessor.
        init_cfg: Initialization, as in ``BaseModule``.
    """

    def __init__(
        self,
        img_backbone: dict,
        pts_bbox_head: dict,
        img_neck: dict | None = None,
        use_grid_mask: bool = False,
        aux_head: dict | None = None,
        aux_only: bool = False,
        freeze_images: bool = False,
        channels_last: bool = False,
        train_cfg: None = None,
        test_cfg: None = None,
        data_preprocessor: dict | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(data_preprocessor=data_preprocessor, init_cfg=init_cfg)
        if train_cfg is not None or test_cfg is not None:
            raise ValueError('PETR3D takes no train_cfg and test_cfg; set matching and decoding in pts_bbox_head')
        if aux_only and aux_head is None:
            raise ValueError('aux_only=True trains with the auxiliary head alone, but aux_head is None')
        if freeze_images and aux_head is not None:
            raise ValueError('freeze_images=True leaves nothing for aux_head to train; set aux_head=None')
        self.aux_only = aux_only
        self.freeze_images = freeze_images
        self.img_backbone = MODELS.build(img_backbone)
        self.img_neck = None if img_neck is None else MODELS.build(img_neck)
        self.pts_bbox_head = MODELS.build(pts_bbox_head)
        self.grid_mask = PETR3DGridMask() if use_grid_mask else nn.Identity()
        self.aux_head = None if aux_head is None else MODELS.build(aux_head)
        if aux_head is not None:
            check_same_classes(self.pts_bbox_head.num_classes, self.aux_head.num_classes, 'aux_head')
        self.channels_last = channels_last
        self.img_backbone.to(memory_format=self.image_format)
        if freeze_images:
            self._image_modules.requires_grad_(False)

    @property
    def image_format(self) -> torch.memory_format:
        """Memory format of the images; computed and not stored, because ``torch.save(model)`` could not pickle it."""
        return torch.channels_last if self.channels_last else torch.contiguous_format

    @property
    def _image_modules(self) -> nn.ModuleList:
        """The backbone and, if there is one, the neck."""
        return nn.ModuleList(module for module in (self.img_backbone, self.img_neck) if module is not None)

    def train(self, mode: bool = True) -> PETR3D:
        """Sets the training mode; a frozen backbone and neck stay in evaluation mode."""
        super().train(mode)
        if self.freeze_images:
            self._image_modules.eval()
        return self

    def extract_feat(self, imgs: Tensor) -> list[Tensor]:
        """Computes the image features.

        Args:
            imgs: Normalized images [B, cameras, 3, H, W].

        Returns:
            One tensor [B, cameras, channels, H / stride, W / stride] per level.
        """
        images = self.grid_mask(imgs.flatten(0, 1))
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze_images):
            feats = self.img_backbone(images.contiguous(memory_format=self.image_format))
            if self.img_neck is not None:
                feats = self.img_neck(feats)
        return [level.unflatten(0, imgs.shape[:2]) for level in feats]

    def loss(self, batch_inputs_dict: dict[str, Any], batch_data_samples: list, **kwargs: object) -> dict[str, Tensor]:
        """Computes the losses of the head (unless `aux_only`), and of the auxiliary head if there is one."""
        feats = self.extract_feat(batch_inputs_dict['imgs'])
        losses = {} if self.aux_only else self.pts_bbox_head.loss(feats, batch_data_samples)
        if self.aux_head is not None:
            losses |= self.aux_head.loss(feats, batch_data_samples)
        return losses

    def predict(self, batch_inputs_dict: dict[str, Any], batch_data_samples: list, **kwargs: object) -> list:
        """Returns the data samples with ``pred_instances_3d``: ``bboxes_3d``, ``scores_3d``, ``labels_3d``."""
        feats = self.extract_feat(batch_inputs_dict['imgs'])
        found = self.pts_bbox_head.predict(feats, batch_data_samples)
        return self.add_pred_to_datasample(batch_data_samples, found, [InstanceData() for _ in found])

    def _forward(
        self, batch_inputs_dict: dict[str, Any], batch_data_samples: list, **kwargs: object
    ) -> dict[str, Tensor]:
        """Returns the raw outputs of the head; see ``PETR3DHead.forward_tensors``."""
        feats = self.extract_feat(batch_inputs_dict['imgs'])
        return self.pts_bbox_head(feats, [sample.metainfo for sample in batch_data_samples])
