"""The console command ``mmprune3d``: one file per subcommand, whose heavy imports happen when it runs."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from mmprune3d.command import run_main
from mmprune3d.version import __version__

from . import checkpoint, common, compact, demo, doctor, export, inspect, prune, synth, upgrade

COMMANDS: dict[str, common.Subcommand] = {
    'upgrade': upgrade,
    'prune': prune,
    'compact': compact,
    'inspect': inspect,
    'export': export,
    'checkpoint': checkpoint,
    'synth': synth,
    'demo': demo,
    'doctor': doctor,
}
EPILOG = """\
A config and a checkpoint of mmdet3d go in, a config and a checkpoint that mmdet3d runs come out:
  mmprune3d upgrade CONFIG CHECKPOINT tggbc r=12000 --out work_dirs/upgrade
The help of a command has more: mmprune3d upgrade --help"""


def parser() -> argparse.ArgumentParser:
    """The parser of the whole command line, with all subcommands."""
    made = argparse.ArgumentParser(
        'mmprune3d',
        description='Makes 3D detectors of mmdetection3d faster by pruning, and shows what that costs.',
        epilog=EPILOG,
        formatter_class=common.Formatter,
    )
    made.add_argument('--version', action='version', version=f'mmprune3d {__version__}')
    common.add_commands(made, COMMANDS)
    return made


def main(words: Sequence[str] | None = None) -> int:
    """Runs a command line, and ends as `mmprune3d.command.run_main` does.

    Args:
        words: The command line without the name of the program; None means that of this process.

    Returns:
        The exit status: 0, or what the subcommand says (1 for ``doctor`` in a broken environment, 2 where a subcommand
        is missing).

    Raises:
        SystemExit: After an error (status 1), a wrong command line (2) or Ctrl-C (130).
    """
    parsed: list[argparse.Namespace] = []
    run_main(lambda: parsed.append(common.parse(parser(), words)))
    args, status = parsed[0], []
    run_main(lambda: status.append(args.run(args)), args.after_interrupt)
    return status[0] or 0
