"""Error handling of command-line tools: errors of the user become one line, errors of the program keep a traceback."""

from __future__ import annotations

import inspect
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from traceback import walk_tb
from typing import NoReturn

PACKAGE = Path(__file__).resolve().parent
TRACEBACK = 'MMPRUNE3D_TRACEBACK'
"""Environment variable; if it is set and not 0, every error keeps its traceback."""
REGISTRY = ('mmengine', 'registry')
"""The folder of the functions that build what a config describes."""
WRONG_ARGUMENT = re.compile(r'got an unexpected keyword argument|missing \d+ required')
GOES_ON = 'what was finished is kept; the same command goes on from there'
"""Message after Ctrl-C, unless the tool has its own."""
NOTHING_KEPT = 'no partial results are left; the same command starts again from the beginning'
"""Message after Ctrl-C for tools that write their results at the end."""
INTERRUPTED = 130
"""Exit status after Ctrl-C, by the convention of shells: 128 plus the number of the signal."""


def run_main(main: Callable[[], object], after_interrupt: str = GOES_ON, packages: Sequence[Path] = (PACKAGE,)) -> None:
    """Runs a tool, and ends the process in a way that says what to do.

    ValueError, OSError (no such file, no space, no permission), ImportError, RuntimeError raised by this package, and
    what a registry of mmengine cannot build from a config become ``error: ...`` on stderr and exit status 1. Ctrl-C
    becomes ``interrupted: ...`` and exit status 130. All other errors are faults of the program and keep their
    traceback.

    Args:
        main: The tool, without arguments.
        after_interrupt: What is left after Ctrl-C, and how to go on.
        packages: Folders of the code whose errors are written for users.

    Raises:
        SystemExit: After an error or Ctrl-C; not if `main` returns normally.
    """
    try:
        main()
        sys.stdout.flush()
    except KeyboardInterrupt:
        _end_interrupted(after_interrupt)
    except BrokenPipeError:
        # The reader of a pipe has ended (`| head`); Python would report another error when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except Exception as error:
        # mmengine (0.10.7) turns any exception that stops the formatting of a config into a SyntaxError.
        if any(isinstance(cause, KeyboardInterrupt) for cause in chain(error)):
            _end_interrupted(after_interrupt)
        if os.environ.get(TRACEBACK, '0') not in ('', '0') or not is_expected(error, packages):
            raise
        sys.stdout.flush()
        raise SystemExit(
            f'error: {describe(error, packages)}'
        ) from error  # Python prints it to stderr, the status is 1


def _end_interrupted(what: str) -> NoReturn:
    sys.stdout.flush()
    print(f'interrupted: {what}', file=sys.stderr, flush=True)
    raise SystemExit(INTERRUPTED) from None


def is_expected(error: BaseException, packages: Sequence[Path] = (PACKAGE,)) -> bool:
    """Whether the message of an error is all that a user needs."""
    if isinstance(error, (ValueError, OSError, ImportError)):
        return True
    if isinstance(error, RuntimeError) and not isinstance(error, (NotImplementedError, RecursionError)):
        return _is_ours(error, packages)
    if isinstance(error, TypeError) and _unknown_argument(error) is not None:
        return True
    # a type that no registry knows, or something else than a dict where a part of a model is described
    return isinstance(error, (KeyError, TypeError)) and _origin(error).parts[-3:-1] == REGISTRY


def describe(error: BaseException, packages: Sequence[Path] = (PACKAGE,)) -> str:
    """The message of an error, without the class, number and quotes that Python puts around it.

    For errors of other packages, whose message may be short, the class is added, and how to get the traceback.
    """
    if isinstance(error, OSError) and error.strerror:
        return f'{error.filename}: {error.strerror}' if error.filename is not None else error.strerror
    if isinstance(error, TypeError) and (argument := _unknown_argument(error)) is not None:
        return argument
    message = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    if isinstance(error, KeyError) and 'not in the mmengine::' in message:
        message += ". If it is one of mmdet3d's: the config has no default_scope, write default_scope = 'mmdet3d'"
    if isinstance(error, (KeyError, ImportError)) or _is_ours(error, packages):
        return message or type(error).__name__
    return f'{type(error).__name__}: {message} ({TRACEBACK}=1 before the command shows where)'


def _unknown_argument(error: TypeError) -> str | None:
    """The message for a class that a config gives unknown or too few arguments; None if that is not the error."""
    if not WRONG_ARGUMENT.search(str(error)):
        return None
    builds = [
        frame for frame, _ in walk_tb(error.__traceback__) if Path(frame.f_code.co_filename).parts[-3:-1] == REGISTRY
    ]
    kind = builds[-1].f_locals.get('obj_cls') if builds else None
    if kind is None:
        return None
    with suppress(TypeError, ValueError):  # no signature can be found
        valid = [one.name for one in inspect.signature(kind).parameters.values() if one.kind is not one.VAR_KEYWORD]
        return f'{error}: the config gives arguments that do not fit; valid are {", ".join(valid) or "none"}'
    return f'{error}: the config gives arguments that do not fit'


def chain(error: BaseException) -> Iterator[BaseException]:
    """Iterates over an error and its causes; mmengine wraps errors of a constructor in new ones."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)


def _is_ours(error: BaseException, packages: Sequence[Path]) -> bool:
    """Whether one of `packages` raised an error, or the one that caused it."""
    return any(_origin(cause).is_relative_to(package) for cause in chain(error) for package in packages)


def _origin(error: BaseException) -> Path:
    """The source file that raised an error."""
    frames = [frame for frame, _ in walk_tb(error.__traceback__)]
    return Path(frames[-1].f_code.co_filename) if frames else Path()
