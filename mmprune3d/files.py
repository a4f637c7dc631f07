"""Files that are whole or absent: written beside their final name, then renamed.

A kill, Ctrl-C or a full disk in the middle of a write leaves what was there before, never half a file under a name that
the next run would take for finished.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yields the name of a temporary file in the folder of `path`, which takes the place of `path` when the block ends.

    The temporary file has the ending of `path`, so that writers which choose the format by it work; a leftover of a
    killed process is overwritten. The folder is made if needed, and a symbolic link stays one.

    Args:
        path: The file to write or replace.

    Raises:
        OSError: If the folder cannot be written, the disk is full, and so on. `path` is then as it was.
    """
    target = Path(os.path.realpath(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f'.part.{target.name}')
    try:
        yield part
        os.replace(part, target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


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


def save_checkpoint(data: Any, path: str | Path) -> None:
    """Writes `data` with ``torch.save`` to `path`, whole or not at all; see `replacing`.

    Raises:
        OSError: If it cannot be written. ``torch.save`` to a named file turns a full disk into a RuntimeError about its
            own zip writer (torch 2.13), so that it writes to an open file here.
    """
    import torch

    with replacing(path) as part, part.open('wb') as file:
        torch.save(data, file)
