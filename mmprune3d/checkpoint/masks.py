"""Files with masks: what ``tools/prune.py`` writes, and checkpoints of masked models."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from mmprune3d.files import save_checkpoint
from mmprune3d.pruning.masks import pack, unpack

from .addresses import local_file
from .torch_files import read_file

STATE = 'mmprune3d'
"""Key of a checkpoint under which masks and their record are kept."""


def packed_state(masks: Mapping[str, Tensor], record: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint keeps under `STATE`: the masks, packed, and plain data about them."""
    return {'masks': pack(masks), 'record': dict(record)}


def save_masks(path: Path, masks: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
    """Writes a file that `load_masks` and ``MaskHook(masks=...)`` read."""
    save_checkpoint({STATE: packed_state(masks, record)}, path)


def load_masks(path: str | Path) -> dict[str, Tensor]:
    """Parameter -> bool mask, True where a weight stays, from a file of `save_masks` or a checkpoint.

    Raises:
        ValueError: If the file has no masks, or cannot be read.
        FileNotFoundError: If there is no such file.
    """
    found = read_file(local_file(path))
    packed = found.get(STATE, {}).get('masks') if isinstance(found, dict) else None
    if not packed:
        raise ValueError(f'{path} has no masks: neither tools/prune.py wrote it, nor a training with MaskHook')
    return unpack(packed)
