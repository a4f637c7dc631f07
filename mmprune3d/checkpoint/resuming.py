"""Resuming of trainings after a kill, Ctrl-C or a full disk at any moment, including while a checkpoint is saved.

mmengine (0.10.7) deletes the checkpoints beyond `max_keep_ckpts`, writes the new checkpoint directly under its name,
and then writes its path into ``last_checkpoint``. A run that is stopped in between leaves an incomplete file, or a
``last_checkpoint`` that is empty or names a deleted file, and every later start with ``--resume`` fails. Importing
mmprune3d makes mmengine write checkpoints to a temporary file and rename it (:func:`save_whole`), and resume from the
newest complete checkpoint (:func:`find_latest_checkpoint`).
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Callable
from functools import wraps
from logging import WARNING
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.logging import print_log

from mmprune3d.files import replacing

from . import begun

LAST = 'last_checkpoint'
"""File in a work folder that names the newest checkpoint."""


def is_whole(path: Path) -> bool:
    """Checks that a file of ``torch.save`` is complete: its directory, which comes last, and all records in it."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.rpartition('/')[2] == 'data.pkl' for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def newest_whole_checkpoint(work_dir: str | Path) -> Path | None:
    """Finds the checkpoint from which a training is resumed; None if it has to start from the beginning.

    This is the one that ``last_checkpoint`` names, even if the folder was moved since. If that is missing or
    incomplete, a warning is logged, and the checkpoint with the most iterations and an optimizer state in the folder is
    used. Without ``last_checkpoint`` nothing is resumed, as in mmengine.

    Args:
        work_dir: Folder of the training.
    """
    work_dir = Path(work_dir)
    if not (work_dir / LAST).is_file():
        return None
    named = _named(work_dir)
    for path in () if named is None else (named, work_dir / named.name):
        if is_whole(path):
            return path
    found = {path: count for path in work_dir.glob('*.pth') if (count := _iterations(path)) is not None}
    newest = max(found, key=found.__getitem__, default=None)
    _tell(work_dir, named, newest)
    return newest


def _named(work_dir: Path) -> Path | None:
    name = (work_dir / LAST).read_text(errors='replace').strip('\0 \n\r\t')
    return Path(name) if name else None


def _iterations(path: Path) -> int | None:
    """Number of finished iterations stored in a checkpoint; None if training cannot be resumed from it."""
    if not is_whole(path):
        return None
    try:
        data = torch.load(path, map_location='cpu', weights_only=True, mmap=True)
        return int(data['meta']['iter']) if 'optimizer' in data else None
    except (RuntimeError, pickle.UnpicklingError, OSError, EOFError, KeyError, TypeError, ValueError):
        return None


def _tell(work_dir: Path, named: Path | None, newest: Path | None) -> None:
    if named is None:
        what = f'{work_dir / LAST} names no checkpoint'
    else:
        what = f'{named}, named in {work_dir / LAST}, is {"not complete" if named.is_file() else "missing"}'
    then = f'resuming from {newest}' if newest else 'there is no other checkpoint to resume from'
    print_log(f'The training was interrupted while it saved: {what}; {then}', logger='current', level=WARNING)


def go_on(config: Config, work_dir: str | Path, start: str | Path) -> None:
    """Prepares a config, in place, to train in `work_dir`: resumed from an earlier run, or starting from `start`.

    At least two checkpoints are kept: with only one, mmengine deletes it before it writes the next.

    Args:
        config: Complete config of a training; the settings on which it depends are recorded in the folder (`begun`).
        work_dir: Folder of the training.
        start: Checkpoint with the initial weights.

    Raises:
        ValueError: If the earlier run began with another config or other weights.
    """
    last, data = newest_whole_checkpoint(work_dir), begun.beginning(config, start)
    if last is None:
        begun.write(work_dir, data)
    else:
        begun.require_same(work_dir, data)
    config.work_dir = str(work_dir)
    config.resume = last is not None
    config.load_from = str(start if last is None else last)
    hook = (config.get('default_hooks') or {}).get('checkpoint')
    if hook is not None and hook.get('max_keep_ckpts') == 1:
        hook['max_keep_ckpts'] = 2


def find_latest_checkpoint(path: str) -> str | None:
    """Replaces mmengine's function of this name and returns only checkpoints that are complete.

    Raises:
        ValueError: If there were checkpoints and none is complete: mmengine would start from random weights, since
            ``--resume`` ignores `load_from`.
    """
    newest = newest_whole_checkpoint(path)
    if newest is not None:
        return str(newest)
    if (Path(path) / LAST).is_file():
        raise ValueError(
            f'{path}: none of the checkpoints is complete, so this training cannot be resumed. To start again, remove '
            f'{LAST} there and leave --resume out'
        )
    print_log('Did not find last_checkpoint to be resumed.', logger='current')
    return None


def save_whole(original: Callable[..., None]) -> Callable[..., None]:
    """Wraps mmengine's ``save_checkpoint``: local files are written under another name and then renamed."""

    @wraps(original)
    def save_checkpoint(
        checkpoint: dict[str, Any], filename: str, file_client_args: Any = None, backend_args: Any = None
    ) -> None:
        if file_client_args is not None or backend_args is not None or '://' in str(filename):
            original(checkpoint, filename, file_client_args, backend_args)
            return
        with replacing(filename) as part:
            original(checkpoint, str(part))

    return save_checkpoint
