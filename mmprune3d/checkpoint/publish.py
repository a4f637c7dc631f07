"""A training checkpoint made small enough to hand out: weights in half precision, and where they come from."""

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
    """The weights in float16; tensors that share memory (PETR's branches) still do, so they are stored once.

    Integer tensors stay as they are.

    Raises:
        ValueError: If a weight is too large for float16.
    """
    made: dict[tuple[int, torch.Size], Tensor] = {}
    for name, value in state_dict.items():
        identity = value.data_ptr(), value.shape
        if identity not in made:
            made[identity] = value.half() if value.is_floating_point() else value
            if not torch.isfinite(made[identity]).all():
                raise ValueError(f'{name} does not fit into float16')
    halved = {name: made[value.data_ptr(), value.shape] for name, value in state_dict.items()}
    return with_metadata(halved, state_dict)


def publish(source: str | Path, target: Path, metrics: Mapping[str, Any] | None = None) -> None:
    """Writes `source` without optimizer, schedules and logs.

    Args:
        source: A checkpoint that mmengine wrote: a file or an address.
        target: The file to write; models load it as any other checkpoint.
        metrics: What the weights reached, stored in the meta under `metrics`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be read, or a weight is too large for float16.
    """
    checkpoint = read_checkpoint(source)
    meta = {key: value for key, value in checkpoint.get('meta', {}).items() if key in KEPT_META}
    if metrics:
        meta['metrics'] = dict(metrics)
    save_checkpoint({'meta': meta, 'state_dict': half_weights(checkpoint['state_dict'])}, target)
