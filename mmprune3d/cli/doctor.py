"""``mmprune3d doctor``: what is installed, what does not fit, and the command that repairs it."""

from __future__ import annotations

import argparse

HELP = 'check what is installed, and say what to type where something does not fit'
EPILOG = """
The exit status is 0 if mmprune3d can be used, and 1 otherwise. Bug reports are easiest to answer with this output.

example:
  mmprune3d doctor
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds nothing: ``mmprune3d doctor`` has no arguments."""


def run(args: argparse.Namespace) -> int:
    """Prints the report."""
    from mmprune3d import doctor

    return doctor.main()
