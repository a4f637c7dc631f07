"""``mmprune3d upgrade``: from a config and a checkpoint to a faster pair, with the evidence."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from mmprune3d.command import GOES_ON

from . import common
from .common import whole

HELP = 'make a detector faster, and report how accuracy, time and memory change'
EPILOG = """
examples:
  mmprune3d upgrade CONFIG CHECKPOINT tggbc r=12000 n=2 k=175
  mmprune3d upgrade CONFIG CHECKPOINT tggbc auto --max-drop 0.01 --calibrate 100
  mmprune3d upgrade CONFIG CHECKPOINT gpq target=300 epochs=6 tggbc r=8000+4000
  mmprune3d upgrade CONFIG CHECKPOINT altermoma flops=0.5 --epochs 6
"""
AFTER_INTERRUPT = GOES_ON
OUT = 'work_dirs/upgrade'
AUTO = 'auto'
METHODS = ('tggbc', 'tome', 'gpq', 'altermoma', 'halting')
GROUP = 'mmprune3d.methods'
"""Group of entry points of other packages; this and the methods of mmprune3d are said without an import."""
LOG = 'logs/output.log'
"""What other packages print, in the folder of the upgrade."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``mmprune3d upgrade`` to its parser."""
    common.add_model(parser)
    common.add_words(parser, 'METHOD KEY=VALUE', 'what to prune', needed=True)
    add_options(parser)
    plain, words = parser.format_help, next(one for one in parser._actions if one.dest == 'words')

    def format_help() -> str:
        # only now: it looks through the installed packages
        words.help = f'{", ".join(installed())} and settings; several if they go together'
        return plain()

    parser.format_help = format_help  # type: ignore[method-assign]


def installed() -> list[str]:
    """The names of all methods, as `names`, without an import of any: other packages name theirs in entry points."""
    return [*METHODS, *(entry.name for entry in metadata.entry_points(group=GROUP))]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds what ``mmprune3d upgrade`` and ``tools/upgrade.py`` have in common."""
    add = parser.add_argument
    add('--describe', metavar='METHOD', nargs='?', action=Describe, help='what all methods do, or one and its settings')
    add('--epochs', metavar='N', type=int, help='epochs of fine-tuning (those of the config)')
    add('--lr-factor', metavar='F', type=float, help="learning rate, times the config's (0.5)")
    add('--max-drop', metavar='D', type=float, help=f'{AUTO}: largest drop of mAP and NDS (0.01)')
    add('--calibrate', metavar='N', type=int, help=f'{AUTO}: test samples to search on (all)')
    add('--samples', metavar='N', type=whole(1), help='test samples to evaluate (all)')
    add('--timed', metavar='N', type=whole(1), default=8, help='test batches to time (%(default)s)')
    add('--repeats', metavar='N', type=whole(1), default=3, help='how often each is timed (%(default)s)')
    add('--pictures', metavar='N', type=whole(0), default=3, help='samples to draw (%(default)s)')
    common.add_out(parser, OUT, 'folder')
    common.add_overrides(parser)


def names() -> list[str]:
    """The names of all methods."""
    from mmprune3d.upgrade.methods import known

    return list(known())


class Describe(argparse.Action):
    """Prints what all methods do, or one method and its settings, and ends."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        """Raises SystemExit, with status 2 if there is no such method."""
        from mmprune3d.upgrade.describe import describe, listing

        try:
            text = listing() if values is None else describe(values)
        except ValueError as error:
            parser.error(str(error))
        print(text)
        parser.exit()


def texts_of(words: Sequence[str]) -> dict[str, str]:
    """Method -> its settings as one text, from ``METHOD KEY=VALUE ... [METHOD KEY=VALUE ...]``.

    Raises:
        ValueError: If a word is neither a method nor a setting, or a method occurs twice.
    """
    found = common.methods(words, names())
    for method, settings in found.items():
        for word in settings:
            if '=' not in word and word.split(',')[0] != AUTO:
                raise ValueError(
                    f'{word!r} is neither a method ({", ".join(names())}) nor a setting of {method} (key=value)'
                )
        settings.sort(key=lambda word: word.split(',')[0] != AUTO)  # "k=100 auto" is "auto k=100"
    return {method: ','.join(settings) for method, settings in found.items()}


def run(args: argparse.Namespace) -> None:
    """Runs the upgrade."""
    run_methods(texts_of(args.words), args)


def run_methods(texts: Mapping[str, str], args: argparse.Namespace) -> None:
    """Runs an upgrade, unless another one works in the same folder.

    Args:
        texts: Method -> its settings as one text.
        args: What `common.add_model` and `add_options` read.

    Raises:
        ValueError: If methods or settings are not valid; nothing has been read or written then.
    """
    from mmprune3d.files import alone
    from mmprune3d.screen import chatter_to
    from mmprune3d.upgrade import methods
    from mmprune3d.upgrade.run import run_upgrade
    from mmprune3d.upgrade.steps import Options

    options = Options(args.epochs, args.lr_factor, args.max_drop, args.calibrate)
    steps = methods.parse(texts, options)
    with alone(Path(args.out)), chatter_to(Path(args.out) / LOG):
        run_upgrade(
            args.config,
            args.checkpoint,
            steps,
            args.out,
            args.cfg_options,
            timed=args.timed,
            repeats=args.repeats,
            pictures=args.pictures,
            samples=args.samples,
        )
