"""Keeps chatter of compiled libraries off the screen."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

STDOUT, STDERR = 1, 2


@contextmanager
def without_lines(start: str) -> Iterator[None]:
    """Inside, lines that begin with `start` and are written past Python to standard output or error vanish.

    C++ writes to the file descriptors, which ``contextlib.redirect_stdout`` does not reach. Everything else that was
    written meanwhile follows when the block ends, so keep it short.

    Args:
        start: What unwanted lines begin with.
    """
    with _kept(STDOUT, start), _kept(STDERR, start):
        yield


@contextmanager
def _kept(descriptor: int, start: str) -> Iterator[None]:
    """`without_lines` for one descriptor; left alone if it is closed, as for a daemon, or there is no place to keep."""
    _flush()
    with ExitStack() as stack:
        try:
            written = stack.enter_context(tempfile.TemporaryFile())
            saved = os.dup(descriptor)
        except OSError:
            yield
            return
        stack.callback(os.close, saved)
        os.dup2(written.fileno(), descriptor)
        try:
            yield
        finally:
            _flush()
            os.dup2(saved, descriptor)
            written.seek(0)
            _pass_on(written.readlines(), start.encode(), descriptor)


def _pass_on(lines: list[bytes], start: bytes, descriptor: int) -> None:
    rest = b''.join(line for line in lines if not line.startswith(start))
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _flush() -> None:
    """What Python holds back belongs to the place where it was written."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and not stream.closed:
            stream.flush()
