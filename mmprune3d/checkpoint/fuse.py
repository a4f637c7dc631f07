"""Two detectors that were trained alone, as the start of one that fuses them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from .metadata import with_metadata

CAMERA_STREAM = ('img_backbone', 'img_neck', 'view_transform')
"""Children of BEVFusion's camera stream."""


def fuse_checkpoints(
    camera: Mapping[str, Any], lidar: Mapping[str, Any], camera_stream: Sequence[str] = CAMERA_STREAM
) -> dict[str, Any]:
    """The camera stream of one checkpoint and everything of another one.

    What comes after the fusion (backbone, neck and head) is that of the LiDAR detector, as in BEVFusion's own recipe;
    the fuser is in neither and starts untrained.

    Args:
        camera: Checkpoint of a camera detector (or bare weights).
        lidar: Checkpoint of a LiDAR detector.
        camera_stream: Names of the children that come from the first one.

    Returns:
        A checkpoint whose metadata is that of the LiDAR detector's (classes).

    Raises:
        ValueError: If a child is not in the camera checkpoint, or is in the LiDAR one as well.
    """
    seen, swept = _weights(camera), _weights(lidar)
    missing = [child for child in camera_stream if not any(key.startswith(f'{child}.') for key in seen)]
    if missing:
        children = sorted({key.split('.')[0] for key in seen})
        raise ValueError(f'the camera checkpoint has no {", ".join(missing)}; it has {", ".join(children)}')
    twice = [child for child in camera_stream if any(key.startswith(f'{child}.') for key in swept)]
    if twice:
        raise ValueError(f'{", ".join(twice)} is in the LiDAR checkpoint as well: which one is meant?')
    chosen = {key: value for key, value in seen.items() if key.split('.')[0] in camera_stream}
    classes = lidar.get('meta', {}).get('dataset_meta')
    meta = {} if classes is None else {'dataset_meta': classes}
    return {'meta': meta, 'state_dict': with_metadata({**chosen, **swept}, seen, swept)}


def _weights(checkpoint: Mapping[str, Any]) -> Mapping[str, Tensor]:
    return checkpoint.get('state_dict', checkpoint)
