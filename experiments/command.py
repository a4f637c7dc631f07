"""The command lines of the experiments: ``python -m experiments.<name> <command> ...``."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

from mmprune3d.command import GOES_ON, PACKAGE, run_main

ROOT = Path(__file__).resolve().parents[1]
"""The checkout."""
EXPERIMENT_FILE = '__main__'
"""Module of an experiment's package that has its command line: a function `commands` that returns a `Commands`."""


class Commands:
    """The commands of one experiment; each has an example in its ``--help``.

    Args:
        name: Name of the experiment's package.
        description: One sentence on what the experiment is about.
    """

    def __init__(self, name: str, description: str) -> None:
        self.name, self.description = name, description
        self.parser = argparse.ArgumentParser(prog=f'python -m experiments.{name}', description=description)
        self._parsers = self.parser.add_subparsers(metavar='COMMAND', required=True)
        self.help: dict[str, str] = {}

    def add(
        self,
        command: str,
        run: Callable[[argparse.Namespace], object],
        help: str,
        example: str = '',
        note: str = '',
        after_interrupt: str = GOES_ON,
    ) -> argparse.ArgumentParser:
        """Adds a command.

        Args:
            command: Its name.
            run: Carries it out, given the parsed arguments.
            help: What it does, one line.
            example: Arguments of an example.
            note: A sentence that is printed above the example.
            after_interrupt: What is printed after Ctrl-C, see `run_main`.

        Returns:
            The command's parser, for its arguments.
        """
        example = f'example:\n  {self.parser.prog} {command} {example}'.rstrip()
        parser = self._parsers.add_parser(
            command,
            help=help,
            description=help[0].upper() + help[1:] + '.',
            epilog=f'{note}\n\n{example}' if note else example,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        parser.set_defaults(run=run, after_interrupt=after_interrupt)
        self.help[command] = help
        return parser

    def main(self, argv: Sequence[str] | None = None) -> None:
        """Parses the command line and carries the command out; errors end as `run_main` has it."""
        args = self.parser.parse_args(argv)
        run_main(lambda: args.run(args), args.after_interrupt, (PACKAGE, ROOT / 'experiments'))


def experiments() -> list[Commands]:
    """The commands of all experiments, in alphabetical order."""
    package = import_module('experiments')
    names = sorted(module.name for module in iter_modules(package.__path__) if module.ispkg and module.name != 'tests')
    return [import_module(f'experiments.{name}.{EXPERIMENT_FILE}').commands() for name in names]


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """Adds ``--cfg-options``."""
    from mmengine.config import DictAction

    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, default={}, metavar='KEY=VALUE', help='overrides of the config'
    )


def add_detector(parser: argparse.ArgumentParser, config: Path, what: str) -> None:
    """Adds ``--config`` and ``--cfg-options``.

    Args:
        parser: Of the command.
        config: The default.
        what: What kind of detector is expected.
    """
    shown = config.relative_to(ROOT)
    parser.add_argument('--config', type=Path, default=config, metavar='FILE', help=f'{what} (default: {shown})')
    add_overrides(parser)


def add_checkpoint(parser: argparse.ArgumentParser, config: Path) -> None:
    """Adds ``--checkpoint``, by default the file beside `config`."""
    parser.add_argument(
        '--checkpoint', default=config.with_suffix('.pth'), metavar='FILE', help='its weights: a file or an address'
    )


def add_folder(parser: argparse.ArgumentParser, folder: str) -> None:
    """Adds ``--out``, by default `folder`, and ``--threads``."""
    parser.add_argument(
        '--out', type=Path, default=Path(folder), metavar='DIR', help='folder of the study (default: %(default)s)'
    )
    add_threads(parser)


def add_threads(parser: argparse.ArgumentParser, default: int | None = None) -> None:
    """Adds ``--threads``."""
    shown = "torch's own choice" if default is None else default
    parser.add_argument('--threads', type=int, default=default, help=f'CPU threads (default: {shown})')


def set_threads(args: argparse.Namespace) -> None:
    """Sets the number of torch's threads to ``--threads``, if it was given."""
    import torch

    if args.threads:
        torch.set_num_threads(args.threads)


def prepare_folder(args: argparse.Namespace, make: bool = True) -> None:
    """Sets the threads and finds out whether results can be written into ``--out``.

    Args:
        args: With `out` and `threads`.
        make: Whether the folder is made if it does not exist.

    Raises:
        OSError: If the folder cannot be written.
    """
    from mmprune3d.files import writable

    set_threads(args)
    if make or args.out.exists():
        writable(args.out)
