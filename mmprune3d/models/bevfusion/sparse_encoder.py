"""BEVFusion's LiDAR encoder: sparse convolutions over (x, y, z), whose last layer is flattened to a BEV map."""

from __future__ import annotations

from typing import Any

from mmdet3d.models.layers import make_sparse_convmodule
from mmdet3d.models.middle_encoders import SparseEncoder
from mmdet3d.registry import MODELS
from mmengine.runner.amp import autocast
from torch import Tensor

from mmprune3d.layers.row_norm import allow_few_rows
from mmprune3d.layers.sparse_conv import exact_class, make_exact


@MODELS.register_module()
class BEVFusion3DSparseEncoder(SparseEncoder):
    """mmdet3d's ``SparseEncoder`` with the axes in the order x, y, z, and with exact convolutions on a CPU.

    State-dict keys, shapes and weight layout (out, kx, ky, kz, in) are those of ``BEVFusionSparseEncoder`` in the
    BEVFusion project of mmdet3d 1.4. Only the last layer differs from the base class: its stride is along z, which is
    last axis here.

    Args:
        in_channels: Number of features of a voxel.
        sparse_shape: Number of cells along x, y, z; the official one is [1440, 1440, 41].
        order: Order of ``'conv'``, ``'norm'``, ``'act'`` in a block.
        norm_cfg: Config of the norm layers; None: BN1d with eps 1e-3 and momentum 0.01.
        base_channels: Channels after the first layer.
        output_channels: Channels C of an output cell.
        encoder_channels: Channels of each layer of each stage.
        encoder_paddings: Padding of each layer of each stage, one number or one per axis.
        block_type: ``'conv_module'`` (each stage but the first begins with stride 2) or ``'basicblock'`` (each stage
            but the last ends with stride 2).
        return_middle_feats: Whether ``forward`` also returns the sparse tensors after each stage.

    Raises:
        ImportError: If spconv 2 is not installed; the message has the command that installs it.
        ValueError: If `block_type`, `order` or `encoder_paddings` is not valid.
    """

    def __init__(
        self,
        in_channels: int,
        sparse_shape: list[int],
        order: tuple[str, ...] = ('conv', 'norm', 'act'),
        norm_cfg: dict | None = None,
        base_channels: int = 16,
        output_channels: int = 128,
        encoder_channels: tuple = ((16,), (32, 32, 32), (64, 64, 64), (64, 64, 64)),
        encoder_paddings: tuple = ((1,), (1, 1, 1), (1, 1, 1), ((0, 1, 1), 1, 1)),
        block_type: str = 'conv_module',
        return_middle_feats: bool = False,
    ) -> None:
        exact_class('SubMConv3d')  # raises if spconv is missing, where mmdet3d would take mmcv's, which is CUDA only
        if block_type not in ('conv_module', 'basicblock'):
            raise ValueError(f"block_type must be 'conv_module' or 'basicblock', got {block_type!r}")
        if [len(stage) for stage in encoder_channels] != [len(stage) for stage in encoder_paddings]:
            raise ValueError(
                f'encoder_paddings {encoder_paddings} must have one entry per layer of encoder_channels '
                f'{encoder_channels}'
            )
        if sorted(order) != ['act', 'conv', 'norm']:
            raise ValueError(f"order must contain 'conv', 'norm' and 'act' once each, got {tuple(order)}")
        norm_cfg = dict(norm_cfg or {'type': 'BN1d', 'eps': 1e-3, 'momentum': 0.01})
        super().__init__(
            in_channels,
            list(sparse_shape),
            order=tuple(order),
            norm_cfg=norm_cfg,
            base_channels=base_channels,
            output_channels=output_channels,
            encoder_channels=encoder_channels,
            encoder_paddings=encoder_paddings,
            block_type=block_type,
            return_middle_feats=return_middle_feats,
        )
        self.conv_out = make_sparse_convmodule(
            encoder_channels[-1][-1],
            output_channels,
            kernel_size=(1, 1, 3),
            stride=(1, 1, 2),
            norm_cfg=norm_cfg,
            indice_key='spconv_down2',
            conv_type='SparseConv3d',
        )
        make_exact(self)
        allow_few_rows(self)

    @autocast(enabled=False)
    def forward(self, voxel_features: Tensor, coors: Tensor, batch_size: int) -> Any:
        """Encodes the voxels of a batch as a BEV map.

        Args:
            voxel_features: Features of the voxels [N, C_in].
            coors: Coordinates (batch, x, y, z) of the voxels [N, 4].
            batch_size: Number of samples B, including samples without voxels.

        Returns:
            The map [B, C * D, X, Y], where D is the number of output cells along z and cell d of channel c is channel
            c * D + d; with `return_middle_feats` also a list of the sparse tensors after each stage.
        """
        from spconv.pytorch import SparseConvTensor

        x = self.conv_input(SparseConvTensor(voxel_features, coors.int(), self.sparse_shape, batch_size))
        stages = []
        for stage in self.encoder_layers:
            x = stage(x)
            stages.append(x)
        x = self.conv_out(x)
        # Not x.dense(): it indexes with a list, which torch has deprecated.
        cells = x.features.new_zeros(batch_size, *x.spatial_shape, x.features.shape[1])
        cells = cells.index_put(tuple(x.indices.long().T), x.features)
        if not len(voxel_features):  # give every parameter a gradient (of 0): other processes wait for it
            cells = cells + sum(0 * parameter.sum() for parameter in self.parameters())
        bev = cells.permute(0, 4, 3, 1, 2).flatten(1, 2)
        return (bev, stages) if self.return_middle_feats else bev
