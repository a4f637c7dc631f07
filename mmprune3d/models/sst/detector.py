"""Detectors with an SST backbone and a head for dense maps."""

from __future__ import annotations

from typing import Any

from mmdet3d.models.detectors.dynamic_voxelnet import DynamicVoxelNet
from mmdet3d.registry import MODELS
from torch import Tensor

from .agreement import check_detector


@MODELS.register_module()
class SSTDetector(DynamicVoxelNet):
    """A detector with an SST backbone and any head for maps (SST's ``DynamicVoxelNet`` and ``DynamicCenterPoint``).

    The data preprocessor makes dynamic voxels: ``Det3DDataPreprocessor(voxel=True, voxel_type='dynamic', ...)``. There
    are two differences to mmdet3d's class: the number of samples is taken from the batch and not from the last point,
    so that a last sample without points is not lost; and settings that must agree are compared (see ``agreement.py``).

    Args:
        **kwargs: Arguments of ``DynamicVoxelNet``.

    Raises:
        ValueError: If settings of the parts disagree.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_detector(self)

    def extract_feat(self, batch_inputs_dict: dict[str, Any]) -> list[Tensor]:
        """Computes the maps for the head from ``points`` (a list, for the number of samples) and ``voxels``."""
        maps = self.backbone(self.tokens(batch_inputs_dict))
        return self.neck(maps) if self.with_neck else maps

    def tokens(self, batch_inputs_dict: dict[str, Any]) -> Any:
        """Computes the tokens of a batch with their windows (the output of the middle encoder)."""
        voxels = batch_inputs_dict['voxels']
        feats, coords = self.voxel_encoder(voxels['voxels'], voxels['coors'])
        return self.middle_encoder(feats, coords, len(batch_inputs_dict['points']))
