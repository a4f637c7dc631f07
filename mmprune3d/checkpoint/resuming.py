"""Trainings that go on after a kill, Ctrl-C or a full disk in any moment, also in the one in which they saved.

mmengine (0.10.7) deletes what `max_keep_ckpts` has no place for, writes the new checkpoint straight under its name, and
then its path into ``last_checkpoint``. A run that ends in between leaves half a file, or a ``last_checkpoint`` that is
empty or names a file that is gone, and every later start with ``--resume`` dies of it. Importing mmprune3d makes
mmengine write checkpoints beside and rename them (:func:`save_whole`), and look for the newest that is whole
(:func:`find_latest_checkpoint`).
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
    """Whether a file is all of what ``torch.save`` wrote: its directory, which comes last, and what that lists."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.rpartition('/')[2] == 'data.pkl' for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def newest_whole_checkpoint(work_dir: str | Path) -> Path | None:
    """The checkpoint from which a training goes on, or None if it has to begin anew.

    That is the one that ``last_checkpoint`` names, also if the folder was moved since. If that is gone or not whole, a
    warning says so, and the one of most iterations in the folder with the state of an optimizer takes its place.
    Without ``last_checkpoint``, nothing is resumed, as mmengine has it.

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
    """How many iterations a training had done when it wrote `path`; None if nothing can go on from it."""
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
        what = f'{named}, named in {work_dir / LAST}, is {"not whole" if named.is_file() else "gone"}'
    then = f'going on from {newest}' if newest else 'no other one is there to go on from'
    print_log(f'The training was interrupted while it saved: {what}; {then}', logger='current', level=WARNING)


def go_on(config: Config, work_dir: str | Path, start: str | Path) -> None:
    """Sets up a config, in place, to train in `work_dir`: from where an earlier run stopped, or from `start`.

    At least two checkpoints are kept: if it is one, mmengine deletes it before it writes the next.

    Args:
        config: Of a training, complete: what it depends on is noted in the folder, see `begun`.
        work_dir: Its folder.
        start: Checkpoint with the weights to begin with.

    Raises:
        ValueError: If the earlier run was begun with another config or other weights.
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
    """Stands in for mmengine's function of this name: it returns only checkpoints that are whole.

    Raises:
        ValueError: If there was a checkpoint and none is whole: mmengine would begin anew, and with random weights,
            since ``--resume`` puts `load_from` aside.
    """
    newest = newest_whole_checkpoint(path)
    if newest is not None:
        return str(newest)
    if (Path(path) / LAST).is_file():
        raise ValueError(
            f'{path}: none of the checkpoints is whole, so this training cannot be resumed. To begin anew, remove '
            f'{LAST} there and leave --resume out'
        )
    print_log('Did not find last_checkpoint to be resumed.', logger='current')
    return None


def save_whole(original: Callable[..., None]) -> Callable[..., None]:
    """mmengine's ``save_checkpoint``, which writes local files beside and renames them; other places are left to it."""

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
