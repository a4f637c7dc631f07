"""Files with pruning masks: those that ``mmprune3d prune`` writes, and checkpoints of masked models."""

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
"""Key of a checkpoint under which masks and their record are stored."""


def packed_state(masks: Mapping[str, Tensor], record: Mapping[str, Any]) -> dict[str, Any]:
    """Creates the content of `STATE` in a checkpoint: the packed masks, and plain data about them."""
    return {'masks': pack(masks), 'record': dict(record)}


def save_masks(path: Path, masks: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
    """Writes masks to a file that `load_masks` and ``MaskHook(masks=...)`` can read."""
    save_checkpoint({STATE: packed_state(masks, record)}, path)


def load_masks(path: str | Path) -> dict[str, Tensor]:
    """Reads masks from a file of `save_masks` or a checkpoint: parameter -> bool mask, True where a weight is kept.

    Raises:
        ValueError: If the file has no masks, or cannot be read.
        FileNotFoundError: If the file does not exist.
    """
    found = read_file(local_file(path))
    packed = found.get(STATE, {}).get('masks') if isinstance(found, dict) else None
    if not packed:
        raise ValueError(
            f'{path} has no masks: it was written neither by mmprune3d prune nor by a training with MaskHook'
        )
    return unpack(packed)
