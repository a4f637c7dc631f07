"""Files that are whole or absent: written beside their final name, then renamed.

A kill, Ctrl-C or a full disk in the middle of a write leaves what was there before, never half a file under a name that
the next run would take for finished.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

LOCK = '.lock'
"""File in a folder that only one process at a time works in."""


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yields the name of a temporary file in the folder of `path`, which takes the place of `path` when the block ends.

    The temporary file has the ending of `path`, so that writers which choose the format by it work; a leftover of a
    killed process is overwritten. The folder is made if needed, and a symbolic link stays one.

    Args:
        path: The file to write or replace.

    Raises:
        OSError: If the folder cannot be written, the disk is full, and so on. It names `path`, which is as it was.
    """
    target = Path(os.path.realpath(path))
    part = target.with_name(f'.part.{target.name}')
    with _naming(path, part):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield part
            os.replace(part, target)
        except BaseException:
            with suppress(OSError):  # the first error is the one to tell of
                part.unlink(missing_ok=True)
            raise


@contextmanager
def _naming(path: str | Path, part: Path) -> Iterator[None]:
    """Errors in the block are about `path`: a write to a full disk names no file, others name the temporary one."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename not in (None, str(part), part):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def writable(folder: str | Path) -> Path:
    """Makes a folder and tries to write into it: what a tool asks before its work, not after.

    Args:
        folder: Where results shall go.

    Returns:
        The folder.

    Raises:
        OSError: If it cannot be made or written; the message says so.
    """
    folder = Path(folder)
    probe = folder / f'.probe.{os.getpid()}'
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            probe.write_bytes(b'?')
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        why = 'is a file, not a folder' if folder.is_file() else error.strerror
        reason = f'{why}; results cannot be written there'
        raise OSError(error.errno, reason, str(folder)) from error
    return folder


@contextmanager
def alone(folder: str | Path) -> Iterator[None]:
    """Nobody else who asks for it works in `folder` during the block: two would overwrite each other's results.

    The lock goes with the process, however that ends. Where a file system has no locks, there is none. A folder in
    which nothing was written is not left behind.

    Args:
        folder: Made if needed.

    Raises:
        BlockingIOError: If another process has it.
        OSError: If the folder cannot be made or written.
    """
    import fcntl

    path = writable(folder) / LOCK
    with path.open('a') as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            reason = 'another process works in this folder; wait for it, or choose another one'
            raise BlockingIOError(error.errno, reason, str(folder)) from error
        except OSError:  # no locks on this file system
            pass
        try:
            yield
        finally:
            if [*path.parent.iterdir()] == [path]:
                with suppress(OSError):
                    path.unlink()
                    path.parent.rmdir()


def write_bytes(path: str | Path, data: bytes) -> None:
    """Writes `data` to `path`, whole or not at all; see `replacing`."""
    with replacing(path) as part:
        part.write_bytes(data)


def write_text(path: str | Path, text: str) -> None:
    """Writes `text` to `path` as UTF-8, whole or not at all; see `replacing`."""
    write_bytes(path, text.encode())


def write_json(path: str | Path, data: Any, indent: int | None = 2) -> None:
    """Writes `data` to `path` as JSON, whole or not at all; see `replacing`."""
    write_text(path, json.dumps(data, indent=indent) + '\n')


def read_json(path: str | Path) -> Any:
    """What `write_json` wrote.

    Raises:
        ValueError: If the file is no JSON; the message names it.
        OSError: If it cannot be read.
    """
    try:
        return json.loads(Path(path).read_text())
    except ValueError as error:
        raise ValueError(f'{path} is no whole JSON file ({error}): remove it, and run again what wrote it') from error


def write_image(path: str | Path, image: Any, jpeg_quality: int = 95) -> None:
    """Writes a picture to `path`, whole or not at all; see `replacing`. Errors say why, which ``cv2.imwrite`` does not.

    Args:
        path: Its ending decides the format.
        image: [H, W, 3] uint8 in the order blue, green, red, or [H, W].
        jpeg_quality: 1 to 100, for .jpg.

    Raises:
        ValueError: If OpenCV writes no files with this ending.
        OSError: See `replacing`.
    """
    import cv2

    suffix = Path(path).suffix
    if not suffix or not cv2.haveImageWriter(f'a{suffix}'):
        raise ValueError(f'{path}: pictures cannot be written as {suffix or "such"}; valid is .jpg or .png')
    write_bytes(path, cv2.imencode(suffix, image, [cv2.IMWRITE_JPEG_QUALITY, jpeg_quality])[1].tobytes())


def dump_config(config: Any, path: str | Path) -> None:
    """Writes an mmengine config to `path`, whole or not at all; see `replacing`."""
    with replacing(path) as part:
        config.dump(part)


def save_checkpoint(data: Any, path: str | Path) -> None:
    """Writes `data` with ``torch.save`` to `path`, whole or not at all; see `replacing`.

    Raises:
        OSError: If it cannot be written. On a full disk ``torch.save`` (2.13) raises a RuntimeError of its zip writer;
            what went wrong is known to the open file that it is given here.
    """
    import torch

    with replacing(path) as part:
        try:
            with part.open('wb') as file:
                torch.save(data, file)
        except RuntimeError as error:
            cause = next((one for one in _contexts(error) if isinstance(one, OSError)), None)
            if cause is None:
                raise
            raise OSError(cause.errno, cause.strerror, str(path)) from error


def _contexts(error: BaseException) -> Iterator[BaseException]:
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__context__
