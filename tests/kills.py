"""Trainings in a process of their own that is killed at a chosen moment, of all that there are.

The moments of a training are those before each hook of mmengine's runner is called, and those in which a file of its
work folder is opened for writing, renamed or removed: there also right after opening, when the file is empty. A
training without randomness has the same moments whenever it runs, so that a number says which one is meant.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor, equal

FORK = multiprocessing.get_context('fork')
CHANGES = {'open': 0, 'os.rename': 0, 'os.remove': 0, 'os.truncate': 0}
"""Audit events of Python that change files -> which argument is the path."""


def die() -> None:
    """Ends the process, as a full machine or an impatient colleague does."""
    os.kill(os.getpid(), signal.SIGKILL)


def in_process(target: Callable, *args: Any, **kwargs: Any) -> int:
    """Exit code of a process of its own; negative for a signal."""
    process = FORK.Process(target=target, args=args, kwargs=kwargs)
    process.start()
    process.join()
    return process.exitcode


@HOOKS.register_module()
class SigKillHook(Hook):
    """Ends the process at a point of an iteration.

    Among the hooks of that moment its place is the ``priority`` of the config.
    """

    def __init__(self, iteration: int, point: str) -> None:
        self.iteration, self.point = iteration, point

    def _die(self, point: str, runner: Runner) -> None:
        if (self.point, self.iteration) == (point, runner.iter):
            die()

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        self._die('before', runner)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        self._die('after', runner)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        self._die('saving', runner)


@dataclass
class Moments:
    """Counts the moments of a training in this process, and ends it at one of them.

    Attributes:
        work_dir: Files below it count.
        fatal: The moment at which the process ends, by its place in `seen`; None: never.
        emptied: Whether a file that is opened anew in the fatal moment is emptied before the end.
        seen: What the moments were.
    """

    work_dir: Path
    fatal: int | None = None
    emptied: bool = False
    seen: list[str] = field(default_factory=list)

    def watch(self) -> None:
        """Begins; only a process of its own ever forgets it."""
        moments = self

        def call_hook(runner: Runner, fn_name: str, **kwargs: Any) -> None:
            for hook in runner._hooks:  # as mmengine has it
                if hasattr(hook, fn_name):
                    moments.pass_by(f'{fn_name} of {type(hook).__name__}')
                    getattr(hook, fn_name)(runner, **kwargs)

        Runner.call_hook = call_hook
        sys.addaudithook(self._audit)

    def pass_by(self, what: str, path: str | None = None) -> None:
        """A moment."""
        self.seen.append(what)
        if len(self.seen) - 1 == self.fatal:
            self.fatal = None  # what follows is the end
            if path is not None and self.emptied:
                Path(path).write_bytes(b'')
            die()

    def _audit(self, event: str, args: tuple) -> None:
        if event not in CHANGES or not isinstance(args[CHANGES[event]], (str, os.PathLike)):
            return
        path, written = os.path.abspath(args[0]), event != 'open' or bool(set(str(args[1])) & set('wax+'))
        if written and path.startswith(f'{self.work_dir}{os.sep}'):
            opened = path if event == 'open' and 'w' in str(args[1]) else None
            self.pass_by(f'{event} {Path(path).name}', opened)


def counted_moments(train: Callable[[Path], Any], work_dir: Path) -> list[str]:
    """Trains to the end, in a process of its own; returns its moments."""
    queue = FORK.Queue()

    def run() -> None:
        moments = Moments(work_dir)
        moments.watch()
        train(work_dir)
        queue.put(list(moments.seen))

    process = FORK.Process(target=run)
    process.start()
    seen = queue.get(timeout=300)
    process.join()
    assert process.exitcode == 0
    return seen


def killed_at(train: Callable[[Path], Any], work_dir: Path, moment: int, emptied: bool = False) -> int:
    """Trains until that moment, in a process of its own; returns its exit code."""

    def run() -> None:
        Moments(work_dir, moment, emptied).watch()
        train(work_dir)

    return in_process(run)


def drawn(seen: list[str], seed: int, number: int) -> Iterator[tuple[int, bool]]:
    """Moments at which to kill: every second one is of a file, and of these every second leaves an empty one."""
    generator = random.Random(seed)
    files = [index for index, what in enumerate(seen) if what.split()[0] in CHANGES]
    hooks = sorted(set(range(len(seen))) - set(files))
    for place in range(number):
        yield generator.choice(hooks if place % 2 else files), place % 4 == 0


def assert_same(ours: Any, theirs: Any, where: str) -> None:
    """Bit for bit."""
    if isinstance(theirs, Tensor):
        assert equal(ours, theirs), where
    elif isinstance(theirs, dict):
        assert list(ours) == list(theirs), where
        for key in theirs:
            assert_same(ours[key], theirs[key], f'{where}.{key}')
    elif isinstance(theirs, (list, tuple)):
        assert len(ours) == len(theirs), where
        for i, pair in enumerate(zip(ours, theirs)):
            assert_same(*pair, f'{where}.{i}')
    else:
        assert ours == theirs, where
