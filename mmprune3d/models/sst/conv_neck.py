"""The neck of SST_halt++: two convolutional blocks and a feature pyramid behind the backbone."""

from __future__ import annotations

from collections.abc import Sequence

from mmdet3d.registry import MODELS
from mmengine.model import BaseModule
from torch import Tensor


@MODELS.register_module()
class SSTConvNeck(BaseModule):
    """Convolutional blocks of several strides on one map, fused by a pyramid (Dynamic Token Halting, section A.2.3).

    A detector of mmdet3d has one backbone and one neck; this module combines a backbone for dense maps and its neck.
    The SST backbone in front of it needs no convolutions of its own.

    Args:
        second: Config of the convolutional blocks, such as ``SECOND``: from a map [B, C, ny, nx] to one map per block.
        fpn: Config of the pyramid that fuses them, such as ``SECONDFPN``: from these maps to a list of maps.
        init_cfg: Initialization, as in ``BaseModule``.
    """

    def __init__(self, second: dict, fpn: dict, init_cfg: dict | None = None) -> None:
        super().__init__(init_cfg)
        self.second = MODELS.build(second)
        self.fpn = MODELS.build(fpn)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Computes the maps of the pyramid from the backbone's map [B, C, ny, nx], the only element of `maps`.

        Raises:
            ValueError: If `maps` does not have exactly one element.
        """
        if len(maps) != 1:
            raise ValueError(f'SSTConvNeck takes the one map of an SST backbone, got {len(maps)} maps')
        return self.fpn(self.second(maps[0]))
