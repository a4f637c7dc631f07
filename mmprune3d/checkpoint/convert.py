"""Conversion of published PETR weights to those of ``PETR3D``: state dict in, state dict out.

PETR has the same parameters in all implementations; only the meaning of the ten box outputs differs. Here it is that of
mmdet3d 1.x (cx, cy, l, w, cz, h, sin yaw, cos yaw, vx, vy). Official PETR regresses w before l, and both it and
mmdet3d's ``projects/PETR`` regress the angle -yaw - pi / 2, whose sine is -cos(yaw) and whose cosine is -sin(yaw). So
the rows of the last regression layer are permuted and two of them change sign. This is exact: the converted model finds
the same boxes, bit by bit up to the rounding of the angle.

PETRv2-like heads cannot be converted this way (length and width come from different hidden layers); their box coder
takes ``convention='petr'`` instead.

BEVFusion and SST have modules of their own, :mod:`mmprune3d.checkpoint.convert_bevfusion` and
:mod:`mmprune3d.checkpoint.convert_sst`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmprune3d.files import save_checkpoint

from . import convert_bevfusion, convert_sst
from .read import read_checkpoint

CODE_SIZE = 10

# For every row here: the row in the source, and its sign.
_LEGACY_ANGLE = [(7, -1), (6, -1)]
_ROWS = {
    'petr-official': [(0, 1), (1, 1), (3, 1), (2, 1), (4, 1), (5, 1), *_LEGACY_ANGLE, (8, 1), (9, 1)],
    'petr-mmdet3d': [(0, 1), (1, 1), (2, 1), (3, 1), (4, 1), (5, 1), *_LEGACY_ANGLE, (8, 1), (9, 1)],
}
SOURCES = tuple(_ROWS)
"""Sources of PETR weights: the official repository (mmdet3d 0.17), and mmdet3d's ``projects/PETR``."""

ALL_SOURCES = (*SOURCES, convert_bevfusion.SOURCE, convert_sst.SOURCE)
"""All sources of weights that can be converted."""

CLASSES = (
    'car',
    'truck',
    'construction_vehicle',
    'bus',
    'trailer',
    'barrier',
    'motorcycle',
    'bicycle',
    'pedestrian',
    'traffic_cone',
)
"""Class order of the published models of nuScenes; SST has :data:`mmprune3d.checkpoint.convert_sst.CLASSES`."""

_LAST_LAYER = re.compile(r'pts_bbox_head\.reg_branches\.\d+\.4\.(weight|bias)')
_KNOWN = re.compile(
    r"""img_backbone\..+
    |img_neck\.(lateral_convs|fpn_convs)\.\d+\.conv\.(weight|bias)
    |pts_bbox_head\.(
        code_weights
        |reference_points\.weight
        |(input_proj|query_embedding\.[02]|adapt_pos3d\.[02]|position_encoder\.[02])\.(weight|bias)
        |cls_branches\.\d+\.[01346]\.(weight|bias)
        |reg_branches\.\d+\.[024]\.(weight|bias)
        |transformer\.decoder\.(
            post_norm\.(weight|bias)
            |layers\.\d+\.(
                attentions\.[01]\.attn\.(in_proj_weight|in_proj_bias|out_proj\.weight|out_proj\.bias)
                |ffns\.0\.layers\.(0\.0|1)\.(weight|bias)
                |norms\.[012]\.(weight|bias)
            )
        )
    )""",
    re.VERBOSE,
)


def convert_state_dict(state_dict: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """Converts weights of a published PETR, BEVFusion or SST to ``PETR3D``, ``BEVFusion3D`` or ``SSTDetector``.

    Args:
        state_dict: All weights of the detector (for PETR ``img_backbone.*``, ``img_neck.*``, ``pts_bbox_head.*``). It
            is not modified; tensors that need no change are shared with the result.
        source: Origin of the weights, one of `ALL_SOURCES`.

    Returns:
        For PETR the same keys and shapes; rows of the last regression layers and `code_weights` are in our order. For
        BEVFusion see :func:`~mmprune3d.checkpoint.convert_bevfusion.convert_bevfusion`, for SST
        :func:`~mmprune3d.checkpoint.convert_sst.convert_sst`.

    Raises:
        ValueError: If `source` is unknown; if keys do not belong to PETR, or the head is missing (one message lists all
            of them); or if the boxes do not have ten numbers.
    """
    if source == convert_bevfusion.SOURCE:
        return convert_bevfusion.convert_bevfusion(state_dict)
    if source == convert_sst.SOURCE:
        return convert_sst.convert_sst(state_dict)
    if source not in _ROWS:
        raise ValueError(f'unknown source {source!r}; valid are {", ".join(ALL_SOURCES)}')
    unknown = [key for key in state_dict if not _KNOWN.fullmatch(key)]
    if unknown:
        listed = '\n  '.join(unknown)
        raise ValueError(
            f'{len(unknown)} of {len(state_dict)} keys do not belong to PETR, so this cannot be converted as '
            f'{source}:\n  {listed}\nHeads of PETRv2 and M-BEV need no conversion: set convention="petr" in the box '
            'coder.'
        )
    boxes = [key for key in state_dict if _LAST_LAYER.fullmatch(key)]
    if not boxes:
        raise ValueError('there are no keys pts_bbox_head.reg_branches.*: this is not a PETR head')
    rows = torch.tensor([row for row, _ in _ROWS[source]])
    signs = torch.tensor([float(sign) for _, sign in _ROWS[source]])
    converted = dict(state_dict)
    for key in boxes:
        tensor = state_dict[key]
        if len(tensor) != CODE_SIZE:
            raise ValueError(f'{key} has {len(tensor)} rows; only boxes of {CODE_SIZE} numbers can be converted')
        sign = signs.to(tensor).reshape(-1, *[1] * (tensor.dim() - 1))
        converted[key] = tensor[rows.to(tensor.device)] * sign
    weights = 'pts_bbox_head.code_weights'
    if weights in state_dict:
        converted[weights] = state_dict[weights][rows.to(state_dict[weights].device)]
    return converted


def convert_checkpoint(checkpoint: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Converts a checkpoint or bare state dict; the result has the weights, the class names and their origin.

    Raises:
        ValueError: If the checkpoint was converted before, or as in :func:`convert_state_dict`.
    """
    meta = checkpoint.get('meta', {})
    if 'converted_from' in meta:
        raise ValueError(f'this checkpoint was already converted from {meta["converted_from"]}; use it as it is')
    default_classes = CLASSES
    if source == convert_sst.SOURCE:
        convert_sst.check_meta(meta)
        default_classes = convert_sst.CLASSES
    weights = checkpoint.get('state_dict', checkpoint)
    weights = {key.removeprefix('module.'): value for key, value in weights.items()}
    dataset_meta = {'classes': tuple(meta.get('CLASSES') or default_classes)}
    return {
        'meta': {'converted_from': source, 'dataset_meta': dataset_meta},
        'state_dict': convert_state_dict(weights, source),
    }


def convert_file(src: str | Path, dst: Path, source: str) -> None:
    """Converts a checkpoint file with :func:`convert_checkpoint`; nothing is written if this fails.

    Raises:
        FileExistsError: If `dst` exists.
        FileNotFoundError: If `src` does not exist.
        OSError: If `dst` cannot be written.
        ValueError: If `src` cannot be read, or does not come from `source`.
    """
    if Path(dst).exists():
        raise FileExistsError(f'{dst} exists; choose another name')
    checkpoint = read_checkpoint(src)
    save_checkpoint(convert_checkpoint(checkpoint, source), dst)
