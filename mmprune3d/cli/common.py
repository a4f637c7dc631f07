"""What the subcommands share: their shape, and the one definition of the arguments that several of them have.

Nothing here is imported that is not in the standard library: ``mmprune3d --help`` answers at once, and ``mmprune3d
doctor`` works where torch or mmengine is missing.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from mmprune3d.command import NOTHING_KEPT


class Subcommand(Protocol):
    """One subcommand: a module of this package, or a `Command`.

    A subcommand may also have ``AFTER_INTERRUPT``: what the user is told after Ctrl-C, see `command.run_main`.

    Attributes:
        HELP: One line for the list of commands.
        EPILOG: One or more examples, shown below the options.
    """

    HELP: str
    EPILOG: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Adds positional arguments and options."""

    def run(self, args: argparse.Namespace) -> int | None:
        """Does the work; imports what is heavy.

        Returns:
            The exit status; None means 0.
        """


@dataclass(frozen=True)
class Command:
    """A subcommand of a subcommand, such as ``keys`` of ``mmprune3d inspect``; see `Subcommand`."""

    HELP: str
    EPILOG: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int | None]
    AFTER_INTERRUPT: str = NOTHING_KEPT


class Formatter(argparse.RawDescriptionHelpFormatter):
    """Help that fits a screen.

    The usage line has the positional and the required arguments only, options are listed below it, each on one line
    where that is possible. ``--help`` itself is not listed.

    Args:
        prog: Name of the command.
    """

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32)

    def _format_args(self, action: argparse.Action, default_metavar: str) -> str:
        """``KEY=VALUE ...`` instead of ``KEY=VALUE [KEY=VALUE ...]``."""
        if action.nargs != '+':
            return super()._format_args(action, default_metavar)
        return f'{self._metavar_formatter(action, default_metavar)(1)[0]} ...'

    def add_usage(
        self, usage: str | None, actions: Iterable[argparse.Action], groups: Iterable[Any], prefix: str | None = None
    ) -> None:
        """Builds the line from the arguments, unless it is given."""
        if usage is None:
            needed = [action for action in actions if not action.option_strings or action.required]
            line = self._format_usage(None, needed, [], '').strip()
            options = '' if prefix == '' else ' [options]'  # without a prefix it becomes the name of a subcommand
            usage = f'{line}{options}'.replace('%', '%%')  # argparse puts the name of the program into it once more
        super().add_usage(usage, actions, groups, prefix)

    def add_argument(self, action: argparse.Action) -> None:
        """Adds an argument to the list; names of subcommands count with their indentation, which argparse forgets."""
        if '--help' in action.option_strings:
            return
        super().add_argument(action)
        if isinstance(action, argparse._SubParsersAction):
            self._action_max_length += self._indent_increment


def add_command(subparsers: Any, name: str, command: Subcommand) -> None:
    """Adds a subcommand to what ``ArgumentParser.add_subparsers`` returned."""
    parser = subparsers.add_parser(
        name,
        help=command.HELP,
        description=f'{command.HELP[0].upper()}{command.HELP[1:]}.',
        epilog=command.EPILOG.strip('\n'),
        formatter_class=Formatter,
    )
    after = getattr(command, 'AFTER_INTERRUPT', NOTHING_KEPT)
    parser.set_defaults(run=command.run, parser=parser, after_interrupt=after)
    command.add_arguments(parser)


def add_commands(parser: argparse.ArgumentParser, commands: Mapping[str, Subcommand]) -> None:
    """Gives `parser` subcommands by name. Without one of them, the help is printed and the exit status is 2."""
    subparsers = parser.add_subparsers(title='commands', metavar='COMMAND')
    parser.set_defaults(run=print_help, parser=parser, after_interrupt=NOTHING_KEPT)
    for name, command in commands.items():
        add_command(subparsers, name, command)


def print_help(args: argparse.Namespace) -> int:
    """Prints the help of a command that was given without its subcommand; the exit status is 2."""
    import sys

    args.parser.print_help(sys.stderr)
    return 2


def add_model(parser: argparse.ArgumentParser, checkpoint: str = 'its checkpoint: a file or an address') -> None:
    """Adds CONFIG (``args.config``, a path) and CHECKPOINT (``args.checkpoint``, a file or an address, as text)."""
    parser.add_argument('config', type=Path, metavar='CONFIG', help='config of the detector, as for mmdet3d')
    parser.add_argument('checkpoint', metavar='CHECKPOINT', help=checkpoint)


def add_out(parser: argparse.ArgumentParser, default: str | None, what: str = 'folder for the results') -> None:
    """Adds ``--out`` (``args.out``, a path, or None without a default)."""
    shown = '' if default is None else f' (default: {default})'
    parser.add_argument('--out', type=Path, default=default and Path(default), metavar='PATH', help=f'{what}{shown}')


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """Adds ``--cfg-options KEY=VALUE ...`` (``args.cfg_options``, a dict), as mmdet3d's own tools have it."""
    parser.add_argument(
        '--cfg-options', nargs='+', action=Overrides, default={}, metavar='KEY=VALUE', help='changes of the config'
    )


def add_words(parser: argparse.ArgumentParser, metavar: str, text: str, needed: bool = False) -> None:
    """Adds the words of methods and settings (``args.words``, a list); see `methods` and `settings`.

    They may be interrupted by options: `parse` puts them together.
    """
    parser.add_argument('words', nargs='+' if needed else '*', metavar=metavar, help=text)


class Overrides(argparse.Action):
    """Reads ``KEY=VALUE`` words as mmengine's ``DictAction`` does; mmengine is imported only if there are any."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        """Adds the words to what earlier ones of the same option gave."""
        wrong = next((word for word in values if not word.partition('=')[0] or '=' not in word), None)
        if wrong is not None:
            parser.error(f'{option}: {wrong!r} is not KEY=VALUE (methods and their settings come before {option})')
        setattr(namespace, self.dest, {**getattr(namespace, self.dest), **settings(values)})


def settings(words: Iterable[str]) -> dict[str, Any]:
    """Settings from ``key=value`` words. Lists are written ``[a,b]`` and tuples ``(a,b)``, as for ``--cfg-options``.

    Raises:
        ValueError: If a word is not ``key=value``, a list or tuple is not closed, or a key occurs twice.
    """
    from mmengine.config import DictAction

    found: dict[str, Any] = {}
    for word in words:
        name, separator, value = word.partition('=')
        if not (name and separator):
            raise ValueError(f'cannot read {word!r}: settings are key=value, without spaces')
        if name in found:
            raise ValueError(f'{name} is given twice')
        try:
            found[name] = DictAction._parse_iterable(value)
        except (AssertionError, IndexError) as error:
            raise ValueError(f'cannot read {word!r}: brackets are not closed; lists are [a,b], tuples (a,b)') from error
    return found


def methods(words: Sequence[str], known: Sequence[str]) -> dict[str, list[str]]:
    """``METHOD key=value ... [METHOD key=value ...]`` taken apart.

    Args:
        words: The words of the command line.
        known: Names of the methods.

    Returns:
        Method -> its settings as they were written, in the order of the command line. ``Plan.parse`` reads them when
        they are joined by commas.

    Raises:
        ValueError: If a setting comes before the first method, a method is not known or occurs twice.
    """
    found: dict[str, list[str]] = {}
    valid = ', '.join(known)
    for word in words:
        if '=' not in word and word in known:
            if word in found:
                raise ValueError(f'{word} is given twice')
            found[word] = []
        elif found:
            found[list(found)[-1]].append(word)
        elif '=' in word:
            raise ValueError(f'{word}: name the method before its settings, such as "{known[0]} {word}" (of {valid})')
        else:
            raise ValueError(f'{word!r} is not a method for this command; valid are {valid}')
    return found


def parse(parser: argparse.ArgumentParser, words: Sequence[str] | None) -> argparse.Namespace:
    """Parses a command line in which methods and settings may stand before and after options.

    Args:
        parser: With subcommands, see `add_command`.
        words: The command line without the name of the program; None means that of this process.

    Raises:
        SystemExit: With status 2 and the usage of the subcommand, if the arguments are wrong.
    """
    args, rest = parser.parse_known_args(words)
    options = [word for word in rest if word.startswith('-')]
    if rest and (options or not hasattr(args, 'words')):
        getattr(args, 'parser', parser).error(f'unrecognized arguments: {" ".join(options or rest)}')
    if rest:
        args.words = [*args.words, *rest]
    return args


def whole(least: int) -> Callable[[str], int]:
    """The ``type`` of an option that is a whole number, `least` or more."""

    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if number < least:
            raise argparse.ArgumentTypeError(f'{text!r} must be a whole number, {least} or more')
        return number

    return read


def check_target(target: Path, *inputs: str | Path, new: bool = False) -> None:
    """Refuses to write a file where something would be lost, before the work.

    Args:
        target: The file to write.
        inputs: Files that are read; addresses are not compared.
        new: Whether there must be no such file yet.

    Raises:
        ValueError: If it is a folder or one of the inputs, or exists although it must be new.
    """
    if target.is_dir():
        raise ValueError(f'{target} is a folder: give the name of the file to write')
    if any(target.resolve() == Path(one).resolve() for one in inputs):
        raise ValueError(f'{target} is what is read, and would be replaced: choose another name')
    if new and target.exists():
        raise ValueError(f'{target} exists; choose another name')


def aligned(text: str) -> str:
    """Markdown with the columns of its tables brought to one width, for the screen."""
    made: list[str] = []
    table: list[list[str]] = []
    for line in [*text.split('\n'), '']:
        if line.startswith('|'):
            table.append([cell.strip() for cell in line.strip('|').split('|')])
            continue
        made += _aligned_rows(table)
        table = []
        made.append(line)
    return '\n'.join(made[:-1])


def _aligned_rows(table: Sequence[Sequence[str]]) -> list[str]:
    """Rows of one table; the second one says which columns are numbers, aligned to the right."""
    if len(table) < 2 or len({len(row) for row in table}) > 1:
        return [f'| {" | ".join(row)} |' for row in table]
    widths = [max(len(row[column]) for row in (table[0], *table[2:])) for column in range(len(table[0]))]
    right = [mark.endswith(':') for mark in table[1]]
    rows = [
        [cell.rjust(width) if number else cell.ljust(width) for cell, width, number in zip(row, widths, right)]
        for row in (table[0], *table[2:])
    ]
    rule = ['-' * width for width in widths]
    return [f'  {"  ".join(row)}'.rstrip() for row in (rows[0], rule, *rows[1:])]
