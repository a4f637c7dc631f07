"""``mmprune3d upgrade``: a placeholder until the command is written."""

from __future__ import annotations

import argparse

from . import common

HELP = 'make a detector faster, and report how accuracy, time and memory change'
EPILOG = """
example:
  mmprune3d upgrade CONFIG CHECKPOINT tggbc r=12000 --out work_dirs/upgrade
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See --help."""
    common.add_model(parser)
    common.add_words(parser, 'METHOD KEY=VALUE', 'what to prune', needed=True)
    common.add_out(parser, 'work_dirs/upgrade')
    common.add_overrides(parser)


def run(args: argparse.Namespace) -> None:
    """Refuses."""
    raise ValueError('not written yet: use tools/upgrade.py')
