"""Conversion of mit-han-lab's BEVFusion weights to ours (and mmdet3d's): state dict in, state dict out.

The networks are the same; besides the names, three things differ. Weights of sparse convolutions are in the order of
spconv 1. Boxes are (w, l, h) there and (l, w, h) here. And yaw there is -yaw - pi / 2 of here, so that the sine here is
minus the cosine there and the cosine minus the sine. The last layers of the box branches are converted accordingly, so
the converted detector finds the same boxes.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Mapping

import torch
from torch import Tensor

from .sparse_layout import SPCONV_2

SOURCE = 'bevfusion-mit'

DROPPED = ('heads.map.',)
"""Keys that are left out: the map segmentation head has no counterpart in the detector."""

_MODULES = {
    'encoders.camera.backbone.': 'img_backbone.',
    'encoders.camera.neck.': 'img_neck.',
    'encoders.camera.vtransform.': 'view_transform.',
    'encoders.lidar.backbone.': 'pts_middle_encoder.',
    'fuser.': 'fusion_layer.',
    'decoder.backbone.': 'pts_backbone.',
    'decoder.neck.': 'pts_neck.',
    'heads.object.': 'bbox_head.',
}
_DECODER_PARTS = {
    'self_attn.': 'self_attn.attn.',
    'multihead_attn.': 'cross_attn.attn.',
    'linear1.': 'ffn.layers.0.0.',
    'linear2.': 'ffn.layers.1.',
    'norm1.': 'norms.0.',
    'norm2.': 'norms.1.',
    'norm3.': 'norms.2.',
}
_DECODER = re.compile(r'(bbox_head\.decoder\.\d+\.)(.+)')
_BRANCH = re.compile(r'(bbox_head\.prediction_heads\.\d+\.(dim|rot)\.)(\d+)\.(weight|bias)')
# For every row here: the row in the source, and its sign.
_ROWS = {'dim': ((1, 0, 2), (1.0, 1.0, 1.0)), 'rot': ((1, 0), (-1.0, -1.0))}


def rename(key: str) -> str | None:
    """Translates the name of a tensor of mit-han-lab to ours; returns None if there is no counterpart."""
    for theirs, ours in _MODULES.items():
        if key.startswith(theirs):
            return _rename_in_decoder(ours + key.removeprefix(theirs))
    return None


def _rename_in_decoder(key: str) -> str:
    decoder = _DECODER.fullmatch(key)
    if decoder is not None:
        for theirs, ours in _DECODER_PARTS.items():
            if decoder[2].startswith(theirs):
                return decoder[1] + ours + decoder[2].removeprefix(theirs)
    return key


def convert_bevfusion(state_dict: Mapping[str, Tensor]) -> OrderedDict[str, Tensor]:
    """Converts the weights of mit-han-lab's detector to those of ``BEVFusion3D``.

    Args:
        state_dict: All weights (``encoders.*``, ``fuser.*``, ``decoder.*``, ``heads.object.*``), of cameras and LiDAR
            or of one of them. It is not modified; tensors that need no change are shared with the result.

    Returns:
        The weights by our names, in the same order; sparse weights as (out, k, k, k, in) of spconv 2, which is also
        recorded in ``_metadata``, so that mmdet3d alone can read a file of it. `DROPPED` keys are left out.

    Raises:
        ValueError: If there are keys of other parts, such as the radar's (one message lists all of them), if the
            detection head is missing, if sparse weights are not in the order of spconv 1, or if the last layer of a box
            branch has another number of rows than expected.
    """
    names = {key: rename(key) for key in state_dict if not key.startswith(DROPPED)}
    unknown = [key for key, name in names.items() if name is None]
    if unknown:
        listed = '\n  '.join(unknown)
        raise ValueError(
            f'{len(unknown)} of {len(state_dict)} keys do not belong to a BEVFusion detector of cameras and LiDAR:'
            f'\n  {listed}\nTheir names begin with one of {", ".join(_MODULES)}; {", ".join(DROPPED)} is left out.'
        )
    if not any(key.startswith('heads.object.') for key in state_dict):
        raise ValueError('there are no keys heads.object.*: this is not a BEVFusion detector')
    converted = {name: state_dict[key] for key, name in names.items()}
    _check_sparse_order(converted)
    last = _last_layers(converted)
    result = OrderedDict((key, _convert_tensor(key, tensor, last)) for key, tensor in converted.items())
    sparse = [key.rpartition('.')[0] for key, tensor in converted.items() if _is_sparse(key, tensor)]
    result._metadata = OrderedDict((module, {'version': SPCONV_2}) for module in sparse)
    return result


def _check_sparse_order(state_dict: Mapping[str, Tensor]) -> None:
    """Raises an error for weights of spconv 2, whose kernel sizes are dimensions 1 to 3 and not 0 to 2."""
    key = 'pts_middle_encoder.conv_input.0.weight'
    if key in state_dict and len(set(state_dict[key].shape[:3])) > 1:
        raise ValueError(
            f'{key} is {list(state_dict[key].shape)}, not (k, k, k, in, out) of spconv 1: these weights were converted '
            'before, or do not come from mit-han-lab'
        )


def _last_layers(state_dict: Mapping[str, Tensor]) -> set[str]:
    """Prefixes, including the index, of the last layers of the dim and rot branches."""
    depth: dict[str, int] = {}
    for branch in filter(None, map(_BRANCH.fullmatch, state_dict)):
        depth[branch[1]] = max(depth.get(branch[1], 0), int(branch[3]))
    return {f'{prefix}{index}.' for prefix, index in depth.items()}


def _is_sparse(key: str, tensor: Tensor) -> bool:
    return tensor.dim() == 5 and key.startswith('pts_middle_encoder.')


def _convert_tensor(key: str, tensor: Tensor, last: set[str]) -> Tensor:
    if _is_sparse(key, tensor):
        return tensor.permute(4, 0, 1, 2, 3).contiguous()
    branch = _BRANCH.fullmatch(key)
    if branch is None or f'{branch[1]}{branch[3]}.' not in last:
        return tensor
    rows, signs = _ROWS[branch[2]]
    if len(tensor) != len(rows):
        raise ValueError(f'{key} has {len(tensor)} rows; the last layer of {branch[2]} has {len(rows)}')
    sign = torch.tensor(signs).to(tensor).reshape(-1, *[1] * (tensor.dim() - 1))
    return tensor[torch.tensor(rows, device=tensor.device)] * sign
