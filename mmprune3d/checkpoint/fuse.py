"""Combination of separately trained camera and LiDAR detectors as initial weights of a fusion detector."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from .metadata import with_metadata

CAMERA_STREAM = ('img_backbone', 'img_neck', 'view_transform')
"""Names of the child modules of BEVFusion's camera stream."""


def fuse_checkpoints(
    camera: Mapping[str, Any], lidar: Mapping[str, Any], camera_stream: Sequence[str] = CAMERA_STREAM
) -> dict[str, Any]:
    """Combines the camera stream of one checkpoint with all weights of another one.

    The modules after the fusion (backbone, neck and head) come from the LiDAR detector, as in BEVFusion's own recipe;
    the fuser is in neither checkpoint and starts untrained.

    Args:
        camera: Checkpoint of a camera detector (or bare weights).
        lidar: Checkpoint of a LiDAR detector (or bare weights).
        camera_stream: Names of the child modules that are taken from the first one.

    Returns:
        A checkpoint with the metadata (class names) of the LiDAR detector.

    Raises:
        ValueError: If a child module is not in the camera checkpoint, or is also in the LiDAR checkpoint.
    """
    seen, swept = _weights(camera), _weights(lidar)
    missing = [child for child in camera_stream if not any(key.startswith(f'{child}.') for key in seen)]
    if missing:
        children = sorted({key.split('.')[0] for key in seen})
        raise ValueError(f'the camera checkpoint has no {", ".join(missing)}; it has {", ".join(children)}')
    twice = [child for child in camera_stream if any(key.startswith(f'{child}.') for key in swept)]
    if twice:
        raise ValueError(f'{", ".join(twice)} is in the LiDAR checkpoint as well: it must be in the camera one only')
    chosen = {key: value for key, value in seen.items() if key.split('.')[0] in camera_stream}
    classes = lidar.get('meta', {}).get('dataset_meta')
    meta = {} if classes is None else {'dataset_meta': classes}
    return {'meta': meta, 'state_dict': with_metadata({**chosen, **swept}, seen, swept)}


def _weights(checkpoint: Mapping[str, Any]) -> Mapping[str, Tensor]:
    return checkpoint.get('state_dict', checkpoint)
