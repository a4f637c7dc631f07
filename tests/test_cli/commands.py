"""The commands of ``mmprune3d`` that do something, with their parsers."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from mmprune3d.cli import parser


def children(made: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Subcommand -> its parser; empty for a command without subcommands."""
    actions = [action for action in made._actions if isinstance(action, argparse._SubParsersAction)]
    return actions[0].choices if actions else {}


def all_commands(groups: bool = False) -> list[tuple[str, argparse.ArgumentParser]]:
    """(name, parser) of every command, such as 'inspect keys'; with `groups` also those that only hold others."""

    def walk(name: str, made: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
        below = children(made)
        if groups or not below:
            yield name, made
        for child, one in below.items():
            yield from walk(f'{name} {child}'.strip(), one)

    return list(walk('', parser()))
