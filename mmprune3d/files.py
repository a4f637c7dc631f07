"""Functions that write files completely or not at all: under a temporary name, which is then replaced by the final one.

A kill, Ctrl-C or a full disk during a write leaves the previous file, never an incomplete one that the next run would
take for finished.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

LOCK = '.lock'
"""Name of the lock file in a folder in which only one process at a time may work."""


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yields the path of a temporary file in the folder of `path` that replaces `path` when the context ends.

    The temporary file has the suffix of `path`, so that writers which choose the format by it work; a leftover file of
    a killed process is overwritten. The folder is created if needed, and a symbolic link stays a link.

    Args:
        path: The file to write or replace.

    Raises:
        OSError: If the folder cannot be written, the disk is full, and so on. It names `path`, which is not changed.
    """
    target = Path(os.path.realpath(path))
    part = target.with_name(f'.part.{target.name}')
    with _naming(path, part):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield part
            os.replace(part, target)
        except BaseException:
            with suppress(OSError):  # the first error is the one to report
                part.unlink(missing_ok=True)
            raise


@contextmanager
def _naming(path: str | Path, part: Path) -> Iterator[None]:
    """Makes errors in the context name `path`: a write to a full disk names no file, others name the temporary one."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename not in (None, str(part), part):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def writable(folder: str | Path) -> Path:
    """Creates a folder and tests that it can be written, so that a tool fails before its work and not after it.

    Args:
        folder: Folder for results.

    Returns:
        The folder as a path.

    Raises:
        OSError: If it cannot be created or written; the message says so.
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
    """Locks `folder` in the context, so that two processes do not overwrite each other's results.

    The lock is released when the process ends, however it ends. File systems without locks are not protected. A folder
    that the context created and wrote nothing into is removed.

    Args:
        folder: Folder to lock; it is created if needed.

    Raises:
        BlockingIOError: If another process holds the lock.
        OSError: If the folder cannot be created or written.
    """
    import fcntl

    path = writable(folder) / LOCK
    with path.open('a') as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            reason = 'another process works in this folder; wait for it, or choose another one'
            raise BlockingIOError(error.errno, reason, str(folder)) from error
        except OSError:  # this file system has no locks
            pass
        try:
            yield
        finally:
            if [*path.parent.iterdir()] == [path]:
                with suppress(OSError):
                    path.unlink()
                    path.parent.rmdir()


def write_bytes(path: str | Path, data: bytes) -> None:
    """Writes `data` to `path`, completely or not at all; see `replacing`."""
    with replacing(path) as part:
        part.write_bytes(data)


def write_text(path: str | Path, text: str) -> None:
    """Writes `text` to `path` as UTF-8, completely or not at all; see `replacing`."""
    write_bytes(path, text.encode())


def write_json(path: str | Path, data: Any, indent: int | None = 2) -> None:
    """Writes `data` to `path` as JSON, completely or not at all; see `replacing`."""
    write_text(path, json.dumps(data, indent=indent) + '\n')


def read_json(path: str | Path) -> Any:
    """Reads a file of `write_json`.

    Raises:
        ValueError: If the file is not valid JSON; the message names it.
        OSError: If it cannot be read.
    """
    try:
        return json.loads(Path(path).read_text())
    except ValueError as error:
        raise ValueError(
            f'{path} is not a complete JSON file ({error}): remove it, and run again what wrote it'
        ) from error


def write_image(path: str | Path, image: Any, jpeg_quality: int = 95) -> None:
    """Writes a picture to `path`, completely or not at all; errors have a reason, which ``cv2.imwrite`` does not give.

    Args:
        path: File to write; its suffix selects the format.
        image: Image [H, W, 3] uint8 in the order blue, green, red, or grey values [H, W].
        jpeg_quality: Quality of a JPEG, 1 to 100.

    Raises:
        ValueError: If OpenCV cannot write files with this suffix.
        OSError: If the file cannot be written; see `replacing`.
    """
    import cv2

    suffix = Path(path).suffix
    if not suffix or not cv2.haveImageWriter(f'a{suffix}'):
        raise ValueError(f'{path}: pictures cannot be written as {suffix or "such"}; valid is .jpg or .png')
    write_bytes(path, cv2.imencode(suffix, image, [cv2.IMWRITE_JPEG_QUALITY, jpeg_quality])[1].tobytes())


def dump_config(config: Any, path: str | Path) -> None:
    """Writes an mmengine config to `path`, completely or not at all; see `replacing`."""
    with replacing(path) as part:
        config.dump(part)


def save_checkpoint(data: Any, path: str | Path) -> None:
    """Writes `data` with ``torch.save`` to `path`, completely or not at all; see `replacing`.

    Raises:
        OSError: If it cannot be written. On a full disk ``torch.save`` (2.13) raises a RuntimeError of its zip writer;
            the cause is an error of the open file that it writes to, which is raised here instead.
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
