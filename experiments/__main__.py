"""Prints which experiments there are, and their commands."""

from __future__ import annotations

from .command import experiments


def overview() -> str:
    """Every experiment with its commands, one line each."""
    lines = ["The papers' tables and figures, on synthetic or random data. --help of a command shows an example."]
    for commands in experiments():
        lines += ['', f'{commands.parser.prog}   {commands.description}']
        lines += [f'  {name:<11} {text}' for name, text in commands.help.items()]
    return '\n'.join(lines)


if __name__ == '__main__':
    print(overview())
