"""What a command shows: stages, progress bars, warnings and tables; what other packages print goes to a log file."""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

PACKAGE = Path(__file__).resolve().parent
LINE_SECONDS = 20.0
"""Seconds between two lines of a progress bar where the output is not a terminal."""
LOUD = re.compile(r' - (?:\x1b\[[\d;]*m)*(?:WARNING|ERROR|CRITICAL)(?:\x1b\[[\d;]*m)* - ')
"""Where a line of mmengine's logger says that it is more than information."""
UP = '\x1b[A'
"""How a terminal is told to go one line up; tqdm does where one bar stands below another."""
_shown: list[Chatter] = []


class Lines:
    """A text stream for progress bars of which every state becomes a line of its own.

    tqdm draws a bar over itself by carriage returns. In a file all states would be one long line.

    Args:
        stream: Where the lines go.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self._last = ''

    def write(self, text: str) -> int:
        """Writes `text` without carriage returns and padding; nothing if it is empty or was the last line."""
        line = text.strip()
        if line and line != self._last:
            self._last = line
            self.stream.write(f'{line}\n')
        return len(text)

    def flush(self) -> None:
        """Flushes the stream."""
        self.stream.flush()


def bar(iterable: Iterable[Any] | None = None, **settings: Any) -> tqdm:
    """A progress bar on standard error: tqdm's on a terminal, else a line every `LINE_SECONDS` seconds and at the end.

    Args:
        iterable: What is gone through; None if the caller updates the bar.
        settings: Arguments of tqdm, such as `total`, `desc`, `unit`, `leave`.
    """
    stream = sys.stderr.screen if isinstance(sys.stderr, WithoutBars) else sys.stderr
    if stream is None or stream.isatty():
        return tqdm(iterable, **settings, file=stream)
    form = '{desc}: {n_fmt} of {total_fmt} [{elapsed}, {remaining} left{postfix}]'
    return tqdm(
        iterable,
        **{**settings, 'leave': True},
        file=Lines(stream),
        mininterval=LINE_SECONDS,
        maxinterval=LINE_SECONDS,
        bar_format=form,
    )


class WithoutBars:
    """Stands in for standard error: what is written goes to the screen, but for progress bars of other packages.

    Args:
        screen: The standard error.
    """

    def __init__(self, screen: TextIO) -> None:
        self.screen = screen
        self._line_is_open = False

    def write(self, text: str) -> int:
        """Writes `text`, unless it is drawn over a line or only moves the cursor, as tqdm does."""
        moves = not text.replace(UP, '').strip('\n') and not self._line_is_open
        if text.startswith('\r') or moves:
            return len(text)
        self._line_is_open = not text.endswith('\n')
        return self.screen.write(text)

    def __getattr__(self, name: str) -> Any:
        # encoding, flush, isatty, fileno and whatever else someone may ask of a standard error
        return getattr(self.screen, name)


class Chatter:
    """Stands in for standard output: what is written goes to a log file, warnings and errors to the screen as well.

    Loggers of mmengine keep the standard output that they found when they were made; they go on with this object after
    the block, and it then writes to the screen.

    Args:
        screen: The standard output.
        log: An open log file, or None for the screen.
    """

    def __init__(self, screen: TextIO, log: TextIO | None) -> None:
        self.screen = screen
        self.log = log

    def write(self, text: str) -> int:
        """Writes `text` to where it belongs."""
        if self.log is None:
            return self.screen.write(text)
        if LOUD.search(text):
            self.screen.write(text if text.endswith('\n') else f'{text}\n')
        return self.log.write(text)

    def flush(self) -> None:
        """Flushes the screen and, while there is one, the log file."""
        self.screen.flush()
        if self.log is not None:
            self.log.flush()

    def __getattr__(self, name: str) -> Any:
        # encoding, isatty, fileno and whatever else someone may ask of a standard output
        return getattr(self.screen, name)


def say(*words: object) -> None:
    """Prints to the screen, inside of `chatter_to` as well; what is said there is in the log too."""
    if not _shown:
        print(*words, flush=True)
        return
    chatter = _shown[-1]
    print(*words, file=chatter.screen, flush=True)
    if chatter.log is not None:
        print(*words, file=chatter.log, flush=True)


@contextmanager
def chatter_to(path: Path) -> Iterator[None]:
    """Inside, what other packages print, log or warn of goes to the file `path`, which is appended to.

    The screen still gets what `say` and `bar` write, what mmengine's loggers write from the level WARNING, Python
    warnings whose place is in this package, and standard error without the progress bars of other packages, which go
    nowhere. Blocks may be nested: the inner one changes nothing.

    Args:
        path: Log file; its folder is made.

    Raises:
        OSError: If the file cannot be written.
    """
    if _shown:
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, 'a', encoding='utf-8', errors='replace', buffering=1) as log:
        chatter = Chatter(sys.stdout, log)
        before, errors, show = sys.stdout, sys.stderr, warnings.showwarning

        def warn(message: Any, category: type, filename: str, line: int, *rest: Any, **named: Any) -> None:
            log.write(warnings.formatwarning(message, category, filename, line))
            if Path(filename).is_relative_to(PACKAGE):
                show(message, category, filename, line, *rest, **named)

        _shown.append(chatter)
        sys.stdout, warnings.showwarning = chatter, warn  # type: ignore[assignment]
        if errors is not None:
            sys.stderr = WithoutBars(errors)  # type: ignore[assignment]
        try:
            yield
        finally:
            sys.stdout, sys.stderr, warnings.showwarning = before, errors, show
            chatter.flush()
            chatter.log = None
            _shown.remove(chatter)
