"""Reduction of a training checkpoint for publication: weights in half precision, and their origin."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmprune3d.files import save_checkpoint

from .metadata import with_metadata
from .read import read_checkpoint

KEPT_META = ('epoch', 'iter', 'seed', 'mmprune3d', 'dataset_meta')


def half_weights(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Converts weights to float16; tensors that share memory (PETR's branches) still do, so they are stored once.

    Integer tensors are not changed.

    Raises:
        ValueError: If a weight is too large for float16.
    """
    made: dict[tuple[int, torch.Size], Tensor] = {}
    for name, value in state_dict.items():
        identity = value.data_ptr(), value.shape
        if identity not in made:
            made[identity] = value.half() if value.is_floating_point() else value
            if not torch.isfinite(made[identity]).all():
                raise ValueError(f'{name} has values that are too large for float16')
    halved = {name: made[value.data_ptr(), value.shape] for name, value in state_dict.items()}
    return with_metadata(halved, state_dict)


def publish(source: str | Path, target: Path, metrics: Mapping[str, Any] | None = None) -> None:
    """Writes a checkpoint without optimizer, schedules and logs, with weights in float16.

    Args:
        source: Checkpoint of mmengine, a file or an address.
        target: File to write; it can be loaded like any other checkpoint.
        metrics: Results of the weights, stored in the meta data under `metrics`.

    Raises:
        FileNotFoundError: If `source` does not exist.
        ValueError: If `source` cannot be read, or a weight is too large for float16.
    """
    checkpoint = read_checkpoint(source)
    meta = {key: value for key, value in checkpoint.get('meta', {}).items() if key in KEPT_META}
    if metrics:
        meta['metrics'] = dict(metrics)
    save_checkpoint({'meta': meta, 'state_dict': half_weights(checkpoint['state_dict'])}, target)
