"""The two convolutional blocks and the pyramid that SST_halt++ has behind its backbone."""

from __future__ import annotations

from collections.abc import Sequence

from mmdet3d.registry import MODELS
from mmengine.model import BaseModule
from torch import Tensor


@MODELS.register_module()
class SSTConvNeck(BaseModule):
    """Convolutional blocks of several strides on one map, fused by a pyramid (Dynamic Token Halting, section A.2.3).

    A detector of mmdet3d has one backbone and one neck; this is a backbone for dense maps and its neck, as one neck.
    The SST backbone in front of it needs no convolutions of its own.

    Args:
        second: Config of the blocks, such as ``SECOND``: a map [B, C, ny, nx] -> one map per block.
        fpn: Config of what fuses them, such as ``SECONDFPN``: those maps -> a list of maps.
        init_cfg: Initialisation, as in ``BaseModule``.
    """

    def __init__(self, second: dict, fpn: dict, init_cfg: dict | None = None) -> None:
        super().__init__(init_cfg)
        self.second = MODELS.build(second)
        self.fpn = MODELS.build(fpn)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """What the pyramid makes of the backbone's map [B, C, ny, nx], the only one in `maps`.

        Raises:
            ValueError: If there is not exactly one map.
        """
        if len(maps) != 1:
            raise ValueError(f'SSTConvNeck takes the one map of an SST backbone, got {len(maps)} maps')
        return self.fpn(self.second(maps[0]))
